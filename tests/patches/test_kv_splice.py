"""KV splice against numpy's SVD, its own inverse, brute force, and a cache that holds the codes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ratrain.cli import main
from ratrain.compression.spline import evaluate, heights_of, invert, quantile_knots
from ratrain.engine.engine import Engine
from ratrain.engine.parts.fitting import Fitting, _inputs, _Reservoir, fit_briefly
from ratrain.engine.parts.part import Position
from ratrain.errors import DivergedError, ManifestError
from ratrain.events import Fitted, Notice, Window
from ratrain.model.build import build
from ratrain.model.cache import PLAIN
from ratrain.model.count import count
from ratrain.model.generate import decode
from ratrain.model.gpt2 import Linear, Value
from ratrain.patches import kv_splice
from ratrain.patches.kv_splice import KVSplice, SplicedValue, SplinedValue
from ratrain.registry import patch_kinds
from ratrain.run.sample import load_run
from ratrain.storage.checkpoint import load_newest

HEADS, DIM = 2, 8
MODULES = {"pca": SplicedValue, "spline": SplinedValue}
PRUNED = [None, {"mode": "kv"}, {"missing": "drop"}, {"missing": "residual"}]
RUN = ("train.budget.steps=12", "eval.every=0", "eval.windows=2", "log.every=4", "checkpoint.every=0")
SPLICE = ("patch.kv_splice.vectors=64", "patch.kv_splice.refit={steps=3}", "patch.kv_splice.epochs=2")


@pytest.fixture
def vectors():
    """[H, N, D] of unequal and correlated channels, half of them far from normal."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(HEADS, 900, DIM, dtype=torch.float64, generator=generator)
    x = x @ torch.randn(HEADS, DIM, DIM, dtype=torch.float64, generator=generator) + 3
    x[..., ::2] = torch.sinh(x[..., ::2] / 3)
    return x


def spliced(transform, x, *, channels=3, objective="value", attn=None, held_out=None, **options):
    """A module in float64, fitted to x."""
    options = KVSplice.model_validate({"transform": transform, "objective": objective, **options})
    module = MODULES[transform](HEADS, DIM, channels, options)
    module.reset_parameters(torch.Generator())
    module.double()
    module.fit(x, x if held_out is None else held_out, attn, torch.Generator().manual_seed(0))
    return module


def linear(width):
    """A projection [H D] -> [width], drawn."""
    proj = Linear(HEADS * DIM, width, bias=True, std=0.3)
    proj.reset_parameters(torch.Generator().manual_seed(1))
    return proj.double()


def rebuilt(module, x):
    return module.decompress(module.compress(x))


# -- splines ----------------------------------------------------------------------------------------------------


def splines(count, *, repeat=False):
    generator = torch.Generator().manual_seed(count)
    knots = torch.randn(3, count, dtype=torch.float64, generator=generator).sort().values
    if repeat:
        knots[:, 1] = knots[:, 0]
    slopes = torch.rand(3, count - 1, dtype=torch.float64, generator=generator) * 3 + 0.01
    return knots, heights_of(knots, slopes), slopes


@pytest.mark.parametrize(("count", "repeat"), [(2, False), (3, False), (7, False), (7, True), (2, True)])
def test_a_spline_and_its_inverse_undo_each_other_also_beyond_the_knots(count, repeat):
    spline = splines(count, repeat=repeat)
    x = torch.linspace(-9, 9, 400, dtype=torch.float64)[:, None].expand(-1, 3)
    torch.testing.assert_close(invert(evaluate(x, *spline), *spline), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(evaluate(invert(x, *spline), *spline), x, rtol=0, atol=1e-12)
    assert (evaluate(x, *spline).diff(dim=0) > 0).all()


def test_a_spline_goes_through_its_knots_as_interpolation_does():
    knots, heights, slopes = splines(7)
    for d in range(3):
        x = torch.linspace(float(knots[d, 0]), float(knots[d, -1]), 50, dtype=torch.float64)
        ours = evaluate(x[:, None], knots[d : d + 1], heights[d : d + 1], slopes[d : d + 1])[:, 0]
        np.testing.assert_allclose(ours, np.interp(x, knots[d], heights[d]), atol=1e-12)


def test_knots_are_the_order_statistics_that_the_reference_took(vectors):
    knots = quantile_knots(vectors, 7)
    column = sorted(vectors[1, :, 3].tolist())
    assert knots[1, 3].tolist() == [column[int(i * 899 / 6 + 1e-9)] for i in range(7)]


# -- geometry ---------------------------------------------------------------------------------------------------


def by_svd(x, count):
    """x [N, D] on its principal plane, by numpy."""
    x = x.numpy()
    mean = x.mean(0)
    basis = np.linalg.svd(x - mean, full_matrices=False)[2][:count]
    return (x - mean) @ basis.T @ basis + mean


def test_plain_pca_is_that_of_an_svd_in_float64(vectors):
    ours = rebuilt(spliced("pca", vectors), vectors)
    for head in range(HEADS):
        np.testing.assert_allclose(ours[head], by_svd(vectors[head], 3), atol=1e-10)


def test_with_slopes_of_one_it_is_plain_pca(vectors, monkeypatch):
    monkeypatch.setattr(kv_splice, "fit_slopes", lambda x, knots, *_, **__: torch.ones_like(knots[..., 1:]))
    ours, plain = rebuilt(spliced("spline", vectors), vectors), rebuilt(spliced("pca", vectors), vectors)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize("transform", MODULES)
@pytest.mark.parametrize("objective", ["value", "output"])
def test_in_all_channels_nothing_is_lost(vectors, transform, objective):
    attn = SimpleNamespace(proj=linear(16))
    module = spliced(transform, vectors, channels=DIM, objective=objective, attn=attn)
    torch.testing.assert_close(rebuilt(module, vectors), vectors, rtol=0, atol=1e-9)


def test_for_the_output_it_is_the_best_plane_for_the_output(vectors):
    """Eckart and Young: nothing of rank K loses less of x W than its first K singular values leave."""
    attn = SimpleNamespace(proj=linear(5))
    ours = rebuilt(spliced("pca", vectors, objective="output", attn=attn), vectors)
    for head in range(HEADS):
        rows = attn.proj.weight.detach()[:, head * DIM : (head + 1) * DIM].T
        left = np.linalg.svd(((vectors[head] - vectors[head].mean(0)) @ rows).numpy(), compute_uv=False)[3:]
        lost = ((ours[head] - vectors[head]) @ rows).square().sum()
        assert float(lost) == pytest.approx((left**2).sum(), rel=1e-4)


def test_without_an_output_projection_there_is_no_best_plane_for_it(vectors):
    attn = SimpleNamespace(proj=torch.nn.Identity())
    with pytest.raises(ManifestError, match="no linear output projection here; expected 'value'"):
        spliced("pca", vectors, objective="output", attn=attn)


def test_a_fitted_spline_stays_monotone_and_loses_less_where_there_is_something_to_bend(vectors):
    module = spliced("spline", vectors, epochs=30)
    assert (module.slopes > 0).all()
    assert module.slopes.std() > 0.05
    x = vectors.sort(dim=1).values
    assert (module.warp(x).diff(dim=1) >= 0).all()
    assert (module.lost < 0.97 * module.lost_by_pca).all()


@pytest.mark.parametrize("transform", MODULES)
def test_the_errors_told_are_those_of_brute_force(vectors, transform):
    x, held_out = vectors[:, :600], vectors[:, 600:]
    module = spliced(transform, x, held_out=held_out)
    for head in range(HEADS):
        v = held_out[head].numpy()
        whole = ((v - v.mean(0)) ** 2).sum()
        mean = x[head].numpy().mean(0)
        basis = np.linalg.svd(x[head].numpy() - mean, full_matrices=False)[2][:3]
        plain = (((v - mean) @ basis.T @ basis + mean - v) ** 2).sum() / whole
        ours = ((rebuilt(module, held_out)[head].numpy() - v) ** 2).sum() / whole
        assert float(module.lost_by_pca[head]) == pytest.approx(plain, rel=1e-9)
        assert float(module.lost[head]) == pytest.approx(ours, rel=1e-9)


def test_where_the_spline_is_worse_the_head_falls_back_to_pca(vectors, monkeypatch):
    real = kv_splice.fit_slopes

    def spoilt(x, knots, *rest, **options):
        slopes = real(x, knots, *rest, **options)
        slopes[0] = torch.linspace(0.01, 50, slopes.shape[-1], dtype=slopes.dtype)
        return slopes

    monkeypatch.setattr(kv_splice, "fit_slopes", spoilt)
    ours, plain = spliced("spline", vectors, epochs=30), spliced("pca", vectors)
    torch.testing.assert_close(rebuilt(ours, vectors)[0], rebuilt(plain, vectors)[0], rtol=0, atol=1e-10)
    assert ours.lost[0] == ours.lost_by_pca[0]
    assert ours.lost[1] < ours.lost_by_pca[1]


def test_few_and_constant_vectors_still_make_a_fit():
    x = torch.zeros(HEADS, 2, DIM, dtype=torch.float64)
    x[:, 1, 0] = 1.0  # one channel moves, once; a batch is lowered to what is there
    module = spliced("spline", x, channels=1)
    torch.testing.assert_close(rebuilt(module, x), x, rtol=0, atol=1e-9)


# -- in the model -----------------------------------------------------------------------------------------------


@pytest.fixture
def model_of(tiny):
    """A small model in float64 with values far from small, fitted to random tokens unless told otherwise."""

    def model_of(*, prune=None, fit=True, length=24, heads=2, **options):
        shape = ("model.n_layer=2", f"model.n_head={heads}", "model.n_embd=32", f"model.block_size={length}")
        given = {"kv_splice": {"vectors": 40, **options}} | ({} if prune is None else {"kv_prune": prune})
        patches = {kind: patch_kinds()[kind].model_validate(keys) for kind, keys in given.items()}
        model = build(tiny("gpt2", *shape).model_copy(update={"patch": patches})).double().eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.5, generator=generator)
        return fit_briefly(model, tokens_of(length, rows=5, seed=7)) if fit else model

    return model_of


def tokens_of(length, *, rows=2, seed=0):
    return torch.randint(2048, (rows, length), generator=torch.Generator().manual_seed(seed))


def values_of(model) -> list[Any]:
    return [block.attn.value for block in model.blocks]


@pytest.mark.parametrize("prune", PRUNED, ids=str)
@pytest.mark.parametrize("transform", MODULES)
def test_decoding_from_codes_is_the_full_forward_pass(model_of, transform, prune):
    model = model_of(transform=transform, prune=prune and {**prune, "block": 5})
    tokens = tokens_of(24)
    logits = model.logits(tokens)
    torch.testing.assert_close(decode(model, tokens), logits, rtol=0, atol=1e-9)
    caches = model.new_caches()
    prompt = torch.cat([model.logits(tokens[:, :13], caches), model.logits(tokens[:, 13:], caches, start=13)], dim=1)
    torch.testing.assert_close(prompt, logits, rtol=0, atol=1e-9)
    for value in values_of(model):
        value.fitted.zero_()
    assert (model.logits(tokens) - logits).abs().max() > 0.1  # it does something


@pytest.mark.parametrize("prune", PRUNED[:2], ids=str)
@pytest.mark.parametrize("transform", MODULES)
@pytest.mark.parametrize(("channels", "kept"), [(0.5, 8), (0.25, 4), (0.125, 2), (5, 5)])
def test_the_cache_is_as_small_as_is_stated(model_of, transform, prune, channels, kept):
    model = model_of(transform=transform, channels=channels, length=40, prune=prune and {**prune, "block": 5})
    caches = model.new_caches()
    model.logits(tokens_of(39), caches)  # with pruning: one short of the last block's end
    stated = count(model).value_elements_per_token // 2  # per layer
    for cache in caches:
        values = cache.values if prune else cache.held[-1]
        assert values.shape[3] == kept
        element = 8 * 2 * 40  # float64, two sequences, tokens
        assert abs(values.untyped_storage().nbytes() - element * stated) <= element
    if not prune:
        assert stated == 2 * kept


def test_attention_over_plain_codes_never_decompresses_a_token(model_of, monkeypatch):
    model, tokens = model_of(transform="pca"), tokens_of(24)
    caches = model.new_caches()
    model.logits(tokens[:, :20], caches)
    seen = []
    real = SplicedValue.decompress
    monkeypatch.setattr(SplicedValue, "decompress", lambda self, code: seen.append(code.shape[2]) or real(self, code))
    model.logits(tokens[:, 20:21], caches, start=20)
    assert seen == [1, 1]  # what a layer's own new value becomes, for the seams that look at it


@pytest.mark.parametrize("core", ["double_attention", "sinks", "kv_shift", "tied_ra", "differential_attention"])
@pytest.mark.parametrize("transform", MODULES)
def test_other_cores_decode_from_codes_as_well(tiny, transform, core):
    keys = ("model.n_embd=32", f"patch.{core}.enabled=true", f"patch.kv_splice.transform={transform}")
    model = build(tiny("gpt2", *keys)).double().eval()
    fit_briefly(model, tokens_of(32, rows=5, seed=7))
    assert all(cache.code is not PLAIN for cache in model.new_caches())
    torch.testing.assert_close(decode(model, tokens_of(24)), model.logits(tokens_of(24)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("transform", MODULES)
@pytest.mark.parametrize("state", [(1.0, 0.0), (0.0, 1.0)], ids=["unfitted", "closed"])
def test_unfitted_or_closed_it_is_the_base_to_the_bit(model_of, transform, state):
    model, tokens = model_of(transform=transform), tokens_of(24)
    for value in values_of(model):
        value.s.fill_(state[0])
        value.fitted.fill_(state[1])
    assert {cache.code for cache in model.new_caches()} == {PLAIN}
    logits, decoded = model.logits(tokens), decode(model, tokens)
    for block in model.blocks:
        block.attn.value = Value()
    assert torch.equal(model.logits(tokens), logits)
    torch.testing.assert_close(decoded, logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("transform", MODULES)
def test_a_stored_model_is_fitted_as_it_was(model_of, transform, tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = model_of(transform=transform), model_of(transform=transform, fit=False)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert all(value.fitted == 1 and value.mean.dtype == torch.float64 for value in values_of(other))
    assert torch.equal(model.logits(tokens_of(24)), other.logits(tokens_of(24)))


def test_it_is_buffers_that_are_fitted_and_gradients_reach_everything_else(model_of):
    model = model_of().train()
    assert not list(values_of(model)[0].parameters())
    model(tokens_of(23), tokens_of(23, seed=1)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


# -- what it is fitted to ---------------------------------------------------------------------------------------


def test_samples_are_the_values_that_evaluation_makes(tiny):
    model = build(tiny("gpt2", "patch.kv_splice.enabled=true", "model.dropout=0.5")).double()
    sites = {site: model.get_submodule(site) for site in model.claimed}
    tokens, seen = tokens_of(32, rows=3), []
    drawn = _inputs(model, sites, tokens, share=1, rows=2, precision=None, generator=torch.Generator())
    assert model.training
    values_of(model.eval())[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.logits(tokens)
    ours, theirs = drawn["blocks.1.attn.value"], seen[0].transpose(0, 1).flatten(1, 2)  # [H, B T, D]
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours.sum(1), theirs.sum(1))
    assert {tuple(v.tolist()) for v in ours[0].round(decimals=4)} == {
        tuple(v.tolist()) for v in theirs[0].round(decimals=4)
    }


def test_a_reservoir_holds_each_position_alike_and_no_more_than_it_should():
    generator, held = torch.Generator().manual_seed(0), torch.zeros(30)
    for _ in range(400):
        reservoir = _Reservoir(6)
        for start in (0, 10, 20):
            x = torch.arange(start, start + 10.0).view(1, 1, 10, 1).expand(1, 2, 10, 3)
            reservoir.add(x, torch.rand(10, generator=generator))
            assert reservoir.vectors.shape[1] <= 6
        held[reservoir.vectors[0, :, 0].long()] += 1
    assert held.sum() == 2400
    assert (held - 80).abs().max() < 35  # 80 +- 8


# -- in a run ---------------------------------------------------------------------------------------------------


def run(manifest, folder, *, stop=None):
    """An engine, and the events of one session that ends, if it does so early, while step `stop` is prepared."""
    seen = []
    engine = Engine(manifest, checkpoints=folder, device=torch.device("cpu"), emit=seen.append)
    draw = engine.setup.sampler.batch

    def drawing(step):
        if step == stop:
            raise SystemExit
        return draw(step)

    engine.setup.sampler.batch = drawing
    with contextlib.suppress(SystemExit):
        engine.run()
    return engine, seen


@pytest.fixture(autouse=True)
def short_sample(monkeypatch):
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    yield
    torch.use_deterministic_algorithms(False)


def fits(seen):
    return [event.step for event in seen if isinstance(event, Fitted)]


def newest(folder):
    found, _, _ = load_newest(folder)
    assert found
    return found.model


def test_it_is_fitted_where_it_opens_and_again_as_often_as_the_manifest_says(tiny, tmp_path):
    engine, seen = run(tiny("c1", *RUN, *SPLICE), tmp_path)
    assert fits(seen) == [6, 9]
    assert not [event for event in seen if isinstance(event, Notice)]
    assert engine.part(Fitting).sampler.tokens is engine.data.train
    assert all(value.fitted == 1 for value in values_of(engine.model))
    told = next(event for event in seen if isinstance(event, Fitted))
    assert 0 < told.error <= told.error_of_pca < 1


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        (("patch.kv_splice.activation={kind='at_once'}", "patch.kv_splice.refit={fraction=0.25}"), [3, 6, 9]),
        (("patch.kv_splice.activation.after={fraction=0.3}", "patch.kv_splice.refit={fraction=0.5}"), [4, 10]),
    ],
)
def test_no_untrained_net_is_fitted_to_and_fractions_are_of_the_budget(tiny, tmp_path, keys, steps):
    assert fits(run(tiny("c2", *RUN, *SPLICE, *keys), tmp_path)[1]) == steps


@pytest.mark.parametrize("at", [6, 8, 11])
def test_a_run_that_was_killed_is_fitted_to_the_same_bits(tiny, tmp_path, at):
    manifest = tiny("c1", *RUN, *SPLICE, "checkpoint.every=2")
    run(manifest, tmp_path / "whole")
    run(manifest, tmp_path / "parts", stop=at)
    _, seen = run(manifest, tmp_path / "parts")
    assert fits(seen) == [step for step in (6, 9) if step >= at - at % 2]
    whole, parts = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_no_fit_recompiles_anything(tiny, tmp_path):
    torch._dynamo.reset()
    keys = ("compile.scope=block", "compile.backend=aot_eager", "model.n_layer=1")
    opens = "patch.kv_splice.activation={kind='after', after={steps=6}}"
    _, seen = run(tiny("gpt2", *RUN, *SPLICE, *keys, opens), tmp_path)
    windows = [event for event in seen if isinstance(event, Window)]
    assert fits(seen) == [6, 9]
    assert (windows[-1].step, windows[-1].recompiles) == (12, 0)
    torch._dynamo.reset()


def test_two_processes_get_the_fit_of_the_first_and_it_is_that_of_one_alone(tmp_path):
    keys = (*RUN, *SPLICE, "compile.scope=off", "model.n_layer=1", "patch.kv_splice.transform=pca")
    plain = [key for key in keys if "epochs" not in key]
    sets = [word for key in plain for word in ("--set", key)]
    tasks = [
        [count, ["c1", "--scale", "tiny", "--device", "cpu", *sets, "--out", str(tmp_path / str(count))], None]
        for count in (1, 2)
    ]
    gang = Path(__file__).parents[1] / "machine" / "gang.py"
    done = subprocess.run(
        [sys.executable, gang, json.dumps(tasks), "float64"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    _, two = json.loads(done.stdout)
    assert two["codes"] == [0, 0]
    assert len(set(two["weights"])) == 1  # buffers too
    alone, shared = (newest(next((tmp_path / str(count)).glob("*/s1")) / "checkpoints") for count in (1, 2))
    name = "blocks.0.attn.value.mean"
    torch.testing.assert_close(alone[name], shared[name], rtol=0, atol=1e-11)
    assert alone["blocks.0.attn.value.fitted"] == shared["blocks.0.attn.value.fitted"] == 1


def test_what_is_not_finite_is_not_fitted_to(tiny, tmp_path):
    engine = Engine(tiny("c1", *RUN), checkpoints=tmp_path, device=torch.device("cpu"), emit=lambda event: None)
    with torch.no_grad():
        engine.model.get_parameter("blocks.0.attn.qkv.weight")[-1].fill_(float("inf"))
    with pytest.raises(DivergedError, match=r"cannot be fitted at step 0: the input of .* is not finite"):
        list(engine.part(Fitting).fit("kv_splice", Position(0, 0.0)))


def test_a_run_that_never_fits_it_says_so(tiny, tmp_path):
    _, seen = run(tiny("gpt2", "patch.kv_splice.refit=never", "train.budget.steps=2", "eval.windows=2"), tmp_path)
    (notice,) = [event for event in seen if isinstance(event, Notice)]
    assert "patch.kv_splice was never fitted: it is the base model, and compresses nothing" in notice.message


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["channels=16"], "channels must be below n_embd / n_head = 16, got 16"),
        (["channels=0"], "channels"),
        (["channels=1.5"], "channels"),
        (["vectors=31"], "vectors must be at least twice n_embd / n_head = 16, got 31"),
        (["refit={steps=0}"], "refit must be above 0"),
        (["transform=pca", "knots=9"], "has no knots and no epochs"),
        (["knots=1"], "knots"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, keys, message):
    with pytest.raises(ManifestError, match=message):
        build(tiny("c1", *(f"patch.kv_splice.{key}" for key in keys)), device="meta")


# -- after training ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of runs in which a small V19 has ended."""
    out = tmp_path_factory.mktemp("runs")
    keys = (*RUN, "compile.scope=off", "model.n_layer=1", "train.budget.steps=8")
    words = [word for key in keys for word in ("--set", key)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
        assert main(["v19", "--scale", "tiny", "--device", "cpu", "--out", str(out), *words]) == 0
    return out


def calibrated(ratrain, out, *words):
    """(code, the last event of each name, stderr) of a calibration; notices as a list under "Notices"."""
    words = (*words, "--set", "patch.kv_splice.vectors=64")
    code, told, err = ratrain("calibrate", "v19", "--out", out, "--device", "cpu", "--json", *words)
    lines = [json.loads(line) for line in told.splitlines()]
    events = {line["event"]: line for line in lines if "event" in line}
    notices = [line["message"] for line in lines if line.get("event") == "Notice"]
    return code, {**events, "Notices": notices} if events else {}, err


def test_calibrating_makes_a_run_with_the_same_weights_and_a_smaller_cache(ratrain, finished):
    parent = next(finished.glob("v19-*/s1"))
    code, told, err = calibrated(ratrain, finished, "--channels", "0.25")
    assert (code, err) == (0, "")
    (folder,) = finished.glob(f"spliced-v19-tiny-*/s1-from-{told['Branched']['run_hash'][:8]}-8")
    assert json.loads((folder / "parent.json").read_text())["run"] == str(parent.relative_to(finished))
    old, new = newest(parent / "checkpoints"), newest(folder / "checkpoints")
    own = {name for name in new if name.startswith("blocks.0.attn.value.")}
    assert set(new) - own == set(old)
    assert all(torch.equal(old[name], new[name]) for name in old)
    fitted, loss = told["Fitted"], told["Evaluated"]["loss"]
    assert 0 < fitted["error"] <= fitted["error_of_pca"] < 1
    torch.testing.assert_close(new["blocks.0.attn.value.lost"].mean(), torch.tensor(fitted["error"]))
    before = json.loads((parent / "state.json").read_text())["loss"]
    assert told["Notices"][0] == f"validation loss {before:.4f} before the fit"
    _, model = load_run(folder, device=torch.device("cpu"), warn=pytest.fail)
    assert all(cache.code is values_of(model)[0] for cache in model.new_caches())
    assert told["RunEnded"]["loss"] == loss != before
    code, out, _ = ratrain("sample", "spliced-v19", "--out", finished, "--tokens", 3)
    assert code == 0
    assert out


def test_plain_pca_is_told_beside_the_spline_as_by_a_calibration_of_its_own(ratrain, finished):
    _, spline, _ = calibrated(ratrain, finished, "--channels", "0.125")
    _, pca, _ = calibrated(ratrain, finished, "--channels", "0.125", "--transform", "pca")
    assert spline["Notices"][1] == f"validation loss {pca['Evaluated']['loss']:.4f} by plain PCA in as many channels"
    assert len(pca["Notices"]) == 1


def test_calibrating_twice_is_done_and_other_options_are_other_runs(ratrain, finished):
    for words in (("--transform", "pca"), ("--channels", "3", "--set", "patch.kv_splice.objective=value")):
        assert calibrated(ratrain, finished, *words)[0] == 0
    there = set(finished.glob("spliced-v19-*/s1-*"))
    code, told, _ = calibrated(ratrain, finished, "--transform", "pca")
    assert (code, told) == (0, {})
    assert set(finished.glob("spliced-v19-*/s1-*")) == there


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--channels", "16"), 78, "channels must be below n_embd / n_head = 16, got 16"),
        (("--transform", "svd"), 78, "svd"),
        (("--set", "patch.kv_splice.vectors=9"), 78, "vectors must be at least twice n_embd / n_head = 16, got 9"),
        (("--set", "patch.value_residual.enabled=true"), 78, "claimed"),
        (("--set", "patch.kv_splice.target=blocks.*.attn.values"), 78, "matches no part of the model"),
        (("--set", "model.n_embd=64"), 65, "does not fit the model: "),
    ],
)
def test_what_cannot_be_calibrated_is_told_in_one_message(ratrain, finished, words, code, message):
    there = set(finished.glob("*/*"))
    found, _, err = ratrain("calibrate", "v19", "--out", finished, "--device", "cpu", *words)
    assert (found, message in err) == (code, True), err
    assert not {path for path in set(finished.glob("*/*")) - there if (path / "checkpoints").exists()}


def test_a_run_that_is_not_there_or_holds_nothing_is_told(ratrain, finished, tmp_path):
    assert ratrain("calibrate", "v3", "--out", finished)[0] == 66
    empty = tmp_path / "v19-tiny-0" / "s1"
    empty.mkdir(parents=True)
    (empty / "resolved.toml").write_bytes(next(finished.glob("v19-*/s1/resolved.toml")).read_bytes())
    code, _, err = ratrain("calibrate", "v19", "--out", tmp_path)
    assert (code, "has no checkpoint" in err) == (66, True)
