"""`ratrain profile` as a person meets it, and its figures against the model's own count."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from pathlib import Path

import pytest
import torch

from ratrain.errors import Exit
from ratrain.profile.folder import KIND
from ratrain.profile.measure import profile_step

TINY = ["--scale", "tiny", "--device", "cpu", "--steps", "2"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path.parent / "inductor"))
    monkeypatch.setattr("ratrain.profile.measure.memory_bandwidth", lambda device: 1e10)
    yield tmp_path
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def profiled(tiny, tmp_path):
    """The record of a variant's profile, at the tiny scale and uncompiled unless told otherwise."""

    def profiled(name, *overrides):
        return profile_step(tiny(name, *overrides), CPU, steps=2, folder=tmp_path / "out", say=lambda text: None)

    return profiled


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [4, 2])
def test_products_come_to_what_the_model_counts(profiled, micro_batch):
    """With attention written out: a fused one forms its scores a second time to go back."""
    told = profiled("gpt2", "compile.attention=math", f"train.micro_batch={micro_batch}")
    assert told["flops"]["counted"] == told["flops"]["analytic"]
    assert told["flops"]["attention"] == 0


def test_fused_attention_forms_one_product_of_three_again(profiled):
    told = profiled("gpt2")
    scores = 2 * 4 * 32 * 32 * 32 * 2  # of a product over 4 sequences, 32 positions, 32 channels, two layers
    assert told["flops"]["counted"] == told["flops"]["analytic"] + scores
    assert told["flops"]["attention"] == 7 * scores


def test_rows_add_up_to_the_step(profiled):
    told = profiled("v9", "train.precision=amp_bf16")
    assert sum(row["seconds"] for row in told["rows"]) == pytest.approx(told["step"]["seconds"], rel=1e-6)
    assert all(row["seconds"] > 0 for row in told["rows"])
    assert {row["phase"] for row in told["rows"]} == {
        *("data", "forward", "backward", "clip", "optimizer", "Python and gaps")
    }


def test_the_peak_is_split_into_all_that_lives(profiled):
    told = profiled("gpt2")
    split = told["memory"]["split"]
    weights = split["parameters"]
    assert sum(split.values()) == told["memory"]["peak_bytes"]
    assert split["optimizer_state"] == pytest.approx(2 * weights, rel=0.01)  # and a count of steps each
    memory = json.loads(Path("out/memory.json").read_text())
    recorded = memory["peak_bytes"] - split["parameters"] - split["optimizer_state"]
    assert sum(entry["bytes"] for entry in memory["at_peak"]) == recorded
    assert max(size for _, size in memory["timeline_us_bytes"]) == memory["peak_bytes"]


def test_every_file_is_there_and_a_second_profile_takes_its_place(ratrain):
    for _ in range(2):
        code, out, err = ratrain("profile", "v0", *TINY)
        assert code == 0, err
    folder = Path("profile-v0-tiny")
    assert sorted(file.name for file in folder.iterdir()) == [
        *("memory.json", "profile.json", "profile.txt", "trace.json.gz")
    ]
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    assert any(event.get("name") == "ratrain.profile: backward" for event in trace["traceEvents"])
    assert json.loads((folder / "profile.json").read_text())["kind"] == KIND
    assert out.startswith((folder / "profile.txt").read_text().splitlines()[0])
    assert "most to gain" in out
    assert max(map(len, out.splitlines())) <= 120
    assert "timing 2 steps" in err
    assert not Path("runs").exists()


def test_json_is_the_record_alone(ratrain):
    _, out, _ = ratrain("profile", "v0", *TINY, "--json", "--out", "here")
    assert json.loads(out) == json.loads(Path("here/profile.json").read_text())


def test_a_profile_that_was_killed_on_the_way_may_be_overwritten(ratrain):
    Path("here").mkdir()
    Path("here/profile.json").touch()
    assert ratrain("profile", "v0", *TINY, "--out", "here")[0] == 0


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["v99"], Exit.MISSING, "did you mean 'v9'?"),
        (["v0", "--steps", "0"], Exit.USAGE, "from 1 on"),
        (["v0", "--steps", "many"], Exit.USAGE, "whole number"),
        (["v0", "--set", "model.n_layr=2"], Exit.BAD_MANIFEST, "n_layer"),
        (["v0", "--set", "data.source=nowhere"], Exit.MISSING, "`ratrain prepare"),
        (["v0", "--device", "quantum"], Exit.UNAVAILABLE, "no such kind of device"),
        (["v0", "--out", "foreign"], Exit.CANNOT_CREATE, "something else than an earlier profile (thesis.tex)"),
        (["v0", "--out", "alike"], Exit.CANNOT_CREATE, "something else than an earlier profile (profile.json)"),
        (["v0", "--out", "file"], Exit.CANNOT_CREATE, "is no folder"),
        (["v0", "--out", "file/below"], Exit.CANNOT_CREATE, "choose another --out"),
        (["v0", "--out", "runs/x"], Exit.USAGE, "the folder of runs"),
        ([], Exit.USAGE, "manifest"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_told_and_leaves_nothing(ratrain, tmp_path, argv, code, message):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    (tmp_path / "alike").mkdir()
    (tmp_path / "alike" / "profile.json").write_text('{"kind": "of another program"}')
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    got, out, err = ratrain("profile", *argv, "--scale", "tiny")
    assert (got, message in err, out) == (code, True, ""), err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_told(ratrain):
    code, _, err = ratrain("profile", "v0", "--scale", "tiny", "--device", "cuda")
    assert (code, "use --device cpu" in err) == (Exit.UNAVAILABLE, True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_compiled(ratrain, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = ratrain("profile", "v0", *TINY)
    tmp_path.chmod(0o700)
    assert (code, "cannot be written" in err, "compiling" in err) == (Exit.CANNOT_CREATE, True, False)


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_compiled(ratrain, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = ratrain("profile", "v0", *TINY, "--out", str(tmp_path / "file" / "folder"))
    assert (code, "file" in err, "Traceback" in err, "compiling" in err) == (Exit.CANNOT_CREATE, True, False, False)


def test_a_compiler_that_is_missing_is_told(ratrain, monkeypatch):
    def fail(*_args, **_named):
        raise RuntimeError("InvalidCxxCompiler: none")

    monkeypatch.setattr("ratrain.profile.measure.record", fail)
    code, _, err = ratrain("profile", "v0", *TINY)
    assert (code, "C++ compiler" in err) == (Exit.UNAVAILABLE, True)
    assert not Path("profile-v0-tiny").exists()


@pytest.mark.slow
def test_fused_kernels_show_one_by_one_with_what_they_move_also_the_second_time(ratrain, monkeypatch):
    """A graph that comes from the cache never ran the scheduler, which alone knows."""
    for _ in range(2):
        torch._dynamo.reset()
        # graphs are counted from 0 as in a new process: the kernels, which are called by them, are compiled already
        monkeypatch.setattr("torch._inductor.compile_fx._graph_counter", itertools.count(), raising=False)
        code, out, err = ratrain("profile", "v0", *TINY, "--set", "compile.backend=inductor", "--json")
        assert code == 0, err
        rows = [row for row in json.loads(out)["rows"] if row["name"].startswith("fused")]
        gelu = next(row for row in rows if row["name"].startswith("fused gelu") and row["phase"] == "forward")
        assert gelu["bytes"] == 2 * 2 * (4 * 32) * 128 * 4  # two layers; B T rows of 128 hidden channels, in and out
        assert {row["phase"] for row in rows} == {"forward", "backward"}
        assert all(row["bytes"] for row in rows)
        assert gelu["calls"] == 2
    assert "compiling" in err
