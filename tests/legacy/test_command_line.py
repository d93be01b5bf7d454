"""Old ways to begin a run: defconfigs where a manifest may stand, make's targets, the trainers' own command lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli
import torch

from ratrain.ablation.arms import resolved
from ratrain.config.read import read_source
from ratrain.errors import Exit, RatrainError
from ratrain.legacy.readers.command_line import read_command_line

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "ratrain" / "legacy" / "defconfigs"
QUICK = ["--scale", "tiny", "--set", "compile.scope=off", "--device", "cpu"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    for name in ("GPT2_MAX_ITERS", "MAX_ITERS", "GPT2_MAX_TIME", "TRACKER", "BASELINE", "DRY_RUN"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


def manifest_of(*words, **environment):
    """The manifest of an old command line for one run."""
    found = read_command_line(words, environment).found
    assert not found.is_study
    Path("line.toml").write_text(found.text)
    return resolved(read_source(Path("line.toml")), ())


# ratrain FILE


def test_a_defconfig_trains_where_a_manifest_would(ratrain):
    code, out, err = ratrain(OURS / "gpt2-unified-ra-v1", *QUICK, "--set", "train.budget.steps=4", "--json")
    assert code == 0
    assert f"{OURS / 'gpt2-unified-ra-v1'}: one run, as runs/legacy/gpt2-unified-ra-v1.toml" in err
    assert '"status": "done"' in out.replace('"status":"done"', '"status": "done"')
    assert len([*Path("runs").glob("gpt2-unified-ra-v1-tiny-*/s1/summary.json")]) == 1


def test_a_study_of_a_defconfig_plans_its_runs(ratrain):
    file = OURS / "gpt2" / "gpt2-finewebedu-h100x1"
    code, out, err = ratrain(file, *QUICK, "--dry-run")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:4]] == [
        "v0", "adamwspam_movement_50", "adamwprune_bitter0_state_50"
    ]  # fmt: skip
    assert "a study of 3 runs" in err


def test_dry_runs_may_be_asked_for_by_the_environment(ratrain, monkeypatch):
    monkeypatch.setenv("DRY_RUN", "1")
    code, out, _ = ratrain(OURS / "gpt2-vanilla-baseline", *QUICK)
    assert (code, "nothing was written" in out) == (0, True)


def test_check_builds_every_run_and_trains_two_steps_of_it(ratrain):
    code, out, _ = ratrain("check", OURS / "gpt2-kv-pruning-ablation")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["v0", "v16", "v17", "v18", "all"]


def test_convert_writes_a_manifest_and_says_what_trains_it(ratrain):
    code, out, _ = ratrain("convert", OURS / "gpt2-unified-ra-ablation", "-o", "new.toml")
    assert (code, out) == (0, "new.toml: a study of 5 runs; ratrain --ablate new.toml trains it\n")
    assert tomli.loads(Path("new.toml").read_text())["arms"] == ["v1", "v3", "v7", "v9"]


def test_the_path_of_a_clone_names_a_shipped_defconfig_where_its_link_is_text(ratrain):
    Path("legacy").write_text("ratrain/legacy")
    name = "legacy/defconfigs/gpt2-vanilla-baseline"
    code, out, err = ratrain(name, *QUICK, "--dry-run")
    assert (code, "nothing was written" in out) == (0, True)
    assert f"{name}: one run, as runs/legacy/gpt2-vanilla-baseline.toml" in err
    code, out, _ = ratrain("convert", name)
    assert (code, f"converted from {name}:" in out) == (0, True)
    code, _, err = ratrain("convert", "legacy/defconfigs/none")
    assert (code, "legacy/defconfigs/none: no such file" in err) == (Exit.MISSING, True)


# make


@pytest.fixture
def make():
    """Runs a target beside the Makefile's files, in this folder; never the installation."""
    for name in ("Makefile", "ratrain"):
        Path(name).symlink_to(ROOT / name)
    for name in ("pyproject.toml", "constraints.txt"):
        Path(name).write_text("")
    Path(".venv").mkdir()
    Path(".venv/.ready").write_text("")

    # as from a shell: `make test` hands its own flags and level on
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}

    def make(*words):
        return subprocess.run(["make", *words], capture_output=True, text=True, env=clean)

    return make


def test_make_remembers_what_defconfig_chose(make):
    assert "unified_ra_v9.toml" in make("-n").stdout
    assert make("defconfig-gpt2-vanilla-baseline", "TRACKER=none").returncode == 0
    assert Path(".config").read_text().split() == ["ratrain/legacy/defconfigs/gpt2-vanilla-baseline", "TRACKER=none"]
    assert "env TRACKER=none .venv/bin/ratrain ratrain/legacy/defconfigs/gpt2-vanilla-baseline" in make("-n").stdout
    assert "ratrain check ratrain/legacy/defconfigs/gpt2-vanilla-baseline" in make("-n", "check").stdout
    make("defconfig-none")
    assert "unified_ra_v9.toml" in make("-n").stdout


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["defconfig-gpt2-unified-ra-v1"], "gpt2-unified-ra-v1"),
        (["defconfig-gpt2-unified-ra-ablation"], "gpt2-unified-ra-ablation"),
        (["defconfig-old-gpt2-ratio-ablation"], "old/gpt2-ratio-ablation"),
        (["defconfig-gpt2-ratio-ablation"], "old/gpt2-ratio-ablation"),
        (["defconfig-gpt2-wandb-example"], "gpt2/gpt2-wandb-example"),
        (["defconfig-gpt2-finewebedu-w7900-spam-vs-bitter7"], "gpt2-finewebedu-w7900-spam-vs-bitter7"),
        (["defconfig", "DEFCONFIG=old/gpt2-ra-mla-full"], "old/gpt2-ra-mla-full"),
        (["defconfig", "DEFCONFIG=legacy/defconfigs/gpt2-unified-ra-v1"], "gpt2-unified-ra-v1"),
    ],
)
def test_names_lead_to_files(make, words, file):
    assert make(*words).returncode == 0
    assert Path(".config").read_text().strip() == f"ratrain/legacy/defconfigs/{file}"


def test_a_name_that_is_none_says_so(make):
    done = make("defconfig-gpt3")
    assert done.returncode != 0
    assert done.stdout == "gpt3: no such configuration; make list-defconfigs\n"
    assert len(make("list-defconfigs").stdout.splitlines()) == 36


# the trainers' command lines


def test_defaults_are_those_of_the_trainer_whose_options_are_used():
    ours = manifest_of()
    assert (ours.train.batch, ours.train.micro_batch, ours.train.budget.steps) == (256, 64, 10_000)
    assert (ours.data.source, type(ours.optim).kind, ours.compile.scope) == ("shakespeare", "adamw", "off")
    steps = manifest_of("--ra-mla-ablation-step", "V1", "--compile")
    assert (steps.train.batch, steps.train.micro_batch, steps.compile.scope) == (48, 12, "auto")
    assert [*steps.patch] == ["unified_ra"]


def test_the_planned_dispatcher():
    assert manifest_of("--architecture", "vanilla", "--dataset", "finewebedu").data.source == "data/finewebedu"
    assert manifest_of("--architecture", "unified-ra", "--ra-step", "V7").patch["unified_ra"].rank == 8
    found = read_command_line(["--ablation-mode", "--ablation-steps", "V0,V1,V3"], {}).found
    assert [run.base for run in found.runs] == ["v0", "v1", "v3"]
    assert found.is_study


def test_mechanisms_without_a_step():
    latent = manifest_of("--latent-dim", "128", "--ra-alpha", "0.0", "--mlp-attn-gate", "--mlp-gate-dim", "32").patch
    options = latent["ra_mla"]
    assert (options.latent, options.alpha, options.gate.width, options.cross) == (128 / 768, 0, 32, None)
    lens = manifest_of("--use-lens", "--lens-kv-compression", "--lens-ctx-conductor").patch["lens"]
    assert (lens.compress, lens.context.conductor) == (128 / 768, True)
    walk = manifest_of("--use-rwr", "--rwr-reversible", "--rwr-reciprocal-beta", "0.7").patch["rwr"]
    assert (walk.reversible, walk.reciprocal) == (True, 0.7)


def test_pruning_and_its_optimizer():
    words = ["--optimizer", "adamwprune", "--pruning-method", "state", "--target-sparsity", "0.5"]
    words += ["--adamwprune-base-optimizer-name", "adamwspam", "--adamwprune-variant", "bitter7", "--spam-enable-clip"]
    manifest = manifest_of(*words)
    assert manifest.prune
    assert (manifest.prune.kind, manifest.prune.score, manifest.prune.target) == ("state", "bitter7", 0.5)
    assert (type(manifest.optim).kind, manifest.optim.theta) == ("adamwspam", 50)


def test_the_environment_counts_on_command_lines_too():
    assert manifest_of(GPT2_MAX_ITERS="300").train.budget.steps == 300


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--batch-size", "x"], "--batch-size: expected a whole number, got 'x'"),
        (["--batch-size", "0"], "--batch-size: must be at least 1"),
        (["--optimizer", "lion"], "--optimizer: 'lion' is not one of 'sgd', 'adam'"),
        (["--ra-step", "V1", "--ra-mla-ablation-step", "V2"], "--ra-step: --ra-mla-ablation-step names steps as well"),
        (["--ra-mla-ablation-step", "V99"], "--ra-mla-ablation-step: no such step: 'V99'"),
        (["--architecture", "unified-ra"], "--architecture: unified-ra needs its step: --ra-step V1"),
        (["--architecture", "vanilla", "--ra-step", "V1"], "--ra-step: --architecture vanilla has no steps"),
        (["--ablation-mode"], "--ablation-mode: expected the steps"),
        (["--ra-mla-ablation-step", "5", "--use-lens"], "--use-lens: step 5 determines the model; leave this out"),
        (["--latent-dim", "4096"], "--latent-dim: must be from 1 to 768"),
    ],
)
def test_wrong_command_lines_are_one_fault(words, fault):
    with pytest.raises(RatrainError) as caught:
        read_command_line(words, {})
    assert str(caught.value).startswith(f"command line: {fault}")
    assert str(caught.value).endswith("1 fault; nothing was run")


def test_the_old_command_runs_the_new_one_after_naming_it():
    words = ["--ra-step", "V1", "--block-size", "32", "--batch-size", "1", "--max-iters", "2", "--warmup-steps", "1"]
    command = [sys.executable, "-m", "ratrain.legacy.train", *words, "--tracker", "mlflow"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == Exit.BAD_MANIFEST
    assert done.stderr.startswith("command line: --tracker: 'mlflow' is not one of")
    command[-1] = "none"
    command += ["--output-dir", "old", "--device", "nonsense"]  # which the new command refuses: it was reached
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    file = next(Path("old/legacy").glob("line-v1-*.toml"))
    assert f"  ratrain {file} --device nonsense --out old\n" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ratrain: ")
    assert "Traceback" not in done.stderr
