"""Reciprocal attention: its definition, the op, and the kernel under Triton's interpreter against both."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as fuzzed
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from ratrain.kernels import placement
from ratrain.kernels.placement import check_kernel
from ratrain.kernels.ra_attention import op, ra_attention, reference
from ratrain.kernels.tuning import Tile, trial


def drawn(
    shape=(2, 3, 17, 8), dtype=torch.float64, *, tied=True, bias=True, alpha=True, packed=False
) -> dict[str, Any]:
    """What ra_attention takes, all of it wanting a gradient; packed: q, k, v as views of one projection."""
    generator = torch.Generator().manual_seed(0)
    batch, n_head, n_token, head_dim = shape
    wide = torch.promote_types(dtype, torch.float32)

    def normal(*sizes, dtype=wide):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    qkv = normal(batch, n_token, 3, n_head, head_dim, dtype=dtype)
    q, k, v = (x if packed else x.contiguous() for x in qkv.permute(2, 0, 3, 1, 4))
    given = {"q": q, "k": k, "v": v, "gate": 1 + 0.3 * normal(n_head, head_dim)}
    given["w_r"] = normal(n_head) if tied else None
    given["bias"] = normal(batch, n_head, n_token) if bias else None
    given["alpha"] = torch.rand(n_head, generator=generator, dtype=torch.float64).to(wide) if alpha else None
    return {name: None if x is None else x.detach().requires_grad_() for name, x in given.items()}


def tensors(given):
    return [x for x in given.values() if x is not None]


ONE_WAY = {"tied": False, "bias": False, "alpha": False}
EACH = [dict(tied=t, bias=b, alpha=a) for t in (False, True) for b in (False, True) for a in (False, True)]  # noqa: C408


def test_gates_of_one_are_plain_attention():
    given = drawn(**ONE_WAY)
    plain = ra_attention(given["q"], given["k"], given["v"], torch.ones_like(given["gate"]))
    torch.testing.assert_close(
        plain, F.scaled_dot_product_attention(given["q"], given["k"], given["v"], is_causal=True)
    )


def test_tied_scores_are_the_sum_of_both_directions():
    given = drawn(bias=False, alpha=False)
    q, k, v, w_s, w_r = given["q"], given["k"], given["v"], given["gate"][:, :1], given["w_r"]
    s = q @ k.mT / 8**0.5
    scores = w_s[:, :, None] * s + w_r[:, None, None] * s.mT
    later = torch.ones(17, 17, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(ra_attention(q, k, v, w_s.expand(-1, 8), w_r=w_r), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parts", EACH, ids=str)
def test_the_stated_gradients_are_those_of_autograd(parts):
    given = drawn((1, 2, 7, 4), **parts)

    def run(*inputs):
        names = [name for name, x in given.items() if x is not None]
        return ra_attention(**{**given, **dict(zip(names, inputs, strict=True))})

    assert torch.autograd.gradcheck(run, tensors(given))


@pytest.mark.parametrize("parts", EACH, ids=str)
def test_the_op_keeps_torchs_rules(parts):
    given = drawn((2, 2, 5, 4), torch.float32, packed=True, **parts)
    torch.library.opcheck(op._forward, (*given.values(), 0.5))


def test_it_is_one_node_of_a_whole_graph():
    seen = []

    def look(module, _example):
        seen.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module.forward

    given = drawn((1, 2, 5, 4), torch.float32)
    torch.compile(lambda: ra_attention(**given), backend=look, fullgraph=True)()
    assert sum("ra_attention" in target for target in seen[0]) == 1


def test_the_result_flattens_its_heads_without_a_copy():
    y = ra_attention(**drawn())
    assert y.transpose(1, 2).flatten(2).data_ptr() == y.data_ptr()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"k": torch.zeros(2, 3, 16, 8, dtype=torch.float64)}, "q, k, v must be alike"),
        ({"gate": torch.zeros(3, 7, dtype=torch.float64)}, r"gate must be \(3, 8\), got \(3, 7\)"),
        ({"w_r": torch.zeros(8, dtype=torch.float64)}, r"w_r must be \(3,\)"),
        ({"bias": torch.zeros(3, 17, dtype=torch.float64)}, r"bias must be \(2, 3, 17\)"),
        ({"alpha": torch.zeros(3, dtype=torch.bfloat16)}, "alpha must be fp32, got torch.bfloat16"),
        ({"v": torch.zeros(2, 3, 17, 8)}, "q, k, v must be of one dtype"),
        ({"gate": torch.zeros(3, 8, dtype=torch.float64, device="meta")}, "gate must be on the device of q, cpu"),
    ],
)
def test_what_does_not_fit_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        ra_attention(**{**drawn(), **change})


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((1, 1, 4, 48), torch.float32, "D must be one of"),
        ((1, 1, 4, 32), torch.float64, "must be fp32, fp16 or bf16 on a GPU"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(shape, dtype, told):
    given = drawn(shape, dtype, **ONE_WAY)
    with pytest.raises(ValueError, match=told):
        check_kernel("it", given["q"], given["k"], given["v"])


def test_channels_apart_are_refused_by_the_kernel():
    q = torch.zeros(1, 1, 64, 64).mT
    with pytest.raises(ValueError, match="side by side"):
        check_kernel("it", q, q, q)


def test_without_a_tile_the_definition_serves(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # as if there were kernels here
    monkeypatch.setattr(placement, "serves", lambda op, size: False)
    given = drawn((1, 2, 9, 64), torch.float32, **ONE_WAY)
    assert not placement.runs_kernel("ra_attention", given["q"])
    gated = given["q"] * given["gate"][:, None]
    expected = F.scaled_dot_product_attention(gated, given["k"], given["v"], is_causal=True)
    torch.testing.assert_close(torch.compile(ra_attention, backend="eager", fullgraph=True)(**given), expected)


# -- the kernel ---------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1, 32), (2, 3, 33, 32), (1, 2, 64, 64), (1, 1, 70, 128), (1, 2, 130, 32), (2, 1, 65, 64)]


_UNIT = 2.0**-24  # of fp32
_DEVIATIONS = 6.0  # of a normal error: one of 5e8 elements lies beyond


def attention_bounds(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, w_r: Tensor, bias: Tensor, alpha: Tensor, scale: float
) -> dict[str, float]:
    """Largest error of y and of each gradient in fp32, from the number and the size of the terms of every sum.

    Rounding errors behave like independent random numbers (Higham and Mary 2019, doi:10.1137/18M1226312), of a standard
    deviation of u / sqrt(3) of the partial sum, u the unit roundoff; partial sums of n terms of either sign grow to the
    root R of the sum of their squares, so the error of the sum is u R sqrt(n / 6). It does not shrink where the terms
    cancel: a bound relative to the result would hold for one machine's order of summation alone.
    All arguments in float64, as the reference takes them.
    """
    n_token, n_channel = q.shape[2:]
    g, w, a = gate[:, None], w_r[:, None, None], alpha[:, None, None]
    later = torch.ones(n_token, n_token, dtype=torch.bool).triu(1)
    scores = scale * ((q * g) @ k.mT + w * (k @ q.mT)) + bias[:, :, None]
    probs = scores.masked_fill(later, float("-inf")).softmax(-1)
    o, d_o = probs @ v, (1 - a) * grad
    score = (scale**2 * (_squares(q * g, k.mT) + _squares(w * k, q.mT)) + bias[:, :, None] ** 2).sqrt()
    d_score = probs * (_squares(d_o, v.mT) + (d_o * o).square().sum(-1, keepdim=True)).sqrt()
    terms = {
        "y": (_squares((1 - a) * probs, v) + (a * v) ** 2).sqrt(),
        "q": scale * (_squares(d_score, k * g) + _squares(d_score.mT, w * k)).sqrt(),
        "k": scale * (_squares(d_score.mT, q * g) + _squares(d_score, w * q)).sqrt(),
        "v": (_squares(probs.mT, d_o) + (a * grad) ** 2).sqrt(),
        "gate": scale * (q**2 * _squares(d_score, k)).sum((0, 2)).sqrt(),
        "w_r": scale * (k**2 * _squares(d_score, q)).sum((0, 2, 3)).sqrt(),
        "bias": (d_score**2).sum(2).sqrt(),
        "alpha": (grad**2 * (v**2 + _squares(probs, v))).sum((0, 2, 3)).sqrt(),
    }
    # an absolute error of a score is a relative one of its probability
    relative = _UNIT * ((n_channel + n_token) / 6) ** 0.5 * (1 + score.masked_fill(later, 0).max().item())
    return {name: _DEVIATIONS * relative * root.max().item() for name, root in terms.items()}


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Of each element of a @ b the sum of the squares of its terms."""
    return a.square() @ b.square()


def compare(shape, dtype, parts, *, share=None):
    """The kernel's result and gradients against the reference's in float64: within the rounding of fp32, or a `share`
    of the largest."""
    given = drawn(shape, dtype, packed=True, **parts)
    y = ra_attention(**given)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad(y, tensors(given), grad.to(dtype))
    exact = {name: None if x is None else x.detach().double() for name, x in given.items()}
    rest = op._filled(exact["q"], exact["w_r"], exact["bias"], exact["alpha"])
    args = exact["q"], exact["k"], exact["v"], exact["gate"], *rest, shape[-1] ** -0.5
    grad = grad.to(dtype).double()
    bounds = attention_bounds(grad, *args) if share is None else {}
    close(y, reference.forward(*args), share=share, bound=bounds.get("y"))
    wanted = reference.backward(grad, *args)
    for name, found, expected in zip(
        [name for name, x in given.items() if x is not None],
        got,
        [x for x, of in zip(wanted, given.values(), strict=True) if of is not None],
        strict=True,
    ):
        close(found, expected, name, share=share, bound=bounds.get(name))


def close(found, expected, name="y", *, share=None, bound=None):
    """Within the bound, or a share of the largest element or of 1: a gradient of 0 is a sum of terms that cancel."""
    bound = share * expected.abs().max().clamp(min=1) if bound is None else bound
    error = (found.double() - expected).abs().max()
    assert error <= bound, f"{name}: {error:.2e} of {bound:.2e}"


@pytest.mark.interpreter
@pytest.mark.parametrize("parts", EACH, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_the_reference(shape, parts):
    compare(shape, torch.float32, parts)


@pytest.mark.interpreter
@settings(max_examples=8, deadline=None, derandomize=True)
@fuzzed(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 90), st.sampled_from([32, 64]), st.booleans(), st.booleans()
)
def test_the_kernel_is_the_reference_at_any_shape(batch, n_head, n_token, head_dim, tied, added):
    parts = {"tied": tied, "bias": added, "alpha": added}
    compare((batch, n_head, n_token, head_dim), torch.float32, parts)


@pytest.mark.interpreter
@pytest.mark.parametrize("gated", [1, 31])
def test_one_channel_may_score_in_its_own_way_and_so_may_all_but_one(gated):
    parts = drawn((1, 2, 37, 32), torch.float32, packed=True, **ONE_WAY)
    gate = torch.ones(2, 32)
    gate[:, -gated:] = 0.1
    y = ra_attention(parts["q"], parts["k"], parts["v"], gate)
    q, k, v = (parts[name].detach().double() for name in "qkv")
    near = F.scaled_dot_product_attention(q * gate.double()[:, None], k, v, is_causal=True)
    close(y, near, share=5e-6)


@pytest.mark.interpreter
@pytest.mark.parametrize("parts", EACH, ids=str)
def test_the_kernel_in_fp16_is_near_the_reference(parts):
    compare((1, 2, 65, 64), torch.float16, parts, share=6e-3)


@pytest.mark.interpreter
def test_equal_inputs_give_equal_bits():
    given = drawn((1, 2, 65, 32), torch.float32)
    runs = [torch.autograd.grad(ra_attention(**given).square().sum(), tensors(given)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.interpreter
@pytest.mark.parametrize("n_token", [128, 96, 81])  # what all tiles divide, what all steps divide, what nothing does
@pytest.mark.parametrize(("keys", "tokens"), [((64, 16), (16, 16)), ((16, 16), (64, 32)), ((32, 32), (32, 16))])
def test_both_backward_kernels_may_have_tiles_of_their_own(keys, tokens, n_token):
    with ExitStack() as trials:
        for phase, (block, step) in {"keys": keys, "tokens": tokens}.items():
            trials.enter_context(trial(("ra_attention", f"tied_{phase}", "32 fp32"), Tile(block, step, 4, 1)))
        compare((1, 1, n_token, 32), torch.float32, {"tied": True, "bias": True, "alpha": True})


@pytest.mark.interpreter
def test_heads_may_take_turns_in_the_room_that_there_is(monkeypatch):
    from ratrain.kernels.ra_attention import kernel

    given = drawn((2, 3, 40, 32), torch.float32)
    at_once = torch.autograd.grad(ra_attention(**given).square().sum(), tensors(given))
    monkeypatch.setattr(kernel, "_ROOM", 4 * 64 * 64 * 4)  # four of the six heads, in fp32
    in_turns = torch.autograd.grad(ra_attention(**given).square().sum(), tensors(given))
    assert all(torch.equal(a, b) for a, b in zip(at_once, in_turns, strict=True))
