"""The coordinate check measures the activations, fits their trend, and judges only what is claimed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ratrain.contracts.transfer import LOOSE, grown
from ratrain.model.build import build
from ratrain.run.coordcheck import (
    PARTS,
    Coordinates,
    Part,
    Run,
    _part,
    check_coordinates,
    coordinates,
    resized,
    table,
    verdict,
)

ZOO = Path(__file__).parents[1] / "zoo" / "patches"
MUP = ("model.parametrisation=mup", "model.base={ n_embd = 64, n_head = 2 }")
LAPTOP = ("model.n_embd=128", "model.n_head=4")  # heads of 32 channels, as at the default scale
SERIES = [f"v{number}" for number in range(20)]


@torch.no_grad()
def test_the_coordinates_are_the_models_activations(tiny):
    model = build(tiny("v0", "model.n_layer=2")).eval()
    tokens = torch.arange(8)[None]
    found = coordinates(model, tokens)
    assert {name for name, _ in found} == set(PARTS)
    assert {layer for name, layer in found if name == "core"} == {0, 1}
    torch.testing.assert_close(found["logits", 0], model.logits(tokens))
    torch.testing.assert_close(found["final", 0], model.norm(found["stream", 1]))
    first, x = model.blocks[0], model.blocks[0].norm_1(model.embed(tokens))
    q, k, v = first.attn.qkv(x, None)
    torch.testing.assert_close(found["values", 0], v)
    scores = (q @ k.mT / q.shape[-1] ** 0.5)[..., torch.ones(8, 8, dtype=torch.bool).tril()]
    torch.testing.assert_close(found["scores", 0], scores)
    torch.testing.assert_close(found["attention", 0], first.attn(x, None)[0])
    torch.testing.assert_close(found["stream", 0], model.embed(tokens) + found["attention", 0] + found["mlp", 0])
    torch.testing.assert_close(found["mlp", 0], first.mlp.down(found["hidden", 0], None))


def runs_of(law, *, sizes=(64, 128, 256, 512), last=0.5):
    """Runs of two seeds and layers whose values follow `law`, times noise that averages out."""
    found = []
    for size in sizes:
        for seed, noise in ((1, 1.25), (2, 0.8)):
            values = {("core", layer): (law(size) * noise, 0.0) for layer in (0, 1)}
            moved = {key: (value, last * value * size**0.5) for key, (value, _) in values.items()}
            found.append(Run(size, seed, [2.0], [values, moved]))
    return found


@pytest.mark.parametrize("power", [0.0, 0.5, -1.0])
def test_the_trend_of_a_power_law_is_its_factor_over_the_sizes(power):
    part = _part("core", "width", runs_of(lambda size: 3 * size**power), (64, 128, 256, 512))
    assert part.initial == pytest.approx([3 * size**power for size in (64, 128, 256, 512)])
    assert part.initial_trend == pytest.approx(8**power)
    assert part.change_trend == pytest.approx(8**0.5)  # over the initial size, whatever that does
    assert not part.flat


def test_corrections_that_fall_as_one_over_the_size_count_less_than_a_power():
    sizes = (64, 128, 256, 512, 1024)
    corrected = _part("core", "width", runs_of(lambda size: 1 + 8 / size, sizes=sizes), sizes)
    assert corrected.initial[0] / corrected.initial[-1] > 1.1  # the ends of the range alone are not flat
    assert 0.94 < corrected.initial_trend < 1


def test_logits_are_judged_by_their_change_alone():
    assert Part("logits", "width", (1.0, 0.2), (1.0, 1.0), 0.2, 1.0).flat
    assert not Part("core", "width", (1.0, 0.2), (1.0, 1.0), 0.2, 1.0).flat


def test_along_the_depth_the_stream_is_that_of_the_last_layer_and_its_change_is_judged_as_it_is():
    runs = [
        Run(depth, 1, [2.0], [{("stream", layer): (1 / depth, 0.0) for layer in range(depth)},
                              {("stream", layer): (1.0, (layer + 1) / depth) for layer in range(depth)}])
        for depth in (2, 4, 8)
    ]  # fmt: skip
    part = _part("stream", "depth", runs, (2, 4, 8))
    assert part.change == pytest.approx((1.0, 1.0, 1.0))
    assert (part.initial_trend, part.change_trend) == pytest.approx((1 / 4, 1.0))
    assert part.flat


def test_values_that_are_not_finite_are_not_flat():
    part = _part("core", "width", runs_of(lambda size: math.nan if size == 512 else 1.0), (64, 128, 256, 512))
    assert part.initial_trend == math.inf
    assert not part.flat


def test_a_size_changes_the_model_and_neither_heads_nor_options(tiny):
    manifest = tiny("v14", *LAPTOP, "prune.kind=magnitude", "prune.target=0.5", "train.precision=bf16")
    wide = resized(manifest, "width", 256).model
    assert (wide.n_embd, wide.n_head, wide.n_layer, wide.head_dim) == (256, 8, manifest.model.n_layer, 32)
    assert (wide.block_size, wide.vocab_size) == (8, 8)
    deep = resized(manifest, "depth", 5)
    assert (deep.model.n_embd, deep.model.n_layer) == (128, 5)
    assert (deep.prune, deep.train.precision) == (None, "fp32")
    counted = tiny("v14", *LAPTOP, "patch.kv_prune.recency=9")
    assert resized(counted, "width", 64).model.block_size == 32  # nine recent tokens do not fit into eight


def test_mup_is_flat_where_the_standard_parametrisation_is_not(tiny):
    standard, mup = (check_coordinates(tiny("v0", *LAPTOP, *keys), sizes=(64, 128, 256), seeds=2) for keys in ((), MUP))
    assert mup.flat
    assert mup.claimed
    assert "every part is flat within 10% over 4 x the width" in verdict(mup)
    assert not standard.claimed
    assert {part.name for part in standard.parts if not part.flat} >= {"scores", "values", "mlp", "stream", "logits"}
    assert "it does not claim to be" in verdict(standard)


def test_the_contract_would_fail_the_standard_parametrisation(tiny):
    manifest = tiny("v0", "model.n_embd=64", "model.n_head=2")
    trends = [trend for part in grown(manifest, "standard").parts for trend in part.judged]
    assert max(trends) > 2 * LOOSE


def test_mup_claims_nothing_about_the_depth():
    parts = (Part("core", "depth", (1.0, 2.0), (1.0, 2.0), 2.0, 1.0),)
    claims = {
        (kind, axis): Coordinates("v0", kind, axis, (2, 4), 3, 4, 1e-3, parts, ()).claimed
        for kind in ("standard", "mup", "completep")
        for axis in ("width", "depth")
    }
    assert [key for key, claimed in claims.items() if claimed] == [
        ("mup", "width"),
        ("completep", "width"),
        ("completep", "depth"),
    ]
    assert table(Coordinates("v0", "mup", "depth", (2, 4), 3, 4, 1e-3, parts, ()))[1][-1] == "NOT FLAT"


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_smallest_width_is_the_base_unless_the_manifest_has_one(ratrain):
    words = ("coordcheck", "v0", "--set", "model.n_layer=1", "--set", "model.parametrisation=mup", "--seeds", "1")
    code, out, err = ratrain(*words, "--widths", "32,64", "--json")
    assert code in (0, 78), err
    told = json.loads(out)
    assert (told["parametrisation"], told["axis"], told["sizes"]) == ("mup", "width", [32, 64])
    assert len(told["runs"][0]["steps"]) == told["steps"] + 1
    assert {row["part"] for row in told["runs"][0]["steps"][0]} == set(PARTS)
    code, out, _ = ratrain(*words, "--widths", "64,128", "--set", "model.base={ n_embd = 192, n_head = 6 }")
    assert out.splitlines()[0].split()[:3] == ["part", "64", "128"]


def test_a_sum_over_channels_that_is_not_declared_is_found(ratrain, tmp_path):
    (tmp_path / "mine.toml").write_text('id = "mine"\nextends = "gpt2.toml"\n\n[patch.sums_over_channels]\n')
    keys = ("--set", "model.n_layer=2", "--patches", ZOO, "--widths", "64,128,256", "--seeds", "2")
    words = ("coordcheck", tmp_path / "mine.toml", *keys)
    code, out, _ = ratrain(*words, "--set", "model.parametrisation=mup")
    assert code == 78
    assert "not flat within 10% over 4 x the width" in out.splitlines()[-1]
    code, out, _ = ratrain(*words)
    assert code == 0
    assert "it does not claim to be: model.parametrisation = 'mup' does" in out.splitlines()[-1]


def test_the_depth_is_checked_instead_of_the_width(ratrain):
    keys = ("--set", "model.parametrisation=completep", "--set", "model.n_embd=64", "--set", "model.n_head=2")
    code, out, _ = ratrain("coordcheck", "v0", *keys, "--depths", "1,2", "--seeds", "1", "--steps", "1", "--json")
    told = json.loads(out)
    assert code in (0, 78)
    assert (told["axis"], told["sizes"], told["steps"], told["seeds"]) == ("depth", [1, 2], 1, 1)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--widths", "64,100"), 2, "--widths: 100 is not a multiple of the width of heads, n_embd / n_head = 32"),
        (("--widths", "128,64"), 2, "expected two or more rising numbers"),
        (("--widths", "64,128", "--depths", "2,4"), 2, "not allowed with"),
        (("--plot", "figure.svg"), 2, "expected a name that ends with .png"),
        (("--set", "model.parametrisation=mup", "--set", "optim.kind=muon"), 78, "optim.kind: does not transfer"),
        (("--set", "model=3"), 78, "model"),
        (("--set", "model.parametrisation=mu"), 78, "'mu' is not one of"),
    ],
)
def test_words_that_cannot_be_checked_are_refused(ratrain, words, code, told):
    found, out, err = ratrain("coordcheck", "v0", *words)
    assert (found, out) == (code, "")
    assert told in err


def test_the_figure_is_a_png(ratrain, tmp_path):
    pytest.importorskip("matplotlib")
    words = ("--set", "model.n_layer=1", "--widths", "32,64", "--seeds", "1", "--plot", tmp_path / "figure.png")
    assert ratrain("coordcheck", "v0", *words)[0] == 0
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


# -- over 16 x the width ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SERIES)
def test_every_variant_of_the_series_is_flat_over_16_times_the_width(ratrain, name):
    code, out, _ = ratrain("coordcheck", name, "--set", "model.parametrisation=mup")
    assert code == 0, out
    assert "every part is flat within 10% over 16 x the width" in out


@pytest.mark.slow
def test_the_standard_parametrisation_is_not_flat_over_16_times_the_width(ratrain):
    told = json.loads(ratrain("coordcheck", "v0", "--json")[1])
    trends = {part["name"]: part["initial_trend"] for part in told["parts"]}
    assert trends["values"] == pytest.approx(4, rel=0.05)  # the root of 16: a sum of 16 x as many channels
    assert trends["scores"] == pytest.approx(16, rel=0.1)
    assert not any(part["flat"] for part in told["parts"] if part["name"] != "final")


@pytest.mark.slow
def test_completep_is_flat_over_8_times_the_depth_and_mup_is_not(ratrain):
    flat = {
        kind: json.loads(ratrain("coordcheck", "v0", "--set", f"model.parametrisation={kind}", "--depths", "--json")[1])
        for kind in ("completep", "mup")
    }
    assert flat["completep"]["flat"]
    assert not flat["mup"]["flat"]
