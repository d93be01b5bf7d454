"""Configurations of the reference by both readings: every one of ours, and the originals where they are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli

from ratrain.ablation.arms import resolved
from ratrain.ablation.plan import make_plan
from ratrain.config.read import read_source
from ratrain.legacy.readers.convert import convert_defconfig
from ratrain.legacy.readers.defconfig import is_defconfig, read_defconfig, verdicts
from ratrain.legacy.readers.kconfig import olddefconfig
from ratrain.legacy.readers.options import options
from ratrain.legacy.readers.runner import launched
from ratrain.legacy.readers.symbols import UNDEFINED, UNDEFINED_ACTS, UNDEFINED_IDLE, symbols

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "legacy" / "defconfigs"
ORIGINALS = ROOT.parent / "shared" / "defconfigs"
SHIPPED = sorted(str(file.relative_to(OURS)) for file in OURS.rglob("*") if file.is_file())
GOLDEN = json.loads((ORIGINALS / "legacy_effective.json").read_text()) if ORIGINALS.is_dir() else {}
BAD_START = "lenet5"  # what a file that chooses no model comes to by the old tools


def converted(file, tmp_path, **how):
    """The conversion, and its manifest on disk."""
    found = convert_defconfig(file, **how)
    path = tmp_path / f"{found.name}.toml"
    path.write_text(found.text)
    return found, path


def built(path, scale):
    """The manifests of a converted file, by name, each of which builds; of a study the plan says so."""
    if "base" in tomli.loads(path.read_text()):
        return {arm.name: arm.manifest for arm in make_plan(path, scale=scale).arms}
    manifest = resolved(read_source(path, scale=scale), ())
    return {manifest.id: manifest}


# the reading `legacy`


@pytest.mark.parametrize("name", GOLDEN)
def test_the_legacy_reading_is_what_the_old_tools_made(name):
    file, golden = read_defconfig(ORIGINALS / name), GOLDEN[name]
    effective = olddefconfig(file.declared, file.taken)
    assert file.declared == golden["declared"]
    assert effective.values == golden["effective"]
    assert list(effective.ignored) == golden["ignored_by_olddefconfig"]
    assert {name: list(pair) for name, pair in effective.changed.items()} == golden["changed_by_olddefconfig"]
    tests = list(launched(effective.values, file.name))
    assert [one.id for one in tests] == [each["test_id"] for each in golden["tests"]]
    assert [list(one.args) for one in tests] == [each["args"] for each in golden["tests"]]
    assert {f"gpt2/{one.trainer}" for one in tests} == {golden["trainer"]}


def test_old_defaults_come_back_where_nothing_is_declared():
    values = olddefconfig({}, {}).values
    assert values["MODEL"] == BAD_START
    assert values["OPTIMIZER_MODE_MULTIPLE"] == "y"
    assert values["BATCH_SIZE"] == "512"


def test_numbers_out_of_range_are_brought_into_it():
    said = {"CHECKPOINT_INTERVAL": "1000"}
    assert olddefconfig(said, said).changed["CHECKPOINT_INTERVAL"] == ("1000", "100")


# symbols


def test_every_symbol_acts_or_says_why_not():
    assert len(symbols()) == 289
    assert sum(len(symbol.definitions) for symbol in symbols().values()) == 294
    for name, symbol in symbols().items():
        said = [bool(verdict) for verdict in (symbol.acts, symbol.idle, symbol.refused)]
        assert sum(said) == (0 if symbol.hidden and name != "TEST_MATRIX_MODE" else 1), name


def test_the_names_that_nothing_defined_are_known():
    undefined = {*UNDEFINED, *UNDEFINED_ACTS, *UNDEFINED_IDLE}
    assert len(undefined) == 25
    assert not undefined & {*symbols()}


def test_the_options_of_both_old_trainers_are_all_there():
    train = [option for option in options().values() if "train" in option.defaults]
    ra_mla = [option for option in options().values() if "ra_mla" in option.defaults]
    assert len(train) == 43
    assert len(ra_mla) + sum(option.off for option in ra_mla) == 90


# every file


@pytest.mark.parametrize("reading", ["intent", "legacy"])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_converts_and_builds_at_the_tiny_scale(name, reading, tmp_path):
    found, path = converted(OURS / name, tmp_path, reading=reading)
    manifests = built(path, "tiny")
    assert len(manifests) == len(found.runs)
    assert all(manifest.scale == "tiny" and manifest.model.n_embd == 32 for manifest in manifests.values())
    assert not (reading == "intent" and found.ignored)


@pytest.mark.parametrize("reading", ["intent", "legacy"])
@pytest.mark.parametrize("name", GOLDEN)
def test_every_original_converts_and_builds_at_the_tiny_scale(name, reading, tmp_path):
    found, path = converted(ORIGINALS / name, tmp_path, reading=reading)
    assert len(built(path, "tiny")) == len(found.runs)


@pytest.mark.parametrize("name", GOLDEN)
def test_our_files_say_what_the_originals_say(name):
    file = Path(name)
    ours = OURS / {"old": "old", "defconfigs": ""}.get(file.parent.name, "") / file.name
    ours = OURS / "gpt2" / file.name if name.startswith("gpt2/") else ours
    texts = [convert_defconfig(path).text for path in (ORIGINALS / name, ours)]
    mine, theirs = (tomli.loads(text) for text in texts)
    assert mine == theirs


def test_the_planned_targets_are_what_the_plan_says(tmp_path):
    _, path = converted(OURS / "gpt2-vanilla-baseline", tmp_path)
    manifest = built(path, None)["gpt2-vanilla-baseline"]
    assert (manifest.train.batch, manifest.train.micro_batch, manifest.train.budget.steps) == (64, 16, 50_000)
    assert (type(manifest.optim).kind, manifest.optim.theta, manifest.optim.interval) == ("adamwspam", 50, 1000)
    assert manifest.schedule.warmup.fraction == 2000 / 50_000
    assert manifest.log.project == "gpt2-vanilla-finewebedu"
    _, path = converted(OURS / "gpt2-unified-ra-v1", tmp_path)
    manifest = built(path, None)["gpt2-unified-ra-v1"]
    assert (manifest.patch["unified_ra"].rank, manifest.train.budget.seconds) == (4, 7200)
    _, path = converted(OURS / "gpt2-unified-ra-ablation", tmp_path)
    assert list(built(path, None)) == ["v0", "v1", "v3", "v7", "v9"]
    _, path = converted(OURS / "old" / "gpt2-ratio-ablation", tmp_path)
    assert list(built(path, "tiny")) == [f"ratio{number}" for number in range(19)]


def test_steps_of_the_reciprocal_study_are_its_own_by_intent_and_ratio_steps_by_the_old_tools():
    file = OURS / "old" / "gpt2-ra-mla-reciprocal-ablation-all"
    assert [run.base for run in convert_defconfig(file).runs] == [f"recip{number}" for number in range(6)]
    legacy = convert_defconfig(file, reading="legacy")
    assert [run.base for run in legacy.runs] == [f"ratio{number}" for number in range(6)]


def test_steps_that_choose_their_optimizer_keep_it(tmp_path):
    file = tmp_path / "sinks"
    file.write_text((OURS / "gpt2-unified-ra-ablation").read_text().replace("V0,V1,V3,V7,V9", "S0,S1,S2"))
    _, path = converted(file, tmp_path)
    kinds = {name: type(manifest.optim).kind for name, manifest in built(path, "tiny").items()}
    assert list(kinds.values()) == ["adamwspam", "sinkgd", "sinkgd"]


@pytest.mark.parametrize("name", ["gpt2-unified-ra-ablation", "gpt2/gpt2-finewebedu-h100x1", "old/gpt2-ratio-ablation"])
def test_what_the_reference_computed_can_be_asked_for(name, tmp_path):
    found, path = converted(OURS / name, tmp_path, reading="legacy", profile="as_run")
    assert len(built(path, "tiny")) == len(found.runs)


# the environment


def test_limits_of_the_environment_stand_in_for_those_of_the_file(tmp_path):
    file = OURS / "gpt2-unified-ra-v1"
    for name in ("GPT2_MAX_ITERS", "MAX_ITERS"):
        _, path = converted(file, tmp_path, environment={name: "300"})
        manifest = built(path, None)["gpt2-unified-ra-v1"]
        assert (manifest.train.budget.steps, manifest.schedule.warmup.fraction) == (300, 0.02)
    _, path = converted(file, tmp_path, environment={"GPT2_MAX_TIME": "60", "GPT2_MAX_ITERS": ""})
    assert built(path, None)["gpt2-unified-ra-v1"].train.budget.seconds == 60


def test_trackers_of_the_environment(tmp_path):
    file = OURS / "gpt2-vanilla-baseline"
    wanted = {"both": ("wandb", "trackio"), "none": (), "trackio,wandb": ("trackio", "wandb")}
    for text, names in wanted.items():
        _, path = converted(file, tmp_path, environment={"TRACKER": text, "TRACKER_PROJECT": "mine"})
        log = built(path, None)["gpt2-vanilla-baseline"].log
        assert (log.trackers, log.project) == (names, "mine" if names else "")


def test_a_baseline_takes_the_place_of_step_0(tmp_path):
    found, path = converted(OURS / "gpt2-unified-ra-ablation", tmp_path, environment={"BASELINE": "tied_ra"})
    assert list(built(path, "tiny")) == ["tied_ra", "v1", "v3", "v7", "v9"]
    assert found.is_study


# detection


def test_a_defconfig_is_known_by_what_it_holds(tmp_path):
    for text, is_one in (("CONFIG_A=y\n", True), ("# CONFIG_A is not set\n", True), ('id = "x"\n', False), ("", False)):
        (tmp_path / "file").write_text(text)
        assert is_defconfig(tmp_path / "file") == is_one
    assert not is_defconfig(tmp_path)
    assert not is_defconfig(tmp_path / "missing")


def test_idle_lines_say_why():
    (_, *_), refused = verdicts(read_defconfig(OURS / "gpt2-vanilla-baseline"))
    assert not refused


def test_what_is_not_declared_and_had_to_be_assumed_is_said(tmp_path):
    (tmp_path / "bare").write_text(
        'CONFIG_MODEL="gpt2"\nCONFIG_PRUNING_METHOD="magnitude"\n# CONFIG_WEIGHT_DECAY is not set\n'
    )
    lines = convert_defconfig(tmp_path / "bare").text.splitlines()
    said = {line.split(" = ")[0]: line for line in lines if " = " in line}
    assert said["target"].endswith("# assumed: no sparsity is declared; the default of Kconfig")
    assert said["lr"].endswith("# Kconfig's default of LEARNING_RATE")
    assert said["weight_decay"].endswith("# the default of train.py")
