"""What transformers loads computes what the run computes, in text and in logits; all else is refused by name."""

from __future__ import annotations

import json

import pytest
import torch

from ratrain import read_manifest
from ratrain.config.find import shipped
from ratrain.data.tokenizer import VOCAB, load_tokenizer
from ratrain.errors import UsageError
from ratrain.export.plain import plain
from ratrain.export.tokenizer_json import tokenizer_files
from ratrain.model.build import build, switches
from ratrain.run.sample import load_run
from ratrain.storage.run_log import read_run

SHORT = ("train.budget.steps=6", "activation.kind=at_once", "compile.scope=off", "train.batch=4", "eval.windows=4")
MUP = ("model.parametrisation=mup", "model.base={ n_embd = 16, n_head = 1 }")
COMPLETE = ("model.parametrisation=completep", "model.base={ n_embd = 16, n_head = 2, n_layer = 1 }")  # heads of 8
# variants whose function is that of a stock class, with the class
STOCK = {
    "v0": "GPT2LMHeadModel", "v3": "GPT2LMHeadModel", "v9": "GPT2LMHeadModel", "v12": "GPT2LMHeadModel",
    "tied_ra_low_rank": "GPT2LMHeadModel", "modern": "Qwen3ForCausalLM",
}  # fmt: skip
KEYS = {
    "untied": ("v9", "model.head=untied"), "without biases": ("v9", "model.bias=false"),
    "tanh": ("v0", "model.act=gelu_tanh"), "squared": ("v0", "model.act=relu2"),
    "no QK-norm": ("modern", "model.qk_norm=none"), "biases": ("modern", "model.qk_norm=none", "model.bias=true"),
    "completep": ("v9", *COMPLETE, "model.bias=false"), "completep of a base": ("v0", *COMPLETE),
    "mup of a fold": ("tied_ra_low_rank", *MUP), "mup": ("modern", *MUP, "model.head=untied"),
}  # fmt: skip


def logits_of(transformers, folder, run):
    _, ours = load_run(run, device=torch.device("cpu"), warn=pytest.fail)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(ours.spec.vocab_size, (2, ours.spec.block_size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return type(theirs).__name__, ours.logits(tokens), theirs(tokens).logits


@pytest.mark.parametrize(("name", "kind"), STOCK.items())
def test_a_variant_of_a_stock_function_class_keeps_its_logits(trained, ratrain, transformers, tmp_path, name, kind):
    run = trained(name, *SHORT)
    code, out, _ = ratrain("export", run, "--to", "hf", "-o", tmp_path / "hf", "--json")
    told = json.loads(out.splitlines()[-1])
    assert (code, told["step"], told["loads"].split("(")[0]) == (0, 6, f"transformers.{kind}.from_pretrained")
    loaded, ours, theirs = logits_of(transformers, tmp_path / "hf", run)
    assert loaded == kind
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS.keys())
def test_the_base_keeps_its_logits_with_every_key(trained, ratrain, transformers, tmp_path, keys):
    run = trained(*keys, *SHORT)
    assert ratrain("export", run, "--to", "hf", "-o", tmp_path / "hf")[0] == 0
    _, ours, theirs = logits_of(transformers, tmp_path / "hf", run)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "keys", "told"),
    [
        ("tied_ra", (), "patch.tied_ra at blocks.0.attn.core computes what no GPT-2 computes"),
        ("v19", (), "computes what no GPT-2 computes"),
        ("glu", (), "computes what no GPT-2 computes"),
        (
            "modern",
            (*MUP[:1], "model.base={ n_embd = 16, n_head = 2 }"),
            "which no weight can absorb behind model.qk_norm",
        ),
        ("v0", ("model.norm=rms",), "no class of transformers computes a decoder with pos = 'learned', norm = 'rms'"),
    ],
)
def test_all_others_are_refused_by_name(trained, ratrain, tmp_path, name, keys, told):
    run = trained(name, *SHORT, *keys)
    code, _, err = ratrain("export", run, "--to", "hf", "-o", tmp_path / "hf")
    assert (code, err.count("\n")) == (2, 1)
    assert told in err
    assert f"ratrain.load({str(run)!r})" in err
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("file", shipped(), ids=lambda file: file.stem)
def test_every_shipped_variant_is_its_base_or_is_refused_by_name(file):
    manifest = read_manifest(file, scale="tiny").manifest
    model = build(manifest).eval()
    for switch in (s for of in switches(model).values() for s in of):
        switch.fill_(1.0)
    base, refused = None, ""
    try:
        base = plain(model, "a run")
    except UsageError as error:
        refused = str(error)
    if base is None:
        assert any(f"patch.{name} at " in refused for name in manifest.patch)
        return
    tokens = torch.arange(manifest.model.block_size)[None] % manifest.model.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(base.logits(tokens), model.logits(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", VOCAB)
def test_the_tokenizer_cuts_text_into_the_same_tokens(transformers, tmp_path, name):
    for file, content in tokenizer_files(name, length=64).items():
        (tmp_path / file).write_text(json.dumps(content))
    ours, theirs = load_tokenizer(name), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (
        "First Citizen:\nSpeak, speak.",
        "  It's 12,345 naïve — ½ 日本語 🙂\t\n\n x",
        "",
        "a" * 70,
        "don't 'tis",
    ):
        assert theirs(text)["input_ids"] == ours.encode_ordinary(text)
        assert theirs.decode(ours.encode_ordinary(text)) == text
    assert theirs.eos_token_id == ours.eot_token
    assert theirs("a<|endoftext|>b")["input_ids"] == ours.encode("a<|endoftext|>b", allowed_special="all")


def test_the_card_has_recipe_and_loss(trained, ratrain, tmp_path):
    run = trained("v9", *SHORT)
    ratrain("export", run, "--to", "hf", "-o", tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert f"{read_run(run).evaluated[-1].loss:.4f} nats per token" in card
    assert "[patch.unified_ra]" in card
    assert "library_name: transformers" in card


def test_a_run_without_events_that_was_moved_is_exported_with_fewer_facts(trained, ratrain, tmp_path, monkeypatch):
    run = trained("v9", *SHORT)
    (run / "events.jsonl").unlink()
    studies = run.parents[1] / "studies" / "x"
    studies.mkdir(parents=True)
    (studies / "results.json").write_text("{")
    monkeypatch.chdir(run.parent)
    for kind, file in (("hf", "a"), ("nanogpt", "b.pt")):
        code, _, err = ratrain("export", "s1", "--to", kind, "-o", tmp_path / file)
        assert (code, err) == (0, "")
    card = (tmp_path / "a" / "README.md").read_text()
    assert "validation loss" not in card
    assert f"{6 * 4 * 32:,}" in card


def test_an_averaged_loss_is_not_that_of_the_weights(trained, ratrain, tmp_path):
    run = trained("v0", *SHORT, "eval.ema=0.9")
    assert ratrain("export", run, "--to", "hf", "-o", tmp_path)[0] == 0
    assert "validation loss" not in (tmp_path / "README.md").read_text()
