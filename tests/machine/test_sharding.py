"""A model that FSDP divides takes the steps of one that is whole, and any number of processes goes on from it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ratrain.config.identity import recipe_hash
from ratrain.engine.strategy import arranged, state_bytes
from ratrain.errors import ManifestError
from ratrain.machine.distributed import World
from ratrain.model.build import build
from ratrain.storage.checkpoint import listed, load
from tests.machine.gangs import losses

SWITCH = ("activation.kind=after", "activation.after={steps=12}")
FSDP = ("parallel.strategy=fsdp", *SWITCH)
HSDP = ("parallel.replicas=2", *FSDP)
ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    file
    for folder in (".", "ideas", "splice", "control", "prune", "legacy")
    for file in (ROOT / "manifests" / folder).glob("*.toml")
    if not file.name.startswith(("ablation", "ladder"))
)


@pytest.fixture(scope="module")
def runs(gang, tmp_path_factory):
    """The folder of a run in each layout, in float64, and what became of it."""
    out = tmp_path_factory.mktemp("runs")
    tasks = {
        "whole": (1, SWITCH, None),
        "full": (2, FSDP, None),
        "optimizer": (2, (*FSDP, "parallel.shard=optimizer"), None),
        "replicas": (4, HSDP, None),
        "again": (2, FSDP, [1, 13]),
    }
    plans = [(count, out / name, keys, stop) for name, (count, keys, stop) in tasks.items()]
    told = gang(*plans, (2, out / "again", FSDP, None), dtype="float64")
    return {path.name: next(path.glob("*/s1")) for path in out.iterdir()}, dict(
        zip([*tasks, "gone on"], told, strict=True)
    )


@pytest.mark.parametrize("name", ["full", "optimizer", "replicas", "again"])
def test_dividing_does_not_change_what_is_trained(runs, name):
    folders, told = runs
    assert set(told["gone on" if name == "again" else name]["codes"]) == {0}
    assert len(losses(folders[name])) == 30
    assert losses(folders[name]) == pytest.approx(losses(folders["whole"]), rel=1e-11)
    assert losses(folders[name], "Evaluated") == pytest.approx(losses(folders["whole"], "Evaluated"), rel=1e-11)


def test_dividing_keeps_the_rates_of_every_group_under_mup(gang, tmp_path):
    mup = ("model.parametrisation=mup", "model.base={ n_embd = 16, n_head = 1 }", "optim.eps=1e-4", *SWITCH)
    told = gang(
        (1, tmp_path / "whole", mup, None), (2, tmp_path / "full", (*FSDP, *mup), None), dtype="float64"
    )  # fmt: skip
    assert {code for each in told for code in each["codes"]} == {0}
    whole, full = (losses(next((tmp_path / name).glob("*/s1"))) for name in ("whole", "full"))
    assert full == pytest.approx(whole, rel=1e-11)


def test_a_divided_run_that_was_stopped_ends_with_the_bits_of_the_unbroken_one(runs):
    folders, told = runs
    assert told["again"]["codes"] == [75, 75]
    assert told["gone on"]["weights"] == told["full"]["weights"]
    assert len(set(told["full"]["weights"])) == 1
    assert losses(folders["again"]) == losses(folders["full"])


def test_a_signal_to_one_process_in_the_first_window_stops_both(gang, tmp_path):
    compiled = ("compile.scope=block", "compile.backend=eager")  # the first evaluation compiles, which is an exchange
    told = gang((2, tmp_path, (*FSDP, *compiled), [1, 1]))
    assert told[0]["codes"] == [75, 75]


@pytest.mark.parametrize(("rank", "asynchronous", "when"), [(0, "off", ""), (1, "on", ""), (0, "off", " at the end")])
def test_a_disk_that_is_full_costs_checkpoints_and_nothing_else(gang, tmp_path, rank, asynchronous, when):
    keys = (*FSDP, f"checkpoint.asynchronous={asynchronous}")
    told = gang((2, tmp_path, keys, [rank, 13, f"full{when}"]), (2, tmp_path, keys, None))
    assert [each["codes"] for each in told] == [[74, 74], [0, 0]]
    (folder,) = tmp_path.glob("*/s1")
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (resumed,) = [line for line in lines if line["event"] == "Resumed"]
    assert resumed["step"] == 10  # the checkpoint of step 20 could not be written, and the run went on without
    assert told[0]["said"].count("No space left on device") == 1
    assert lines[-1]["event"] == "RunEnded"
    assert load(listed(folder / "checkpoints")[0]).step == 30
    assert not list(folder.rglob("*.part"))


def test_each_process_writes_its_rows_and_one_replica_writes_them(runs):
    names = {name: sorted(path.name for path in listed(runs[0][name] / "checkpoints")[0].iterdir()) for name in runs[0]}
    rows = [f"{group}-{number}-of-2.safetensors" for group in ("model", "optimizer") for number in (1, 2)]
    assert names["full"] == names["replicas"] == sorted([*rows, *names["whole"]])
    sizes = [file.stat().st_size for file in listed(runs[0]["full"] / "checkpoints")[0].glob("model-*")]
    assert max(sizes) < 1.1 * min(sizes)


def test_the_rows_are_joined_to_the_tensors_of_the_whole_run(runs):
    whole, full = (load(listed(runs[0][name] / "checkpoints")[0]) for name in ("whole", "full"))
    assert whole.model.keys() == full.model.keys()
    for name, tensor in whole.model.items():
        torch.testing.assert_close(full.model[name], tensor, rtol=1e-9, atol=1e-12)
    moments = {name for name in whole.optimizer if not name.startswith("rng|")}
    assert moments == {name for name in full.optimizer if not name.startswith("rng|")}
    for name in moments:
        torch.testing.assert_close(full.optimizer[name], whole.optimizer[name], rtol=1e-7, atol=1e-12)


@pytest.mark.slow
def test_any_layout_goes_on_from_any_other(gang, runs, tmp_path):
    chain = [(4, HSDP, [0, 6]), (4, FSDP, [3, 5]), (2, SWITCH, [1, 5]), (1, SWITCH, [0, 5]), (2, FSDP, None)]
    told = gang(*((count, tmp_path, keys, stop) for count, keys, stop in chain), dtype="float64")
    assert [set(each["codes"]) for each in told] == [{75}] * 4 + [{0}]
    assert losses(next(tmp_path.glob("*/s1"))) == pytest.approx(losses(runs[0]["whole"]), rel=1e-11)


@pytest.mark.slow
def test_every_variant_is_divided_without_a_change_or_refused(own_cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chosen = SHIPPED if os.environ.get("FAULTS") == "long" else SHIPPED[::4]
    words = [sys.executable, str(Path(__file__).with_name("divided.py")), str(port), *map(str, chosen)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(chosen) > 20
    assert {file: told for file, told in found.items() if isinstance(told, str)} == {}
    assert max(found.values()) < 1e-9


def test_the_layout_is_no_part_of_the_recipe(tiny):
    other = tiny("v9", "parallel.strategy=fsdp", "parallel.shard=optimizer", "parallel.activation_checkpointing=block")
    assert recipe_hash(other) == recipe_hash(tiny("v9"))


@pytest.mark.parametrize(
    ("size", "keys", "wrong"),
    [
        (1, ["parallel.strategy=fsdp"], "fsdp needs several processes"),
        (4, ["parallel.strategy=fsdp", "parallel.replicas=3"], "3 does not leave two or more processes"),
        (4, ["parallel.strategy=fsdp", "parallel.replicas=4"], "4 does not leave two or more processes"),
        (4, ["parallel.replicas=2"], 'needs parallel.strategy = "fsdp"'),
        (4, ["parallel.strategy=fsdp", "train.precision=fp8"], "fp8 cannot be divided"),
        (4, ["parallel.strategy=fsdp", "compile.scope=model"], "FSDP gathers each block before its graph"),
        (4, ["parallel.strategy=fsdp", "optim.kind=sinkgd_legacy"], "sinkgd_legacy reads whole gradients"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_anything_is_built(tiny, size, keys, wrong, monkeypatch):
    monkeypatch.setattr(World, "lead", lambda world, act: act())  # rank 0 of processes that are not there
    with pytest.raises(ManifestError, match=wrong):
        arranged(World(0, size), tiny("v9", *keys), torch.device("cpu"))


def test_the_state_shrinks_with_the_number_of_processes(tiny):
    manifest = tiny("v0")
    model = build(manifest, device="meta")
    whole, half = (state_bytes(manifest, model, size=size) for size in (1, 2))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert whole == 16 * count  # weights, gradients and two moments
    assert whole / 2 < half < 0.52 * whole  # norms and biases stay whole
