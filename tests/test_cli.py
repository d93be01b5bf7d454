"""The command as a person meets it: what it prints, what it leaves, and the code it ends with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ratrain.errors import Exit

SCRIPT = Path(sys.executable).with_name("ratrain")
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "ratrain"]
QUICK = ["--scale", "tiny", "--set", "compile.scope=off", "--device", "cpu"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path.parent / "inductor"))
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    yield tmp_path
    torch.use_deterministic_algorithms(False)


def elsewhere(*argv, **options):
    return subprocess.run([*COMMAND, *argv], capture_output=True, text=True, **options)


# looking


def test_list_needs_no_torch_no_pydantic_and_no_rich():
    code = (
        "import sys; from ratrain.cli import main; main(['list']);"
        "print('LOADED', [m for m in ('torch', 'pydantic', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert "Unified RA, rank 2" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        *("", "list", "show", "diff", "check", "schema", "prepare", "sample", "tail"),
        *("runs", "runs rm", "runs tag", "runs untag", "runs note"),
    ],
)
def test_every_command_has_help(ratrain, words):
    code, out, _ = ratrain(*words.split(), "--help")
    assert code == 0
    assert out.startswith(f"usage: ratrain {words}".rstrip())


def test_help_lists_the_commands_of_two_words_too(ratrain):
    _, out, _ = ratrain("--help")
    assert "  runs untag  Remove tags from a run." in out


def test_help_shows_examples_and_exit_codes(ratrain):
    _, out, _ = ratrain("--help")
    assert "ratrain v9 --scale tiny" in out
    assert all(str(int(code)) in out for code in Exit)


def test_show_prints_a_manifest_that_resolves_to_the_same(ratrain, tmp_path):
    _, shown, _ = ratrain("show", "v9", "--scale", "tiny")
    (tmp_path / "again.toml").write_text(shown)
    assert "equal" not in shown
    code, out, _ = ratrain("diff", "again.toml", "v9", "--scale", "tiny")
    assert (code, out.strip()) == (0, "again.toml and v9 resolve to the same keys")


def test_diff_names_the_keys_that_differ(ratrain):
    _, out, _ = ratrain("diff", "v1", "v7")
    assert "patch.unified_ra.rank: 4 -> 8" in out


def test_check_counts_every_shipped_manifest(ratrain):
    code, out, _ = ratrain("check", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {"v0", "v1"} <= {row["id"] for row in rows}
    assert next(row for row in rows if row["id"] == "v1")["sites"] == {"unified_ra": 4}


def test_the_schema_is_json(ratrain):
    _, out, _ = ratrain("schema")
    assert "schedule" in json.loads(out)["properties"]


# refusing


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["v99"], Exit.MISSING, "did you mean 'v9'?"),
        (["verfy", "v9"], Exit.USAGE, "unrecognized arguments: v9; did you mean 'verify'?"),
        (["lits"], Exit.MISSING, "no such manifest"),
        (["v9", "--set", "schedule.lr"], Exit.BAD_MANIFEST, "schedule.lr"),
        (["v9", "--set", "schedule.lr=fast"], Exit.BAD_MANIFEST, "schedule.lr"),
        (["v9", "--set", "learning_rate=1e-3"], Exit.BAD_MANIFEST, "here it is 'schedule.lr'"),
        (["v9", "--set", "model.n_layers=1"], Exit.BAD_MANIFEST, "here it is 'model.n_layer'"),
        (["v9", "--set", "patch.unified_ra.rank=99"], Exit.BAD_MANIFEST, "rank must be below head_dim = 16"),
        (["v9", "--set", "patch.unified.rank=4"], Exit.BAD_MANIFEST, "did you mean 'unified_ra'?"),
        (["v9", "--set", "data.source=nowhere"], Exit.MISSING, "`ratrain prepare"),
        (["v9", "--scale", "huge"], Exit.USAGE, "no such scale"),
        (["v9", "--devise", "cpu"], Exit.USAGE, "--devise"),
        (["v9", "--device", "quantum"], Exit.UNAVAILABLE, "no such kind of device"),
        (["v9", "--out", "file/runs"], Exit.CANNOT_CREATE, "choose another --out"),
        (["v9", "--patches", "nowhere"], Exit.MISSING, "no such folder of patches"),
        (["v9", "--resume", "must"], Exit.MISSING, "there is no checkpoint"),
        (["v9", "--dry-run", "--set", "data.source=nowhere"], Exit.MISSING, "`ratrain prepare"),
        (["sample", "@last"], Exit.MISSING, "no such run"),
        (["tail", "@last"], Exit.MISSING, "no such run"),
        (["tail", "@last", "-n", "-1"], Exit.USAGE, "expected a whole number"),
        (["runs", "rm", "v9", "--yes"], Exit.MISSING, "no such run"),
        (["runs", "rm", "", "--yes"], Exit.USAGE, "got an empty word"),
        (["runs", "tag", "v9", "good"], Exit.MISSING, "no such run"),
        (["runs", "tag", "v9"], Exit.USAGE, "TAG"),
        (["runs", "--sort", "luck"], Exit.USAGE, "--sort"),
        (["show", "v99"], Exit.MISSING, "did you mean 'v9'?"),
        (["broken.toml"], Exit.BAD_MANIFEST, "broken.toml:2"),
        (["cut.toml"], Exit.BAD_MANIFEST, "cut.toml:1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_told_with_its_code(ratrain, tmp_path, argv, code, message):
    (tmp_path / "file").touch()
    (tmp_path / "broken.toml").write_text('extends = "gpt2.toml"\nmodle = 1\n')
    (tmp_path / "cut.toml").write_text('id = "x')
    trains = argv[0] not in ("sample", "show", "tail", "runs")
    quick = [] if not trains else ["--scale", "tiny", *QUICK[2:4]] if "--scale" not in argv else QUICK[2:4]
    got, out, err = ratrain(*argv, *quick)
    assert (got, message in err) == (code, True), err
    assert "loss" not in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_told(ratrain):
    code, _, err = ratrain("v9", *QUICK[:4], "--device", "cuda")
    assert code == Exit.UNAVAILABLE
    assert "use --device cpu" in err


@pytest.mark.parametrize("content", [b"\x00", b"\xff\xff" * 400, b"PK\x03\x04" + b"x" * 997], ids=["odd", "ids", "zip"])
def test_a_foreign_token_file_is_refused(ratrain, tmp_path, content):
    folder = tmp_path / "tokens"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / f"{split}.bin").write_bytes(content)
    code, _, err = ratrain("v9", *QUICK, "--set", f"data.source={folder}")
    assert code == Exit.BAD_DATA
    assert str(folder) in err


def test_all_faults_are_told_at_once(ratrain):
    _, _, err = ratrain("v9", *QUICK, "--set", "schedule.lr=-1", "--set", "model.dropuot=0.1", "--set", "patch.x.a=1")
    assert err.strip().endswith("3 faults; nothing was run")


def test_a_refused_manifest_leaves_no_folder(ratrain, tmp_path):
    ratrain("v9", *QUICK, "--set", "nonsense=1")
    assert not list(tmp_path.iterdir())


# training


SHORT = [*QUICK, "--set", "train.budget={steps=4}", "--set", "checkpoint.every=2", "--set", "eval.windows=2"]


def run_of(folder):
    (run,) = folder.glob("runs/*/s*")
    return run


def test_a_finished_run_says_so_when_it_is_asked_for_again(ratrain):
    code, out, _ = ratrain("v9", *SHORT)
    assert code == 0
    assert "done at step 4" in out
    code, out, _ = ratrain("v9", *SHORT)
    assert code == 0
    assert "this run is done" in out
    assert "--fresh" in out


def test_damaged_checkpoints_are_refused_and_a_good_older_one_is_used(ratrain, tmp_path):
    ratrain("v9", *SHORT)
    run = run_of(tmp_path)
    (run / "state.json").unlink()
    newer, older = sorted(run.glob("checkpoints/*"), reverse=True)
    (newer / "model.safetensors").write_bytes(b"\0" * 100)
    code, out, _ = ratrain("v9", *SHORT)
    assert code == 0
    assert "resumed at step 2" in out
    assert f"warning: {newer.relative_to(tmp_path)}" in out
    (run / "state.json").unlink()
    for checkpoint in (newer, older):
        (checkpoint / "optimizer.safetensors").write_bytes(b"")
    code, _, err = ratrain("v9", *SHORT)
    assert code == Exit.BAD_DATA
    assert "--fresh" in err
    assert ratrain("sample", "@last")[0] == Exit.BAD_DATA


def test_a_run_that_diverges_ends_with_its_own_code(ratrain):
    wild = ["--set", "schedule.lr=1e30", "--set", "train.max_skips=1", "--set", "train.budget={steps=30}"]
    code, _, err = ratrain("v9", *QUICK, *wild)
    assert code == Exit.DIVERGED
    assert "ower schedule.lr" in err


def test_runs_and_report_agree_on_a_run_whose_loss_is_not_finite(ratrain):
    wild = ("--set", "schedule.lr=1e30", "--set", "train.budget.tokens=1280", "--set", "compile.scope=off")
    code, _, err = ratrain("v0", "--scale", "tiny", "--device", "cpu", *wild)
    assert code == Exit.DIVERGED
    assert "the validation loss at step 10 is nan" in err
    assert json.loads(ratrain("runs", "--json")[1])[0]["status"] == "diverged"
    assert "diverged, step 10" in ratrain("report", "@last")[1]
    summary = json.loads(next(Path("runs").glob("*/s1/summary.json")).read_text(), parse_constant=pytest.fail)
    assert (summary["status"], summary["validation_loss"]) == ("diverged", None)
    code, out, err = ratrain("sample", "@last")
    assert (code, out) == (Exit.MISSING, "")
    assert "has no checkpoint" in err


@pytest.mark.parametrize("value", [float("nan"), 1e30])
@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_text_of_an_old_checkpoint_whose_numbers_are_none_is_refused_in_a_sentence(ratrain, value, temperature):
    ratrain("v0", *SHORT)
    (newest, *older) = sorted(Path("runs").glob("*/s1/checkpoints/step-*"), reverse=True)
    for path in older:
        shutil.rmtree(path)
    file = newest / "model.safetensors"
    weights = {name: torch.full_like(w, value) for name, w in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file)
    sums = [f"{hashlib.sha256((newest / line[66:]).read_bytes()).hexdigest()}  {line[66:]}\n"
            for line in (newest / "SHA256SUMS").read_text().splitlines()]  # fmt: skip
    (newest / "SHA256SUMS").write_text("".join(sums))
    code, _, err = ratrain("sample", "@last", "--temperature", temperature, "--tokens", "3")
    assert code == Exit.BAD_DATA
    assert "diverged" in err
    assert len(err.splitlines()) <= 2


def test_several_runs_are_compared_where_no_folder_of_runs_is(ratrain, tmp_path, monkeypatch):
    ratrain("v0", *SHORT)
    ratrain("v9", *SHORT)
    runs = sorted(tmp_path.glob("runs/*/s1"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = ratrain("report", *runs)
    assert (code, err) == (0, "")
    assert Path("runs/comparison.html").is_file()
    assert "runs/comparison.html" in out


def test_text_that_stdout_cannot_encode_is_escaped(ratrain):
    ratrain("v0", *SHORT)
    done = elsewhere(
        "sample", "@last", "--prompt", "caf\u00e9", "--tokens", "0", env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9\n", "")


def test_a_working_directory_that_was_deleted_is_said(tmp_path):
    code = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
    code += "os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *COMMAND, "v0", *QUICK], capture_output=True, text=True)
    assert done.returncode == Exit.MISSING
    assert done.stderr == "ratrain: the working directory was deleted; change to a folder that exists\n"


def test_json_output_is_json_alone(ratrain):
    _, out, _ = ratrain("v9", *SHORT, "--json")
    assert json.loads(out.splitlines()[-1])["event"] == "RunEnded"
    _, out, _ = ratrain("v9", *SHORT, "--json")
    assert json.loads(out)["loss"] > 0
    _, out, _ = ratrain("v9", *SHORT, "--json", "--dry-run")
    assert json.loads(out)["steps"] == 4


def test_the_seed_names_its_own_run(ratrain, tmp_path):
    for seed in (3, 4):
        ratrain("v9", *SHORT, "--seed", seed)
    assert sorted(path.name for path in tmp_path.glob("runs/*/s*")) == ["s3", "s4"]


PLUG_IN = """
import torch
from torch import nn
from ratrain.registry import Patch, register

@register("my_gate")
class MyGate(Patch):
    target: str = "blocks.*.mlp.gate"
    start: float = 1.0

    def build(self, old, spec):
        return Gate(spec.n_hidden, self.start)

class Gate(nn.Module):
    def __init__(self, n, start):
        super().__init__()
        self.start = start
        self.w = nn.Parameter(torch.empty(n))

    def reset_parameters(self, generator):
        nn.init.constant_(self.w, self.start)

    def forward(self):
        return self.w
"""


def test_a_patch_beside_a_manifest_trains_samples_and_travels_with_its_run(ratrain, tmp_path):
    home = tmp_path / "home"
    (home / "patches").mkdir(parents=True)
    (home / "patches" / "my_gate.py").write_text(PLUG_IN)
    (home / "mine.toml").write_text('id = "mine"\nextends = "gpt2.toml"\n[patch.my_gate]\nstart = 0.5\n')
    code, out, _ = ratrain(home / "mine.toml", *SHORT)
    assert code == 0
    assert "done at step 4" in out
    (home / "patches" / "my_gate.py").unlink()
    assert ratrain("sample", "@last", "--tokens", 3)[0] == 0
    code, out, _ = ratrain(run_of(tmp_path) / "resolved.toml", "--device", "cpu")
    assert (code, "this run is done" in out) == (0, True)


def test_a_run_whose_patch_was_edited_is_refused_until_fresh(ratrain, tmp_path):
    (tmp_path / "p").mkdir()
    file = tmp_path / "p" / "my_gate.py"
    file.write_text(PLUG_IN)
    command = ("v0", *SHORT, "--patches", "p", "--set", "patch.my_gate.start=0.5")
    assert ratrain(*command)[0] == 0
    file.write_text(PLUG_IN + "\n# edited\n")
    code, _, err = ratrain(*command)
    assert code == Exit.BAD_MANIFEST
    assert "patches/my_gate.py: changed since" in err
    assert ratrain(*command, "--fresh")[0] == 0


def test_a_patch_that_fails_is_told_by_its_line(ratrain, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "my_gate.py").write_text(PLUG_IN.replace("return self.w\n", "return self.v\n"))
    code, _, err = ratrain("v0", *SHORT, "--patches", "p", "--set", "patch.my_gate.start=0.5")
    assert code == Exit.BAD_MANIFEST
    line = PLUG_IN[: PLUG_IN.index("return self.w\n")].count("\n") + 1
    assert f"my_gate.py:{line}: " in err
    assert "ratrain verify" in err


def test_a_broken_patch_file_is_named(ratrain, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "oops.py").write_text("import nothing_of_this_name\n")
    code, _, err = ratrain("v9", *QUICK, "--patches", "p", "--set", "patch.oops.enabled=true")
    assert code == Exit.BAD_DATA
    assert "oops.py: cannot be imported" in err


# the installed command, from start to end


def test_a_run_interrupted_from_the_keyboard_goes_on_where_it_stopped(tmp_path):
    sizes = ["--set", "train.budget={steps=40}", "--set", "log.every=2", "--set", "eval.windows=2"]
    command = [*COMMAND, "v9", *QUICK, *sizes]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        for line in child.stdout:
            if json.loads(line).get("step", 0) >= 4:
                child.send_signal(signal.SIGINT)
                break
        rest = child.communicate()
    assert child.returncode == Exit.PREEMPTED, rest[1]
    assert "the same command goes on" in rest[1]
    state = json.loads((run_of(tmp_path) / "state.json").read_text())
    assert state["status"] == "preempted"
    assert 4 <= state["step"] < 40

    again = elsewhere(*command[len(COMMAND) :])
    assert again.returncode == 0
    assert f"resumed at step {state['step']}" in again.stdout
    assert "\x1b" not in again.stdout  # a pipe gets no colours
    events = [json.loads(line) for line in (run_of(tmp_path) / "events.jsonl").read_text().splitlines()]
    assert sum(len(event["losses"]) for event in events if event["event"] == "Window") == 40

    text = elsewhere("sample", "@last", "--tokens", "5", "--prompt", "Enter HAMLET")
    assert text.returncode == 0
    assert text.stdout.startswith("Enter HAMLET")
    assert "Traceback" not in rest[1] + again.stderr + text.stderr


def test_a_reader_that_leaves_early_is_no_fault():
    with subprocess.Popen([*COMMAND, "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        err = child.stderr.read()
    assert "Traceback" not in err
    assert "Broken pipe" not in err


def test_a_run_outlives_the_reader_of_its_output(tmp_path):
    command = [*COMMAND, "v9", *QUICK, "--set", "train.budget={steps=4}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()  # before its first line: as `| true`
        err = child.stderr.read()
    assert child.returncode == 0, err
    assert json.loads((run_of(tmp_path) / "state.json").read_text())["status"] == "done"


def test_list_folds_old_studies_and_finds_by_words(ratrain):
    _, out, _ = ratrain("list")
    assert "old studies: 82 more" in out and "ratio5" not in out
    _, out, _ = ratrain("list", "Lens", "as_run")
    assert [line.split()[0] for line in out.splitlines()[:-3]] == [
        *(f"l{n}_as_run" for n in range(8)),
        *(f"s{n}_as_run" for n in range(4)),
    ]
    code, _, err = ratrain("list", "lens", "no such thing")
    assert (code, "'lens' and 'no such thing'" in err) == (66, True)
