"""Pretrained weights: the function stays what it was, and what does not fit is told."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ratrain.checksum import sha256_of
from ratrain.config.schema import ActivationSection, InitSection, SeedSection, Span
from ratrain.config.weights import weight_files
from ratrain.errors import DataError, ManifestError, MissingError
from ratrain.model.build import build, switches
from ratrain.model.generate import decode
from ratrain.model.pretrained import load_pretrained
from ratrain.registry import Patch, patch_kinds, register

KINDS = patch_kinds()
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 100, "act": "gelu_tanh"}
TOKENS = torch.randint(100, (2, 16), generator=torch.Generator().manual_seed(1))


HF = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "hugging_face.py")))


@pytest.fixture
def load(manifest_of):
    """A model of these patches with the weights at `path`, and what was said of them."""

    def load(path, patches=None, *, repack="exact", **shape):
        manifest = manifest_of(patches, **{**SHAPE, **shape})
        init = InitSection(weights=str(path), sha256=sha256_of(weight_files(path)), repack=repack)
        manifest = manifest.model_copy(update={"init": init})
        model = build(manifest)
        return model, load_pretrained(model, manifest)

    return load


@pytest.fixture
def tensors():
    return HF.tensors_of()


def double_logits(model):
    with torch.no_grad():
        return model.double().eval().logits(TOKENS)


def close(model):
    for s in (s for switch in switches(model).values() for s in switch):
        s.zero_()


def require_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_the_base_model_computes_what_the_checkpoint_computes(load, tmp_path, tensors, prefix):
    model, loaded = load(HF.write(tmp_path / "gpt2", tensors, prefix=prefix))
    require_equal(double_logits(model), HF.logits(tensors, TOKENS))
    require_equal(decode(model, TOKENS), HF.logits(tensors, TOKENS))
    assert loaded.tensors == len(tensors)
    assert not loaded.notes


@pytest.mark.parametrize("kind", KINDS)
def test_every_mechanism_that_is_closed_leaves_the_function_as_it_was(load, tmp_path, tensors, kind):
    later = ActivationSection(kind="after", after=Span(steps=1))  # a foreign module then keeps the base's part
    patch = KINDS[kind](**KINDS[kind].example, activation=later)
    model, _ = load(HF.write(tmp_path / "gpt2", tensors), {kind: patch})
    close(model)
    require_equal(double_logits(model), HF.logits(tensors, TOKENS))


@pytest.mark.parametrize("kind", ["unified_ra", "reciprocal_mlp", "tied_ra"])
def test_open_mechanisms_that_start_neutral_leave_the_function_as_it_was(load, tmp_path, tensors, kind):
    model, _ = load(HF.write(tmp_path / "gpt2", tensors), {kind: KINDS[kind](init="neutral")})
    require_equal(double_logits(model), HF.logits(tensors, TOKENS))


@pytest.mark.parametrize("kind", ["unified_ra", "tied_ra"])
def test_the_reciprocal_form_scores_the_last_channels_the_other_way_round(load, tmp_path, tensors, kind):
    path = HF.write(tmp_path / "gpt2", tensors)
    model, _ = load(path, {kind: KINDS[kind](rank=3, init="neutral")}, repack="reciprocal")
    require_equal(double_logits(model), HF.logits(tensors, TOKENS, reciprocal=3))


def test_there_must_be_a_mechanism_with_a_reciprocal_form(load, tmp_path, tensors):
    path = HF.write(tmp_path / "gpt2", tensors)
    with pytest.raises(ManifestError, match=r"init\.repack: no patch here has a reciprocal form"):
        load(path, {"self_restart": KINDS["self_restart"]()}, repack="reciprocal")


class Inner(nn.Module):
    def __init__(self, old):
        super().__init__()
        self.old = old

    def forward(self, x, gate):
        return self.old(x, gate)


@register("wrapped")
class Wrapped(Patch):
    target: str = "blocks.*.attn.qkv"

    def build(self, old, spec):
        return Inner(old)


@register("replaced")
class Replaced(Patch):
    target: str = "blocks.*.attn.qkv"

    def build(self, old, spec):
        return nn.Identity()


def test_a_weight_is_found_where_a_mechanism_keeps_it(load, tmp_path, tensors):
    model, _ = load(HF.write(tmp_path / "gpt2", tensors), {"wrapped": Wrapped()})
    require_equal(double_logits(model), HF.logits(tensors, TOKENS))


def test_a_mechanism_that_keeps_no_place_for_a_weight_is_refused(load, tmp_path, tensors):
    with pytest.raises(ManifestError, match=r"patch\.replaced: keeps no blocks\.1\.attn\.qkv"):
        load(HF.write(tmp_path / "gpt2", tensors), {"replaced": Replaced()})


# -- files ------------------------------------------------------------------------------------------------------


def test_masks_and_a_head_that_is_the_table_are_passed_over(load, tmp_path, tensors):
    more = {"lm_head.weight": tensors["wte.weight"].clone(), "h.0.attn.bias": torch.ones(1, 1, 16, 16).tril()}
    model, _ = load(HF.write(tmp_path / "gpt2", tensors | more, prefix=""))
    require_equal(double_logits(model), HF.logits(tensors, TOKENS))


def test_a_head_of_its_own_needs_a_model_with_one(load, tmp_path, tensors):
    head = {"lm_head.weight": tensors["wte.weight"].flip(0).contiguous()}
    path = HF.write(tmp_path, tensors | head, {**HF.CONFIG, "tie_word_embeddings": False}, prefix="")
    with pytest.raises(ManifestError, match=r"model\.head: must be untied"):
        load(path)
    model, _ = load(path, head="untied")
    require_equal(double_logits(model), HF.logits(tensors, TOKENS).flip(-1))


def test_a_model_with_a_head_of_its_own_takes_the_table_for_it(load, tmp_path, tensors):
    model, _ = load(HF.write(tmp_path, tensors), head="untied")
    require_equal(double_logits(model), HF.logits(tensors, TOKENS))


def test_a_head_that_is_not_tied_must_be_there(load, tmp_path, tensors):
    with pytest.raises(DataError, match=r"lacks lm_head\.weight"):
        load(HF.write(tmp_path, tensors, {**HF.CONFIG, "tie_word_embeddings": False}))


def test_a_twin_is_moved_by_a_unit_in_the_last_place(load, tmp_path, tensors, manifest_of):
    path = HF.write(tmp_path, tensors)
    model, _ = load(path)
    init = InitSection(weights=str(path), sha256=sha256_of(weight_files(path)))
    twin = manifest_of(**SHAPE).model_copy(update={"init": init, "seed": SeedSection(twin="ulp")})
    other = build(twin)
    load_pretrained(other, twin)
    moved = {n for n, p in other.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert moved == {"wte.weight"}


def test_shards_are_one_checkpoint(load, tmp_path, tensors):
    names = sorted(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(HF.CONFIG))
    model, _ = load(tmp_path)
    require_equal(double_logits(model), HF.logits(tensors, TOKENS))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(MissingError, match=r"b\.safetensors: no such file, though model\.safetensors\.index\.json"):
        load(tmp_path)


def test_a_file_without_config_leaves_the_heads_on_trust(load, tmp_path, tensors):
    _, loaded = load(HF.write(tmp_path, tensors) / "model.safetensors")
    assert "model.n_head = 2 and model.act = 'gelu_tanh' are not checked" in loaded.notes[0]


def test_half_precision_is_widened(load, tmp_path, tensors):
    narrow = {name: t.bfloat16() for name, t in tensors.items()}
    model, _ = load(HF.write(tmp_path, narrow))
    require_equal(double_logits(model), HF.logits(narrow, TOKENS))


def test_fewer_positions_and_padding_rows_fit(load, tmp_path, tensors):
    padded = tensors | {"wte.weight": torch.cat([tensors["wte.weight"], torch.zeros(28, 32)])}
    path = HF.write(tmp_path, padded, {**HF.CONFIG, "n_positions": 16, "vocab_size": 128})
    model, _ = load(path, block_size=8)
    with torch.no_grad():
        found = model.double().eval().logits(TOKENS[:, :8])
    require_equal(found, HF.logits(tensors, TOKENS[:, :8]))


def not_finite(tensors):
    tensors["h.1.mlp.c_fc.weight"][3, 4] = torch.nan


def lacking(tensors):
    del tensors["h.0.ln_2.bias"]


def lacking_one_bias(tensors):
    del tensors["ln_f.bias"]


def extra(tensors):
    tensors["h.0.crossattention.c_attn.weight"] = torch.zeros(3)


def misshapen(tensors):
    tensors["h.1.attn.c_attn.weight"] = tensors["h.1.attn.c_attn.weight"].T.contiguous()


def untied(tensors):
    tensors["lm_head.weight"] = tensors["wte.weight"] + 1


def no_table(tensors):
    del tensors["wte.weight"]


def integers(tensors):
    tensors["ln_f.weight"] = torch.ones(32, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (not_finite, "h.1.mlp.c_fc.weight holds NaN or infinity; expected finite weights"),
        (lacking, "lacks h.0.ln_2.bias"),
        (lacking_one_bias, "lacks ln_f.bias$"),
        (extra, "h.0.crossattention.c_attn.weight has no place in a GPT-2"),
        (misshapen, r"h.1.attn.c_attn.weight is \(32, 96\), in this model \(96, 32\)"),
        (untied, "config.json ties the head to the token table, but lm_head.weight is another"),
        (no_table, "no wte.weight"),
        (integers, "ln_f.weight is of type int64; expected float32, float16 or bfloat16"),
    ],
)
def test_tensors_that_are_not_sound_are_refused(load, tmp_path, tensors, change, message):
    change(tensors)
    with pytest.raises(DataError, match=message):
        load(HF.write(tmp_path, tensors, prefix=""))


def test_a_truncated_file_is_refused(load, tmp_path, tensors):
    file = HF.write(tmp_path, tensors) / "model.safetensors"
    for size in (0, 5, 1000, file.stat().st_size - 1):
        cut = tmp_path / f"{size}.safetensors"
        cut.write_bytes(file.read_bytes()[:size])
        with pytest.raises(DataError, match="is not a whole safetensors file"):
            load(cut)


def test_other_bytes_than_the_manifest_says_are_refused(manifest_of, tmp_path, tensors):
    init = InitSection(weights=str(HF.write(tmp_path, tensors)), sha256="0" * 64)
    manifest = manifest_of(**SHAPE).model_copy(update={"init": init})
    with pytest.raises(DataError, match="SHA-256"):
        load_pretrained(build(manifest), manifest)


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(DataError, match="holds pickled weights, which can run any code"):
        weight_files(tmp_path)
    disguised = tmp_path / "disguised.safetensors"
    torch.save({"a": torch.zeros(1)}, disguised)
    with pytest.raises(DataError, match="holds pickled weights"):
        weight_files(disguised)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_what_is_not_there_is_missing(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingError):
        weight_files(tmp_path / name)


@pytest.mark.parametrize("names", [["../other.safetensors"], [], [3]])
def test_an_index_names_files_beside_it(tmp_path, names):
    index = {"weight_map": {f"t{i}": name for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="expected names of files beside it"):
        weight_files(tmp_path)


# -- another model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"n_layer": 3}, r"model\.n_layer: must be 2 for .*, got 3"),
        ({"n_head": 4}, r"model\.n_head: must be 2 for .*, got 4"),
        ({"n_embd": 64}, r"model\.n_embd: must be 32 for .*, got 64"),
        ({"block_size": 17}, r"model\.block_size: must be at most 16 for .*, got 17"),
        ({"vocab_size": 99}, r"model\.vocab_size: must be 100 for .*, got 99"),
        ({"mlp_ratio": 2.0}, r"model\.mlp_ratio: must be 4\.0 for .*, got 2"),
        ({"norm": "rms"}, r"model\.norm: must be layer for .*, got 'rms'"),
        ({"pos": "rope"}, r"model\.pos: must be learned for .*, got 'rope'"),
        ({"bias": False}, r"model\.bias: must be true for .*, got False"),
        ({"act": "gelu"}, r"model\.act: must be gelu_tanh for .*, got 'gelu'"),
        ({"norm_eps": 1e-6}, r"model\.norm_eps: must be 1e-05 for .*, got 1e-06"),
        ({"n_layer": 3, "act": "gelu"}, r"--scale tiny --set model.act=gelu_tanh|--set model.act=gelu_tanh"),
    ],
)
def test_a_manifest_of_another_shape_is_told_what_would_fit(load, tmp_path, tensors, shape, message):
    with pytest.raises(ManifestError, match=message):
        load(HF.write(tmp_path, tensors), **shape)


def test_the_scale_that_fits_is_named(load, tmp_path, tensors):
    path = HF.write(tmp_path, tensors)
    with pytest.raises(ManifestError, match=r"the model that fits has --scale tiny --set model\.act=gelu_tanh"):
        load(path, n_layer=3, act="gelu")


@pytest.mark.parametrize(
    "said",
    [
        {"activation_function": "relu"},
        {"model_type": "gpt_neox"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
    ],
)
def test_a_function_that_this_model_cannot_be_is_refused(load, tmp_path, tensors, said):
    path = HF.write(tmp_path, tensors, {**HF.CONFIG, **said})
    with pytest.raises(ManifestError, match="which this model does not support"):
        load(path)


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000])
def test_a_config_that_cannot_be_read_is_told(load, tmp_path, tensors, text):
    (HF.write(tmp_path, tensors) / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"config\.json"):
        load(tmp_path)
