"""Manifests become frozen values; what is wrong with one is told in plain words, all of it, with file and line."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ratrain.config.names_elsewhere import FOREIGN
from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve, steps_total, tokens_per_step
from ratrain.config.schema import Manifest
from ratrain.config.validation import key_homes
from ratrain.errors import Exit, ManifestError


@pytest.fixture
def faults(resolved):
    """What is wrong with v9 under some `--set`s: message by key."""

    def faults(*overrides: str) -> dict[str, str]:
        with pytest.raises(ManifestError) as error:
            resolved("v9", *overrides)
        assert error.value.exit == Exit.BAD_MANIFEST == 78
        return {fault.key: fault.message for fault in error.value.faults}

    return faults


@pytest.mark.parametrize("scale", [None, "tiny", "study", "gpt2_124m", "gpt2_350m", "gpt2_774m", "gpt2_1558m"])
@pytest.mark.parametrize("name", ["gpt2", "v0", "v1", "v7", "v9"])
def test_the_series_resolves_at_every_scale(resolved, name, scale):
    manifest = resolved(name, scale=scale)
    assert manifest.id == name
    assert manifest.scale == (scale or "laptop")
    assert {patch.rank for patch in manifest.patch.values()} == {"v1": {4}, "v7": {8}, "v9": {2}}.get(name, set())


def test_released_sizes_have_the_published_parameter_counts(resolved):
    counts = {}
    for scale in ("gpt2_124m", "gpt2_350m", "gpt2_774m", "gpt2_1558m"):
        spec = resolved("gpt2", scale=scale).model
        block = 12 * spec.n_embd**2 + 13 * spec.n_embd
        counts[scale] = (spec.vocab_size + spec.block_size + 2) * spec.n_embd + spec.n_layer * block
    assert counts == {
        "gpt2_124m": 124_439_808, "gpt2_350m": 354_823_168, "gpt2_774m": 774_030_080, "gpt2_1558m": 1_557_611_200,
    }  # fmt: skip


def test_all_faults_come_at_once_the_manifest_first_and_by_line(write, kinds):
    write("base.toml", 'extends = "gpt2.toml"\n[model]\nn_layer = "12"')
    head = 'id = "x"\nextends = "base.toml"\n[patch.kv_prune]\nrecencey = 3\n'
    text = head + '[patch.unified_ra]\ngates = "heads"\nrnak = 3\n'
    with pytest.raises(ManifestError) as error:
        resolve(read_source(write("x.toml", text)), **kinds)
    assert str(error.value).split("\n") == [
        "x.toml:4: patch.kv_prune.recencey: unknown key; the options are keep, label, layers, activation",
        "x.toml:6: patch.unified_ra.gates: 'heads' is not one of 'head', 'layer'",
        "x.toml:7: patch.unified_ra.rnak: unknown key; did you mean 'rank'?",
        'base.toml:3: model.n_layer: expected an integer, got the string "12"',
        "4 faults; nothing was run",
    ]


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("model.n_head=0", "model.n_head", "must be at least 1, got 0"),
        ("schedule.lr=0", "schedule.lr", "must be above 0, got 0"),
        ("schedule.final=7", "schedule.final", "must be at most 1, got 7"),
        ("model.dropout=1", "model.dropout", "must be below 1, got 1"),
        ("model.dropout=nan", "model.dropout", "must be finite, got nan"),
        ("model.bias=1", "model.bias", "expected true or false, got 1"),
        ("model.n_layer=true", "model.n_layer", "expected an integer, got true"),
        ("train.batch=1e3", "train.batch", "expected an integer, got 1000.0; write 1000"),
        ("train.batch=7", "train", "micro_batch = 8 does not divide batch = 7"),
        ("model.n_embd=100", "model", "n_embd = 100 is not a multiple of n_head = 6"),
        ("data.source=3", "data.source", "expected a string, got 3"),
        ("seed=3", "seed", "expected a table, got 3"),
        ("patch=3", "patch", "expected a table, got 3"),
        ("patch.unified_ra=3", "patch.unified_ra", "expected a table, got 3"),
        ("optim=3", "optim", "expected a table, got 3"),
        ("optim.betas=3", "optim.betas", "expected a list, got 3"),
        ("optim.betas=[1]", "optim.betas", "expected a list of another length, got a list of 1"),
        ('optim.betas=[1, "a"]', "optim.betas", 'expected a number, got the string "a"'),
        ("patch.kv_prune.keep=all", "patch.kv_prune.keep", 'expected a number or an integer, got the string "all"'),
        ("train.precision=fp16", "train.precision", "'fp16' is not one of 'fp32', 'bf16', 'amp_bf16', 'fp8'"),
        ("train.budget={steps = 1, tokens = 2}", "train.budget", "expected exactly one of tokens, steps, seconds"),
        ("train.budget={}", "train.budget", "expected exactly one of tokens, steps, seconds"),
        ("train.budget=1000", "train.budget", "expected a table, got 1000"),
        ("optim.kind=adam", "optim.kind", "did you mean 'adamw'?"),
        ("patch.unified.rank=3", "patch.unified", "did you mean 'unified_ra'?"),
        ("patch.second.kind=kv_prun", "patch.second.kind", "did you mean 'kv_prune'?"),
        ("patch.second.kind=3", "patch.second.kind", "expected a string, got 3"),
        ("patch.second.rank=3", "patch.second", "of patches/ beside the manifest, and of --patches DIR"),
        ("train.microbatch=3", "train.microbatch", "unknown key; did you mean 'micro_batch'?"),
        ("model.lr=3", "model.lr", "unknown key; it belongs in [schedule]"),
        ("model.every=3", "model.every", "unknown key; it belongs in [eval] or [checkpoint] or [log]"),
        ("n_layer=3", "n_layer", "unknown key; it belongs in [model]"),
        ("train.steps=3", "train.steps", "unknown key; it belongs in [train.budget]"),
        ("training.x=3", "training", "unknown key; did you mean 'train'?"),
        ("learning_rate=3", "learning_rate", "unknown key; here it is 'schedule.lr'"),
        ("optim.learning_rate=3", "optim.learning_rate", "unknown key; here it is 'schedule.lr'"),
        ("train.max_iters=3", "train.max_iters", "unknown key; here it is 'train.budget.steps'"),
        ("model.n_layers=3", "model.n_layers", "unknown key; here it is 'model.n_layer'"),
        ("weight_decay=3", "weight_decay", "unknown key; it belongs in [optim]"),
        ("out_dir=x", "out_dir", "unknown key; here it is '--out'"),
        ("dtype=x", "dtype", "unknown key; here it is 'train.precision'"),
        ("zzzz=3", "zzzz", "unknown key"),
        (
            "model.vocab_size=50257",
            "model.vocab_size",
            "must be 2048, the size of tokenizer 'shakespeare2k', got 50257",
        ),
        ("train.budget.tokens=1023", "train.budget.tokens", "must be at least one step of 8 x 128 = 1024, got 1023"),
        ('id="V Z"', "id", 'got "V Z"'),
    ],
)
def test_a_fault_says_what_would_be_right(faults, override, key, message):
    found = faults(override)
    assert list(found) == [key]
    assert message in found[key]
    assert "Value error" not in found[key]


def test_what_is_missing_is_named_with_what_is_expected(write, kinds):
    with pytest.raises(ManifestError) as error:
        resolve(read_source(write("a.toml", "[model]\nn_layer = 1\n[train]\nbatch = 1")), **kinds)
    told = {fault.key: f"{fault.where}: {fault.message}" for fault in error.value.faults}
    assert told["model.n_head"] == "a.toml:1: missing; expected an integer"
    assert told["train.budget"] == "a.toml:3: missing; expected a table with tokens, steps, seconds"
    assert told["id"] == "a.toml: missing; expected a string"
    assert "schedule" in told


@pytest.mark.parametrize(
    ("budget", "warmup", "fits"),
    [
        ("{steps = 10}", "{steps = 9}", True), ("{steps = 10}", "{steps = 10}", False),
        ("{tokens = 10241}", "{steps = 10}", True), ("{tokens = 10240}", "{steps = 10}", False),
        ("{seconds = 60}", "{fraction = 0.1}", True), ("{seconds = 60}", "{steps = 1}", False),
        ("{steps = 1}", "{steps = 0}", True),
    ],
)  # fmt: skip
def test_warm_up_must_end_before_the_budget_does(resolved, faults, budget, warmup, fits):
    overrides = (f"train.budget={budget}", f"schedule.warmup={warmup}")
    if fits:
        assert resolved("v9", *overrides)
    else:
        assert list(faults(*overrides)) == ["schedule.warmup.steps"]


def test_steps_cover_the_token_budget_exactly_once(resolved):
    for tokens in (1024, 1025, 2047, 2048, 2049, 3_000_000):
        manifest = resolved("v9", f"train.budget.tokens={tokens}")
        steps, per_step = steps_total(manifest), tokens_per_step(manifest)
        assert steps is not None
        assert per_step == 8 * 128
        assert (steps - 1) * per_step < tokens <= steps * per_step
    assert steps_total(resolved("v9", "train.budget.steps=7")) == 7
    assert steps_total(resolved("v9", "train.budget.seconds=7")) is None


def test_a_list_stands_for_a_tuple_and_an_integer_for_a_number(resolved):
    manifest = resolved("v9", "optim.betas=[1, 0.5]", "model.mlp_ratio=6")
    assert manifest.optim.betas == (1.0, 0.5)
    assert manifest.model.n_hidden == 6 * 192


def test_a_second_patch_of_a_kind_has_a_name_of_its_own(resolved):
    manifest = resolved("v9", "patch.late.kind=unified_ra", "patch.late.rank=1")
    assert {name: patch.rank for name, patch in manifest.patch.items()} == {"unified_ra": 2, "late": 1}
    assert manifest.patch["late"].kind == "unified_ra"


def test_a_kind_is_loaded_only_if_it_is_named(kinds):
    class Lazy(dict):
        def __getitem__(self, kind):
            assert kind in ("unified_ra", "adamw")
            return super().__getitem__(kind)

    source = read_source(find_manifest("v9"))
    assert resolve(source, patches=Lazy(kinds["patches"]), optimizers=Lazy(kinds["optimizers"]))


def test_a_manifest_is_frozen(resolved):
    with pytest.raises(ValidationError):
        resolved("v9").model.n_layer = 3


def test_every_foreign_name_leads_to_a_key_that_exists(kinds):
    known = {f"{home}.{name}".lstrip(".") for name, homes in key_homes(Manifest).items() for home in homes}
    known |= {f"optim.{name}" for name in (*kinds["optimizers"]["adamw"].model_fields, "kind")}
    lost = {name: here for name, here in FOREIGN.items() if here not in {*known, "extends"} and here[:2] != "--"}
    assert lost == {}


@pytest.mark.parametrize("warmup", ["schedule.warmup={ fraction = 0.3 }", "schedule.warmup={ steps = 6 }"])
def test_a_decay_that_begins_within_the_warm_up_is_a_fault(faults, resolved, warmup):
    wsd = ("schedule.kind=wsd", "train.budget={ steps = 20 }", warmup)
    assert faults(*wsd, "schedule.decay=0.8") == {
        "schedule.decay": "must leave room for the warm-up: at most 0.7, got 0.8"
    }
    assert resolved("v9", *wsd, "schedule.decay=0.7").schedule.decay == 0.7
