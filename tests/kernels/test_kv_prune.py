"""Pruned attention as operations: the definition, the op, the interpreted kernel, and the patch that they serve."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as fuzzed
from hypothesis import settings
from hypothesis import strategies as st

from ratrain.kernels.kv_prune import best, decode_kept, keep, op, pruned_attention, reference
from ratrain.patches.kv_prune import Budget, KVPrune, LearnedCore, PrunedCore

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))
SHAPES = [(1, 1, 1, 32), (2, 2, 40, 32), (1, 3, 65, 64), (1, 1, 130, 128)]


def drawn(shape=(2, 3, 40, 8), dtype=torch.float64):
    """q, k, v [B, H, T, D] as views of one projection."""
    batch, n_head, n_token, head_dim = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, n_token, 3, n_head, head_dim, generator=generator, dtype=torch.float64).to(dtype)
    return [x.detach().requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4)]


def plan(n_token, *, block=16, share=0.4, recency=2):
    """counts and recent at the end of each block but the last."""
    ends = range(block, n_token, block)
    return {"counts": [max(1, round(share * end)) for end in ends], "recent": [recency for _ in ends], "block": block}


def shares(n_head, n_token, *, block=16, dtype=torch.float32):
    """Counts [H, R - 1], not rounded, of heads that keep unlike shares."""
    ends = block * torch.arange(1, -(-n_token // block), dtype=dtype)
    return torch.linspace(0.2, 0.9, n_head, dtype=dtype)[:, None] * ends


def kept_by(q, k, **options):
    return keep(q, k, **plan(q.shape[2]), **options)


# -- the definition -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [False, True])
def test_as_many_stay_as_asked_and_what_has_left_never_returns(both):
    q, k, _ = drawn()
    kept = kept_by(q, k, both=both)
    assert torch.equal(kept.by_life, kept.life.argsort(dim=-1, stable=True).int())
    for r, (count, left, end) in enumerate(zip([6, 13], [10, 9], [16, 32], strict=True)):
        assert ((kept.life > end)[..., :end].sum(-1) == count).all()
        assert (kept.held[:, :, r + 1] == count).all()
        listed = kept.listed[:, :, r + 1]
        assert ((listed < 40).sum(-1) == count + left).all()
        for part, stays in ((listed[..., :count], True), (listed[..., count : count + left], False)):
            assert torch.equal(part.sort(-1).values, part)
            assert ((kept.life.gather(-1, part.long()) > end) == stays).all()


def test_nobody_looks_ahead():
    q, k, _ = drawn()
    life = kept_by(q, k, both=True).life
    changed = [x.detach().clone() for x in (q, k)]
    for x in changed:
        x[:, :, 32:] += 1
    other = kept_by(*changed, both=True).life
    assert torch.equal(life[..., :32].clamp(max=33), other[..., :32].clamp(max=33))


def test_keeping_all_is_plain_attention():
    q, k, v = drawn()
    everything = {"counts": [16, 32], "recent": [0, 0], "block": 16}
    kept = keep(q, k, **everything)
    y = pruned_attention(q, k, v, kept, block=16)
    torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_switched_off_all_stay():
    q, k, v = drawn()
    off = torch.zeros((), dtype=torch.float32)
    kept = kept_by(q, k, active=off)
    y = pruned_attention(q, k, v, kept, block=16, active=off)
    torch.testing.assert_close(y, F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("mode", ["v_only", "kv"])
@pytest.mark.parametrize("rule", ["mass", "window", "random"])
def test_it_is_what_the_patch_computes(tiny, mode, rule):
    spec = tiny("gpt2", "model.block_size=40", "model.n_embd=24", "model.n_head=3").model
    core = PrunedCore(spec, KVPrune(mode=mode, rule=rule), Budget(0.4, recency=3, sinks=2), block=16).eval()
    core.reset_parameters(torch.Generator().manual_seed(0))
    q, k, v = (x.detach() for x in drawn((2, 3, 40, 8)))
    counts = [core.budget.at(16), core.budget.at(32)]
    recent = [core.budget.recent_at(16, 40), core.budget.recent_at(32, 40)]
    order = {"mass": None, "window": torch.arange(40.0).expand(3, 40) / 40}.get(rule, getattr(core, "noise", None))
    options = {"counts": counts, "block": 16}
    kept = keep(q, k, recent=recent, sinks=2, order=order, both=mode == "kv", **options)
    torch.testing.assert_close(pruned_attention(q, k, v, kept, block=16), core(q, k, v))


def test_the_stated_gradients_are_those_of_autograd():
    q, k, v = drawn((1, 2, 20, 4))
    options = {"counts": [5, 7], "block": 8}
    kept = keep(q, k, recent=[2, 2], **options)
    assert torch.autograd.gradcheck(lambda *x: pruned_attention(*x, kept, block=8), (q, k, v))


@pytest.mark.parametrize("learned", [False, True])
def test_the_ops_keep_torchs_rules(learned):
    keeps_torchs_rules(learned=learned, head_dim=8)


@pytest.mark.interpreter
@pytest.mark.parametrize("learned", [False, True])
def test_the_kernels_keep_torchs_rules(learned):
    keeps_torchs_rules(learned=learned, head_dim=32)


def keeps_torchs_rules(*, learned, head_dim):
    q, k, v = drawn((2, 3, 40, head_dim), torch.float32)
    active, options = torch.ones(()), plan(40)
    counts = shares(3, 40).requires_grad_() if learned else None
    numbers = (counts.detach().ceil().int(), []) if learned else (None, options["counts"])
    chosen = q.detach(), k.detach(), None, active, *numbers, options["recent"], 16, 0, True, False, learned, 0.3
    torch.library.opcheck(op._keep, chosen)
    kept = op._keep(*chosen)
    torch.library.opcheck(op._attend, (q, k, v, *kept, active, counts, 16, 0.1, 0.3))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"counts": [6], "recent": [2, 2]}, "2 blocks end before the last, got 1 counts"),
        ({"counts": [6, 33], "recent": [2, 2]}, "from 1 to the tokens so far"),
        ({"counts": [6, 9], "recent": [2, 2], "order": torch.zeros(3, 39)}, r"order must be \[H, T\]"),
        ({"counts": torch.ones(2, 2), "recent": [2, 2]}, r"counts must be floating point \(3, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(options, told):
    q, k, _ = drawn()
    with pytest.raises(ValueError, match=told):
        keep(q, k, block=16, **options)


# -- learned counts -----------------------------------------------------------------------------------------------


def learning(tiny, *, n_token, block, dtype=torch.float64, n_head=3, head_dim=32, **options):
    """A LearnedCore whose heads keep unlike shares, and q, k, v [2, H, T, D]."""
    shape = f"model.block_size={n_token}", f"model.n_embd={n_head * head_dim}", f"model.n_head={n_head}"
    options = KVPrune(learned={"target": 0.4, "softness": 0.1}, **options)
    core = LearnedCore(tiny("gpt2", *shape).model, options, Budget(0.4, recency=2, sinks=1), block=block)
    core.reset_parameters(torch.Generator().manual_seed(0))
    core.gradual = False
    with torch.no_grad():
        core.ratio.copy_(torch.linspace(-1.3, 2.1, n_head))
    return core.to(dtype), drawn((2, n_head, n_token, head_dim), dtype)


def with_gradients(run, core, inputs):
    """What `run` returns, and its gradients in the inputs and in the ratio of the core."""
    y = run(*inputs)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return y, *torch.autograd.grad(y, (*inputs, core.ratio), grad, materialize_grads=True)  # one block needs no ratio


LEARNED = [(40, 16), (65, 16), (33, 7), (20, 40)]


@pytest.mark.parametrize("rule", ["mass", "window"])
@pytest.mark.parametrize(("n_token", "block"), LEARNED[:-1])
def test_learned_counts_have_the_gradient_of_the_patchs_algebra(tiny, n_token, block, rule):
    core, inputs = learning(tiny, n_token=n_token, block=block, rule=rule, recency=2)
    wanted = with_gradients(core, core, inputs)  # in float64: the algebra
    assert (wanted[-1].abs() > 1e-3).all()
    for found, expected in zip(with_gradients(core._fused, core, inputs), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_learned_counts_that_are_switched_off_have_no_gradient(tiny):
    core, inputs = learning(tiny, n_token=40, block=16)
    core.s.zero_()
    y, *_, d_ratio = with_gradients(core._fused, core, inputs)
    torch.testing.assert_close(y, F.scaled_dot_product_attention(*inputs, is_causal=True))
    assert not d_ratio.any()


def test_learned_counts_need_places():
    q, k, v = drawn(dtype=torch.float32)
    counts = shares(3, 40)
    kept = keep(q, k, counts=counts, recent=[2, 2], block=16)
    with pytest.raises(ValueError, match="counts need a softness above 0 and places"):
        pruned_attention(q, k, v, kept, block=16, counts=counts, softness=0.1)


# -- decoding -----------------------------------------------------------------------------------------------------


def cached(shape=(2, 3, 21, 8), *, n_query=1, share=0.5, dtype=torch.float64, room=4):
    """What `decode_kept` takes: the newest queries, and a cache in storage that has room for more tokens."""
    batch, n_head, n_key, head_dim = shape
    generator = torch.Generator().manual_seed(0)

    def drawn(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    n_value = max(1, round(share * n_key))
    q, keys = drawn(batch, n_head, n_query, head_dim), drawn(batch, n_head, n_key + room, head_dim)[:, :, :n_key]
    values, mass = (drawn(batch, n_head, n_value + room, d)[:, :, :n_value] for d in (head_dim, 1))
    wide = torch.promote_types(dtype, torch.float32)
    order = torch.rand(batch, n_head, n_key, generator=generator).argsort(-1)
    places = order[:, :, :n_value].sort(-1).values
    weight = (torch.rand(batch, n_head, n_value, generator=generator) < 0.7).to(wide)
    weight[:, :, 0] = 1.0
    given = {"q": q.to(dtype), "keys": keys.to(dtype), "values": values.to(dtype), "mass": mass[..., 0].abs().to(wide)}
    return {**given, "places": places, "weight": weight}


@pytest.mark.parametrize("n_query", [1, 4])
def test_decoding_is_attention_over_what_is_there(n_query):
    given = cached(n_query=n_query)
    before = given["mass"].clone()
    y, spent = decode_kept(**given, renormalise=True)
    for b, h, i in itertools.product(range(2), range(3), range(n_query)):
        last = 21 - n_query + i
        scores = given["keys"][b, h, : last + 1] @ given["q"][b, h, i] / 8**0.5
        probs = F.pad(scores.softmax(0), (0, 20 - last))[given["places"][b, h]]
        held = probs * given["weight"][b, h]
        torch.testing.assert_close(spent[b, h, i], held.sum())
        torch.testing.assert_close(y[b, h, i], held @ given["values"][b, h] / held.sum())
        before[b, h] += probs
    torch.testing.assert_close(given["mass"], before)


def test_decoding_keeps_torchs_rules():
    given = cached()
    torch.library.opcheck(op._decode, (*given.values(), True, 0.3))


@pytest.mark.parametrize(
    ("name", "told"),
    [("keys", "keys .* do not fit q"), ("values", r"values must be \(2, 3, 10\) first"), ("mass", "mass must be")],
)
def test_a_cache_that_does_not_fit_is_refused(name, told):
    given = cached()
    with pytest.raises(ValueError, match=told):
        decode_kept(**{**given, name: given[name][:, :1]})


# -- the kernel ---------------------------------------------------------------------------------------------------


def as_listed(life, block=16):
    """The first four of `Kept`."""
    return life, *reference.listed(life, block), life.argsort(dim=-1, stable=True).int()


def chosen_by_reference(q, k, *, options, both, order, exposure):
    rest = {"block": 16, "sinks": 1, "exposure": exposure, "both": both, "scale": q.shape[-1] ** -0.5}
    return reference.keep(q.double(), k.double(), order, counts=options["counts"], recent=options["recent"], **rest)[0]


@pytest.mark.interpreter
@pytest.mark.parametrize("both", [False, True], ids=["v_only", "kv"])
@pytest.mark.parametrize("exposure", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_keeps_whom_the_reference_keeps(shape, both, exposure, ordered):
    q, k, _ = (x.detach() for x in drawn(shape, torch.float32))
    order = torch.rand(shape[1:3], generator=torch.Generator().manual_seed(2)) if ordered else None
    options = plan(shape[2])
    kept = keep(q, k, sinks=1, order=order, both=both, exposure=exposure, **options)
    life = chosen_by_reference(q, k, options=options, both=both, order=order, exposure=exposure)
    for found, wanted in zip(kept, as_listed(life), strict=False):
        assert torch.equal(found, wanted)


def near(found, expected, bounds):
    """Each of `found` by its name in `bounds`: y, and the gradients in q, k, v and counts."""
    for (name, bound), one, exact in zip(bounds.items(), found, expected, strict=True):
        rounding.check(one, exact, bound, name)


def bounds_of(exact, life, grad=None):
    """Of y, and where `grad` is given of the gradients in q, k and v; all in float64."""
    q, k, v = exact
    n_token = q.shape[2]
    hidden = torch.arange(n_token)[:, None] >= life[:, :, None]
    found = rounding.attention_bounds(
        torch.zeros_like(v) if grad is None else grad, q, k, v, scale=q.shape[-1] ** -0.5, hidden=hidden
    )
    return {name: found[name] for name in ("y", "q", "k", "v")[: 1 if grad is None else 4]}


def counts_bound(grad, exact, life, listed, place, counts, *, block, softness, scale):
    """Of the gradient in counts: `reference.d_counts` with the squares of its terms for their sums."""
    q, k, v = exact
    n_token = q.shape[2]
    later = torch.ones(n_token, n_token, dtype=torch.bool).triu(1)
    scores = scale * q @ k.mT
    gone = later | (torch.arange(n_token)[:, None] >= life[:, :, None])
    odds = (scores - scores.masked_fill(gone, float("-inf")).logsumexp(-1, keepdim=True)).exp().masked_fill(later, 0)
    y = reference.forward(q, k, v, life, scale)
    terms = odds**2 * (rounding.squares(grad, v.mT) + (grad * y).square().sum(-1, keepdim=True))
    sums = []
    for r in range(1, listed.shape[2]):
        at = listed[:, :, r].clamp(max=n_token - 1).long()
        soft = ((counts[:, r - 1, None] - place[:, :, r] - 0.5) / (softness * r * block)).sigmoid()
        slope = soft * (1 - soft) / (softness * r * block) * (listed[:, :, r] < n_token)
        of_row = terms[:, :, r * block : (r + 1) * block].sum(2).gather(-1, at)
        sums.append((slope**2 * of_row).sum((0, 2)))
    # an absolute error of a score is a relative one of its odds; a sigmoid's argument is up to 1 / softness
    size = (scale**2 * rounding.squares(q, k.mT)).sqrt().max().item() + 1 / softness
    relative = rounding.DEVIATIONS * (1 + size) * rounding.spread(sum(q.shape[2:]))
    return relative * torch.stack(sums, dim=1).sqrt() if sums else torch.zeros_like(counts)


@pytest.mark.interpreter
@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_attends_as_the_reference(shape, share):
    q, k, v = drawn(shape, torch.float32)
    options = plan(shape[2], share=share, recency=1)
    kept = keep(q, k, **options)
    y, life = pruned_attention(q, k, v, kept, block=16), kept.life
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    exact = [x.detach().double() for x in (q, k, v)]
    scale = shape[-1] ** -0.5
    wanted = reference.forward(*exact, life, scale), *reference.backward(grad.double(), *exact, life, scale)
    near((y, *torch.autograd.grad(y, (q, k, v), grad)), wanted, bounds_of(exact, life, grad.double()))


@pytest.mark.interpreter
@settings(max_examples=8, deadline=None, derandomize=True)
@fuzzed(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 90), st.sampled_from([7, 16, 40]), st.floats(0.05, 1),
    st.booleans(),
)  # fmt: skip
def test_the_kernels_are_the_reference_at_any_shape(batch, n_head, n_token, block, share, both):
    q, k, v = drawn((batch, n_head, n_token, 32), torch.float32)
    options = plan(n_token, block=block, share=share, recency=1)
    kept = keep(q, k, both=both, **options)
    exact = [x.detach().double() for x in (q, k, v)]
    rest = {"sinks": 0, "exposure": True, "both": both, "scale": 32**-0.5}
    life, _ = reference.keep(exact[0], exact[1], None, **options, **rest)
    for found, wanted in zip(kept, as_listed(life, block), strict=False):
        assert torch.equal(found, wanted)
    y, expected = pruned_attention(q, k, v, kept, block=block), reference.forward(*exact, life, 32**-0.5)
    near([y], [expected], bounds_of(exact, life))


def decode_bounds(given, expected, *, renormalise):
    """Of y; of what is spent and of the mass, sums of terms of one sign, the mass with one addition more."""
    q, keys, values = (given[name] for name in ("q", "keys", "values"))
    scale, unit = q.shape[-1] ** -0.5, rounding.UNIT[torch.float32]
    scores = (scale * q @ keys.mT).softmax(-1)
    score = (scale**2 * rounding.squares(q, keys.mT)).sqrt().max().item()
    relative = rounding.DEVIATIONS * (1 + score) * rounding.spread(q.shape[-1] + keys.shape[2])
    probs = scores if given["places"] is None else scores.gather(3, given["places"][:, :, None])
    probs = probs if given["weight"] is None else probs * given["weight"][:, :, None]
    spent = expected[1]
    size = rounding.squares(probs, values).sqrt() / (spent[..., None] if renormalise else 1)
    # where it is divided by what is spent, the error of that has its sign for all terms
    of_y = relative * (size + (expected[0].abs() if renormalise else 0))
    return {"y": of_y, "spent": relative * spent, "mass": relative * expected[2] + unit * expected[2]}


@pytest.mark.interpreter
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("both", [False, True], ids=["v_only", "kv"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (2, 3, 33, 64), (1, 2, 300, 128)], ids=str)
def test_the_kernel_decodes_as_the_reference(shape, both, renormalise):
    given = cached(shape, share=1.0 if both else 0.4, dtype=torch.float32)
    if both:
        given |= {"places": None, "weight": None}
    exact = {name: x.double() if x is not None and x.is_floating_point() else x for name, x in given.items()}
    grown = exact.pop("mass")
    y, spent = decode_kept(**given, renormalise=renormalise)
    wanted = reference.decode(**exact, renormalise=renormalise, scale=shape[-1] ** -0.5)
    expected = wanted[0], wanted[1], grown + wanted[2]
    near((y, spent, given["mass"]), expected, decode_bounds(exact, expected, renormalise=renormalise))


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernels_learn_counts_as_the_reference(shape):
    q, k, v = drawn(shape, torch.float32)
    counts, n_end = shares(*shape[1:3]).requires_grad_(), -(-shape[2] // 16) - 1
    kept = keep(q, k, counts=counts, recent=[2] * n_end, block=16, ranked=True)
    exact, scale = [x.detach().double() for x in (q, k, v)], shape[-1] ** -0.5
    rest = {"recent": [2] * n_end, "block": 16, "sinks": 0, "exposure": True, "both": False, "scale": scale}
    life, place = reference.keep(*exact[:2], None, counts=counts.detach().ceil().int(), **rest)
    listed = as_listed(life)
    wanted = *listed, F.pad(place, (0, 1), value=shape[2]).gather(-1, listed[1].long())
    assert all(torch.equal(found, expected) for found, expected in zip(kept, wanted, strict=True))
    y = pruned_attention(q, k, v, kept, block=16, counts=counts, softness=0.1)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    shown = {"block": 16, "softness": 0.1, "scale": scale}
    given = grad.double(), *exact, life
    d_counts = reference.d_counts(*given, listed[1], wanted[-1], counts.detach().double(), **shown)
    stated = reference.forward(*exact, life, scale), *reference.backward(*given, scale), d_counts
    bounds = bounds_of(exact, life, grad.double())
    bounds["counts"] = counts_bound(
        grad.double(), exact, life, listed[1], wanted[-1], counts.detach().double(), **shown
    )
    near((y, *torch.autograd.grad(y, (q, k, v, counts), grad)), stated, bounds)


def learned_bounds(core, inputs, n_token, block):
    """Of what `with_gradients` returns."""
    counts = [core.counts(end) for end in range(block, n_token, block)]
    slopes = [torch.autograd.grad(count.sum(), core.ratio)[0].abs() for count in counts]
    counts = torch.stack(counts, dim=1).detach() if counts else core.ratio.new_empty(len(core.ratio), 0)
    q, k, v = (x.detach() for x in inputs)
    kept = core._keep(q, k, counts, ranked=True)
    exact = [x.double() for x in (q, k, v)]
    grad = torch.randn(v.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shown = {"block": block, "softness": core.learned.softness, "scale": q.shape[-1] ** -0.5}
    of_counts = counts_bound(grad, exact, kept.life, kept.listed, kept.place, counts.double(), **shown)
    of_ratio = sum((of_counts[:, r] * slope for r, slope in enumerate(slopes)), torch.zeros(len(core.ratio)))
    return {**bounds_of(exact, kept.life, grad), "ratio": of_ratio}


@pytest.mark.interpreter
@pytest.mark.parametrize("rule", ["mass", "window", "random"])
@pytest.mark.parametrize(("n_token", "block"), LEARNED)
def test_a_learned_core_runs_by_the_kernels(tiny, n_token, block, rule):
    sizes = {"n_token": n_token, "block": block, "rule": rule}
    core, inputs = learning(tiny, dtype=torch.float32, **sizes)
    exact, _ = learning(tiny, **sizes)
    assert core._fuses(inputs[0])
    wanted = with_gradients(exact, exact, [x.detach().double().requires_grad_() for x in inputs])
    bounds = learned_bounds(core, inputs, n_token, block)
    near(with_gradients(core, core, inputs), wanted, bounds)
    with torch.no_grad():
        near([core(*inputs)], wanted[:1], {"y": bounds["y"]})


@pytest.mark.interpreter
def test_a_learned_core_is_one_graph_without_sorts_whatever_its_ratio(tiny):
    core, inputs = learning(tiny, n_token=40, block=16, dtype=torch.float32)
    graphs = []
    compiled = torch.compile(core, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for s, ratio in ((1.0, 0.3), (0.0, 0.3), (1.0, -0.2)):
        core.s.fill_(s)
        core.ratio.data.fill_(ratio)
        compiled(*inputs)
    assert len(graphs) == 1
    called = {str(node.target) for node in graphs[0].graph.nodes}
    assert {"ratrain.kv_keep.default", "ratrain.pruned_attention.default"} <= called
    assert not any(word in name for name in called for word in ("sort", "kv_best"))


@pytest.mark.interpreter
def test_switched_off_the_kernels_keep_all():
    q, k, v = drawn((1, 2, 40, 32), torch.float32)
    off = torch.zeros(())
    kept = kept_by(q, k, active=off)
    assert (kept.life == 40).all()
    y = pruned_attention(q, k, v, kept, block=16, active=off)
    exact = [x.detach().double() for x in (q, k, v)]
    near([y], [F.scaled_dot_product_attention(*exact, is_causal=True)], bounds_of(exact, kept.life))


def test_the_best_of_each_head_are_those_of_a_plain_sort_and_of_equals_the_first():
    order = torch.randint(0, 5, (2, 3, 11), generator=torch.Generator().manual_seed(0)).double()
    order[0, 0, 4:] = float("-inf")
    keep = torch.tensor([1.0, 4.0, 11.0])
    stays, place = best(order, keep)
    for b, h in itertools.product(range(2), range(3)):
        ranked = sorted(range(11), key=lambda i: (-order[b, h, i].item(), i))
        assert place[b, h].tolist() == [ranked.index(i) for i in range(11)]
        assert stays[b, h].nonzero().flatten().tolist() == sorted(ranked[: int(keep[h])])
    torch.testing.assert_close(best(order, 4)[0][:, 1], stays[:, 1], rtol=0, atol=0)
    torch.library.opcheck(op._best, (order, 4, None))
    torch.library.opcheck(op._best, (order, 0, keep))
