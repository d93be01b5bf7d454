"""Attention by any backend is the same attention, and by the one that was named."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import _cur_sdpa_kernel_backends
from torch.utils._python_dispatch import TorchDispatchMode

from ratrain.model.backends import causal_attention

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))
FLASH, MATH, OURS = "_scaled_dot_product_flash_attention_for_cpu", "_safe_softmax", "ra_attention"


class Ops(TorchDispatchMode):
    """The names of the operations that are called while it is entered."""

    def __init__(self):
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def qkv(dtype=torch.float32, head_dim=16):
    packed = torch.randn(2, 24, 3, 2, head_dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    return packed.permute(2, 0, 3, 1, 4).unbind()


def upstream(like):
    """The gradient of the output."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like.dtype)


def computed(backends, dtype=torch.float32, **options):
    """The output, the gradient of q, and the operations of a forward pass."""
    q, k, v = qkv(dtype)
    q = q.clone().requires_grad_()
    with Ops() as ops:
        y = causal_attention(q, k, v, backends=backends, **options)
    (grad,) = torch.autograd.grad(y, q, upstream(y))
    return y, grad, ops.names & {FLASH, MATH, OURS}


@pytest.mark.parametrize(("name", "op"), [("flash", FLASH), ("math", MATH), ("ours", OURS)])
def test_the_backend_that_is_named_runs_and_gives_the_same(name, op):
    y, grad, ops = computed((name,))
    assert ops == {op}
    exact_y, exact_grad, _ = computed((), torch.float64)
    bounds = rounding.attention_bounds(upstream(exact_y), *qkv(torch.float64), scale=16**-0.5)
    rounding.check(y, exact_y, bounds["y"], "y")
    rounding.check(grad, exact_grad, bounds["q"], "gradient of q")


def test_none_named_is_the_call_as_it_was_to_the_bit():
    q, k, v = qkv()
    with Ops() as ops:
        y = causal_attention(q, k, v)
    assert torch.equal(y, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert ops.names & {FLASH, MATH} == {FLASH}


@pytest.mark.parametrize("first", ["flash", "ours"])
def test_the_next_one_takes_what_the_first_cannot(first):
    torch.manual_seed(0)
    assert computed((first, "math"), dropout=0.1)[2] == {MATH}


@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient", "ours"])
def test_one_alone_refuses_what_it_cannot(name):
    with pytest.raises(RuntimeError, match=r"No (available|viable)"), pytest.warns() if name == "flash" else Ops():
        computed((name,), dropout=0.1)


def test_ours_leaves_values_of_another_width_to_the_next():
    q, k, _ = qkv()
    with Ops() as ops:
        causal_attention(q, k, qkv(head_dim=8)[2], backends=("ours", "math"))
    assert ops.names & {MATH, OURS} == {MATH}


def test_autocast_reaches_ours_as_it_reaches_sdpa():
    # fp32 queries under autocast, as a norm leaves them; in bf16 our operation has no plain-PyTorch path
    with torch.autocast("cpu", torch.bfloat16), Ops() as ops:
        y = causal_attention(*qkv(), backends=("ours", "math"))
    assert y.dtype == torch.bfloat16
    assert OURS not in ops.names


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(("name", "op"), [("flash", FLASH), ("math", MATH), ("ours", OURS)])
def test_a_graph_computes_it_likewise(name, op, backend):
    compiled = torch.compile(causal_attention, fullgraph=True, backend=backend)
    q, k, v = qkv()
    compiled(q, k, v, backends=(name,))
    with torch.profiler.profile() as seen:
        y = compiled(q, k, v, backends=(name,))
    exact = qkv(torch.float64)
    rounding.check(y, causal_attention(*exact), rounding.attention_bounds(exact[0], *exact, scale=16**-0.5)["y"])
    names = {event.key.rpartition("::")[2] for event in seen.key_averages()}
    assert names & {FLASH, MATH, OURS} == {op}


def test_torchs_own_settings_are_left_as_they_were():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    computed(("math", "flash"))
    torch.compile(causal_attention, fullgraph=True, backend="eager")(*qkv(), backends=("math",))
    assert _cur_sdpa_kernel_backends(with_priority=True) == before
