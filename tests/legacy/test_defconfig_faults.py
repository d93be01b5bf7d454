"""Configurations that are wrong: one clear message each, at its file and line, and no traceback."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tomli

from ratrain.errors import Exit, RatrainError
from ratrain.legacy.readers.to_manifest import convert_defconfig

GOOD = 'CONFIG_MODEL_SELECT_GPT2=y\nCONFIG_BATCH_SIZE=4\nCONFIG_LEARNING_RATE="6e-4"\nCONFIG_OPTIMIZER_SELECT_ADAMW=y\n'
ROOT = Path(__file__).resolve().parents[2]
VANILLA = ROOT / "ratrain" / "legacy" / "defconfigs" / "gpt2-vanilla-baseline"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(text):
    Path("old").write_text(text)
    return Path("old")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("CONFIG_BATCH_SIZE=abc", "old:5: BATCH_SIZE: expected a whole number, got 'abc'"),
        ("CONFIG_BATCH_SIZE=0", "old:5: BATCH_SIZE: must be at least 1, got 0"),
        ("CONFIG_GPT2_COMPILE=maybe", "old:5: GPT2_COMPILE: expected y or n, got 'maybe'"),
        ('CONFIG_LEARNING_RATE="fast"', "old:5: LEARNING_RATE: expected a number, got 'fast'"),
        ('CONFIG_LEARNING_RATE="nan"', "old:5: LEARNING_RATE: must be from 0 up, got nan"),
        ('CONFIG_LEARNING_RATE="6e-4', 'old:5: LEARNING_RATE: the closing " is missing: "6e-4'),
        ("what is this", "old:5: 'what is this' sets nothing; expected CONFIG_NAME=value, or a comment"),
        ("CONFIG_MODEL_SELECT_RESNET18=y", "old:5: MODEL_SELECT_RESNET18: this trainer has GPT-2 only"),
        ("CONFIG_RA_MLA_BITTER_SCALE=y", "old:5: RA_MLA_BITTER_SCALE: pruning of heads was never implemented"),
        ('CONFIG_GPT2_MIN_LR="1.0"', "old:5: GPT2_MIN_LR: must be at most the peak, 0.0006 (LEARNING_RATE), got 1"),
        ("CONFIG_GPT2_WARMUP_STEPS=20000", "old:5: GPT2_WARMUP_STEPS: must be below the 10000 iterations"),
        ('CONFIG_TRACKER="mlflow"', "old:5: TRACKER: 'mlflow' is not one of 'none', 'trackio', 'wandb', 'both'"),
        ("CONFIG_RA_MLA_ABLATION_MODE=y", "old:5: RA_MLA_ABLATION_MODE: no step is named"),
        (
            'CONFIG_RA_MLA_ABLATION_MODE=y\nCONFIG_RA_MLA_ABLATION_STEPS="V0,V77"',
            "old:6: RA_MLA_ABLATION_STEPS: no such step: 'V77'; expected some of 0 to 18, V0 to V19",
        ),
        ('CONFIG_GPT2_DATASET="c4"', "old:5: GPT2_DATASET: 'c4' is not one of 'shakespeare', 'finewebedu'"),
    ],
)
def test_a_wrong_line_is_one_fault_where_it_is(ratrain, line, fault):
    code, _, err = ratrain("convert", written(f"{GOOD}{line}\n"))
    assert code == Exit.BAD_MANIFEST
    assert err.startswith(fault)
    assert err.endswith("1 fault; nothing was run\n")


@pytest.mark.parametrize("reading", ["intent", "legacy"])
def test_a_model_that_is_no_gpt2_is_refused(ratrain, reading):
    code, _, err = ratrain("convert", "--reading", reading, written('CONFIG_MODEL="resnet50"\nCONFIG_BATCH_SIZE=4\n'))
    assert code == Exit.BAD_MANIFEST
    assert "this trainer has GPT-2 only" in err
    assert err.endswith("1 fault; nothing was run\n")


def test_an_unknown_symbol_is_told_and_with_strict_refused(ratrain):
    file = written(f"{GOOD}CONFIG_BATCH_SIZ=8\n")
    code, out, err = ratrain("convert", file)
    assert code == 0
    assert "micro_batch = 4" in out
    assert err == "warning: old:5: BATCH_SIZ: no such symbol; did you mean 'BATCH_SIZE'?; the line is ignored\n"
    code, _, err = ratrain("convert", file, "--strict")
    assert code == Exit.BAD_MANIFEST
    assert err.splitlines()[-1] == "ratrain: old: --strict: a line is ignored or changed (above)"


@pytest.mark.parametrize("reading", ["intent", "legacy"])
@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("GPT2_DATASET_C4=y", "no such symbol; did you mean 'GPT2_DATASET'?, and it chooses a dataset; expected e.g."),
        ("ENABLE_TRIPLE_ATTENTION=y", "no such symbol; did you mean 'ENABLE_DOUBLE_ATTENTION'?, and it chooses a mech"),
        (
            'LENS_ABLATION_STEPS="L0,L1"',
            "no such symbol; did you mean 'RA_MLA_ABLATION_STEPS'?, and it chooses an abla",
        ),
        ("OPTIMIZER_SELECT_LION=y", "no such symbol; did you mean 'OPTIMIZER_SELECT_ADAM'?, and it chooses an optimi"),
        ("PRUNING_SELECT_SNIP=y", "no such symbol; did you mean 'PRUNING_SELECT_NONE'?, and it chooses how weights"),
        ("HYPER_PARAM_AUTO=y", "it chose the batch by the GPU's memory; name it: BATCH_SIZE"),
    ],
)
def test_an_unknown_symbol_that_chooses_what_is_trained_is_refused_unless_it_is_let_through(
    ratrain, line, fault, reading
):
    file = written(f"{GOOD}CONFIG_{line}\n")
    code, out, err = ratrain("convert", file, "--reading", reading)
    assert (code, out) == (Exit.BAD_MANIFEST, "")
    assert err.startswith(f"old:5: {line.partition('=')[0]}: ")
    assert fault.partition(" did")[0] in err
    assert fault.rpartition("?, ")[2] in err
    assert "; --accept-unknown ignores the line\n" in err
    code, out, err = ratrain("convert", file, "--reading", reading, "--accept-unknown")
    assert code == 0 or reading == "legacy"
    assert "warning: old:5:" in err or code


@pytest.mark.parametrize("line", ["# CONFIG_ENABLE_X is not set", "CONFIG_ENABLE_X=n", 'CONFIG_ENABLE_X=""'])
def test_an_unknown_symbol_that_is_off_chooses_nothing(ratrain, line):
    assert ratrain("convert", written(f"{GOOD}{line}\n"))[0] == 0


def test_a_line_that_is_said_again_is_told(ratrain):
    code, out, err = ratrain("convert", written(f"{GOOD}CONFIG_BATCH_SIZE=8\n"))
    assert (code, "micro_batch = 8" in out) == (0, True)
    assert err == "warning: old:2: BATCH_SIZE: line 5 sets it again, and that line counts\n"


def test_strict_passes_a_file_whose_lines_all_count_or_say_why_not(ratrain):
    assert ratrain("convert", VANILLA, "--strict")[0] == 0


def test_the_legacy_reading_tells_what_the_old_tools_dropped_and_changed(ratrain):
    _, out, err = ratrain("convert", "--reading", "legacy", written(f"{GOOD}CONFIG_BATCH_SIZE=64  # fits\n"))
    assert "micro_batch = 512" in out
    assert "warning: old:5: BATCH_SIZE: the old tools changed '64' to '512'\n" in err


def test_comments_behind_values_are_comments(ratrain):
    _, out, _ = ratrain("convert", written(f'{GOOD}CONFIG_BATCH_SIZE=64  # fits\nCONFIG_GPT2_DROPOUT="0.2" # more\n'))
    assert "micro_batch = 64" in out
    assert "dropout = 0.2" in out


def test_other_files_are_said_to_be_none(ratrain):
    assert ratrain("convert", "missing")[0] == Exit.MISSING
    Path("note.txt").write_text("hello\n")
    code, _, err = ratrain("convert", "note.txt")
    assert code == Exit.BAD_DATA
    assert "neither a defconfig" in err
    Path("old").write_bytes(b"CONFIG_A=y\n\xff\n")
    code, _, err = ratrain("convert", "old")
    assert code == Exit.BAD_MANIFEST
    assert err.startswith("old:2: byte 0xff is not UTF-8")


def test_a_limit_of_the_environment_that_is_none(ratrain, monkeypatch):
    monkeypatch.setenv("GPT2_MAX_ITERS", "many")
    code, _, err = ratrain("convert", VANILLA)
    assert code == Exit.BAD_MANIFEST
    assert err.startswith("GPT2_MAX_ITERS of the environment: expected a whole number, got 'many'")


def test_a_baseline_on_wandb_is_refused(ratrain, monkeypatch):
    monkeypatch.setenv("BASELINE", "me/project/abc123")
    code, _, err = ratrain("convert", VANILLA)
    assert code == Exit.USAGE
    assert "this is a run of wandb" in err


def told_of(file, reading):
    """What a file that is refused is told; empty where it converts to TOML."""
    try:
        tomli.loads(convert_defconfig(file, reading=reading).text)
    except RatrainError as error:
        return f"{int(error.exit)} {error}"
    return ""


@pytest.mark.parametrize("reading", ["intent", "legacy"])
def test_mutated_files_convert_or_are_refused_with_a_place(reading):
    draw = random.Random(10)
    whole = VANILLA.read_text() + (VANILLA.parent / "gpt2" / "gpt2-adamwprune-bitter3-bitter4-test").read_text()
    for _ in range(80):
        text = list(whole)
        for _ in range(draw.randrange(1, 12)):
            at = draw.randrange(len(text))
            text[at] = draw.choice(
                ["", "\n", '"', "=", "#", "y", "n", "-", "9", "99999999999999999999", "é", "\0", " "]
            )
        told = told_of(written("".join(text)), reading)
        assert not told or (told.startswith("78 ") and ("old" in told or "--" in told))
