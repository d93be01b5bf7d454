"""Reciprocal attention: its definition, the op, and the kernel under Triton's interpreter against both."""

from __future__ import annotations

import runpy
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as fuzzed
from hypothesis import settings
from hypothesis import strategies as st

from ratrain.kernels import placement
from ratrain.kernels.placement import check_kernel
from ratrain.kernels.ra_attention import op, ra_attention, reference
from ratrain.kernels.tuning import Tile, trial

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))


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


def near_gated_attention(y, given):
    q, k, v, gate = (given[name].detach().double() for name in ("q", "k", "v", "gate"))
    expected = F.scaled_dot_product_attention(q * gate[:, None], k, v, is_causal=True)
    bounds = rounding.attention_bounds(torch.zeros_like(q), q, k, v, gate=gate, scale=q.shape[-1] ** -0.5)
    rounding.check(y, expected, bounds["y"])


def test_without_a_tile_the_definition_serves(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # as if there were kernels here
    monkeypatch.setattr(placement, "serves", lambda op, size: False)
    given = drawn((1, 2, 9, 64), torch.float32, **ONE_WAY)
    assert not placement.runs_kernel("ra_attention", given["q"])
    near_gated_attention(torch.compile(ra_attention, backend="eager", fullgraph=True)(**given), given)


# -- the kernel ---------------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1, 32), (2, 3, 33, 32), (1, 2, 64, 64), (1, 1, 70, 128), (1, 2, 130, 32), (2, 1, 65, 64)]


def compare(shape, dtype, parts):
    """The kernel's result and gradients against the reference's in float64."""
    given = drawn(shape, dtype, packed=True, **parts)
    y = ra_attention(**given)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad(y, tensors(given), grad.to(dtype))
    exact = {name: None if x is None else x.detach().double() for name, x in given.items()}
    rest = op._filled(exact["q"], exact["w_r"], exact["bias"], exact["alpha"])
    args, scale = (exact["q"], exact["k"], exact["v"], exact["gate"], *rest), shape[-1] ** -0.5
    grad = grad.to(dtype).double()
    options = dict(zip(("gate", "w_r", "bias", "alpha"), args[3:], strict=True))
    bounds = rounding.attention_bounds(grad, *args[:3], **options, scale=scale, stored=dtype)
    rounding.check(y, reference.forward(*args, scale), bounds["y"], "y")
    wanted = reference.backward(grad, *args, scale)
    for name, found, expected in zip(
        [name for name, x in given.items() if x is not None],
        got,
        [x for x, of in zip(wanted, given.values(), strict=True) if of is not None],
        strict=True,
    ):
        rounding.check(found, expected, bounds[name], name)


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
    given = drawn((1, 2, 37, 32), torch.float32, packed=True, **ONE_WAY)
    given["gate"] = torch.ones(2, 32)
    given["gate"][:, -gated:] = 0.1
    near_gated_attention(ra_attention(**given), given)


@pytest.mark.interpreter
@pytest.mark.parametrize("parts", EACH, ids=str)
def test_the_kernel_in_fp16_is_near_the_reference(parts):
    compare((1, 2, 65, 64), torch.float16, parts)


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
