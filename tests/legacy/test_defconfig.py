"""Configurations of the reference by both readings: every one of ours, and the originals where they are at hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomli

from ratrain.ablation.arms import resolved
from ratrain.ablation.plan import make_plan
from ratrain.config.read import read_source
from ratrain.legacy.readers.defconfig import is_defconfig, read_defconfig, verdicts
from ratrain.legacy.readers.kconfig import olddefconfig
from ratrain.legacy.readers.options import options
from ratrain.legacy.readers.runner import launched
from ratrain.legacy.readers.symbols import UNDEFINED, UNDEFINED_ACTS, UNDEFINED_FLAGS, UNDEFINED_IDLE, symbols
from ratrain.legacy.readers.to_manifest import comes_to, convert_defconfig

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "ratrain" / "legacy" / "defconfigs"
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
    assert len(undefined) == 30
    assert {*UNDEFINED_ACTS} >= UNDEFINED_FLAGS
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


# iterations, data, mechanisms and steps


@pytest.mark.parametrize(
    ("variant", "steps"),
    [*((f"bitter{n}", 13_000) for n in (3, 4, 5, 6, 8, 9)), ("bitter2", 12_100), ("bitter7", 10_000)],
)
def test_variants_whose_runs_the_reference_made_longer_train_as_long(variant, steps, tmp_path):
    text = (OURS / "gpt2" / "gpt2-adamwprune-bitter3-test").read_text()
    (tmp_path / "old").write_text(text.replace("bitter3", variant).replace("BITTER3", variant.upper()))
    _, path = converted(tmp_path / "old", tmp_path)
    manifest = built(path, None)["old"]
    assert manifest.prune
    assert (manifest.prune.score, manifest.train.budget.steps) == (variant, steps)
    _, path = converted(tmp_path / "old", tmp_path, profile="as_run")
    as_run = built(path, None)["old"]
    assert as_run.train.budget.steps == steps
    assert as_run.prune
    # the ramp took the iterations as given
    assert as_run.prune.end.fraction == (0.9999 if steps == 10_000 else 10_000 / steps)


def test_every_variant_of_the_shipped_file_trains_as_long_as_it_did(tmp_path):
    _, path = converted(OURS / "gpt2" / "gpt2-adamwprune-bitter5-9-test", tmp_path)
    assert [manifest.train.budget.steps for manifest in built(path, None).values()] == [
        13_000, 13_000, 10_000, 13_000, 13_000,
    ]  # fmt: skip


def test_tinystories_double_attention_and_steps_of_vanilla_are_understood(tmp_path):
    base = 'CONFIG_MODEL_SELECT_GPT2=y\nCONFIG_OPTIMIZER_SELECT_ADAMW=y\nCONFIG_LEARNING_RATE="6e-4"\n'
    (tmp_path / "old").write_text(f"{base}CONFIG_GPT2_DATASET_TINYSTORIES=y\nCONFIG_ENABLE_DOUBLE_ATTENTION=y\n")
    found, path = converted(tmp_path / "old", tmp_path)
    manifest = built(path, None)["old"]
    assert (manifest.data.source, list(manifest.patch)) == ("data/tinystories", ["double_attention"])
    assert not found.ignored
    (tmp_path / "old").write_text(f'{base}CONFIG_GPT2_VANILLA_ABLATION_STEPS="V0,V1,V2"\n')
    found, path = converted(tmp_path / "old", tmp_path)
    assert [run.base for run in found.runs] == list(built(path, "tiny")) == ["v0", "v1", "v2"]


# lines without effect

_SETS = re.compile(r"\s*(?:CONFIG_)?(?P<name>[A-Z]\w+)=(?P<value>[^#]*)|# CONFIG_(?P<unset>\w+) is not set")


def changed(text):
    """(number, symbol, the line with other values) of each line that sets a symbol."""
    for number, line in enumerate(text.split("\n"), start=1):
        if match := _SETS.match(line):
            name, value = match["name"] or match["unset"], (match["value"] or "n").strip()
            yield number, name, [f"CONFIG_{name}={other}" for other in other_values(value)]


def other_values(value):
    if value in ("y", "n"):
        return ["n" if value == "y" else "y"]
    quote, bare = value[:1] * value.startswith('"'), value.strip('"')
    try:
        number = float(bare)
    except ValueError:
        return ['"shakespeare"', '"V0"', '"7"']
    whole = bare.isdecimal()
    made = [str(int(number * by)) if whole else f"{number * by:.9g}" for by in (0.25, 0.75, 3)]
    return [f"{quote}{each if float(each) else 5}{quote}" for each in made]


@pytest.mark.parametrize("reading", ["intent", "legacy"])
@pytest.mark.parametrize("name", SHIPPED)
def test_each_line_of_a_shipped_file_changes_the_outcome_or_is_mentioned(name, reading, tmp_path):
    lines, text = (OURS / name).read_text().split("\n"), (OURS / name).read_text()
    found = convert_defconfig(OURS / name, reading=reading)
    whole = comes_to(read_defconfig(OURS / name), reading)
    silent, file = [], tmp_path / Path(name).name
    for number, symbol, others in changed(text):
        for other in others:
            file.write_text("\n".join([*lines[: number - 1], other, *lines[number:]]))
            if comes_to(read_defconfig(file), reading) != whole:
                break
        else:
            silent += [] if f"line {number}, {symbol}: " in found.text else [f"{number}: {symbol}"]
    assert not silent


def test_lines_without_effect_are_told_with_their_reason():
    text = convert_defconfig(OURS / "gpt2" / "gpt2-adamwprune-bitter3-bitter4-test").text
    assert re.search("line \\d+, ADAMWPRUNE_TARGET_SPARSITY: no run here is pruned by AdamWPrune, or", text)
    text = convert_defconfig(OURS / "gpt2" / "adamwspam-movement-vs-adamwprune-50").text
    assert re.search("line \\d+, ADAMWPRUNE_AMSGRAD: only the base adamw has this choice", text)
    text = convert_defconfig(OURS / "gpt2-unified-ra-ablation").text
    for name in ("RA_ALPHA", "RA_WINDOW", "PER_HEAD_Q_LATENT"):
        assert re.search(f"line \\d+, RA_MLA_{name}: the ablation's steps determine the model", text)


def test_a_checkpoint_interval_in_epochs_is_told_and_one_in_steps_is_followed(tmp_path):
    text = (OURS / "gpt2-vanilla-baseline").read_text() + "CONFIG_SAVE_CHECKPOINT=y\nCONFIG_CHECKPOINT_INTERVAL="
    (tmp_path / "epochs").write_text(f"{text}1\n")
    (tmp_path / "steps").write_text(f"{text}500\n")
    epochs, steps = (convert_defconfig(tmp_path / name).text for name in ("epochs", "steps"))
    assert "CHECKPOINT_INTERVAL: below 100 it counts epochs" in epochs
    assert "[checkpoint]\nevery = 500" in steps


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
