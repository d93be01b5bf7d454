"""Products by oneDNN where MKL is the slower one: in operations and in compiled graphs."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ratrain.kernels import products
from ratrain.machine.products import ByOneDNN, inductor_options

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))
able = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    """Whatever CPU this is: the choice alone depends on it."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


UNIT = rounding.UNIT[torch.float32]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@able
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (5, 7, 3), (64, 32, 96), (128, 256, 40)])
def test_equals_the_product_in_float64(m, k, n, turned):
    a, b = drawn(m, k), drawn(n, k).T if turned else drawn(k, n)
    rounding.check(products.product(a, b), a.double() @ b.double(), rounding.of_product(a, b))


def test_a_slice_is_left_to_blas():
    wide = drawn(64, 96)
    assert products.is_plain(wide)
    assert products.is_plain(wide.T)
    assert not products.is_plain(wide[:, 32:])
    assert not products.is_plain(wide[:, 32:].T)
    assert torch.equal(products.product(wide.T, wide[:, 32:]), wide.T @ wide[:, 32:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_another_way(dtype):
    a, b = drawn(4, 5).to(dtype), drawn(5, 6).to(dtype)
    assert not products.by_onednn(a, b)
    assert torch.equal(products.product(a, b), a @ b)


class Watched(ByOneDNN):
    """Notes what a graph consists of once the pass has been over it."""

    def __init__(self):
        self.seen: list[str] = []

    def __call__(self, graph):
        super().__call__(graph)
        self.seen.extend(str(node.target) for node in graph.nodes)

    def uuid(self):
        return None  # not from the cache, or the pass would not run


class _Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24, bias=False)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(x))).square().mean()


def gradient_bounds(model, x):
    """Of the gradients of a _Two in float64: each sum has its own rounding, and the errors that its factors bring."""
    up, bias, down = (p.detach() for p in model.parameters())
    arg = (x @ up.T + bias).detach().requires_grad_()
    hidden = nn.functional.gelu(arg)
    (slope,) = torch.autograd.grad(hidden.sum(), arg, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), arg)
    hidden, slope = hidden.detach(), slope.detach()
    y = hidden @ down.T
    d_y = 2 * y / y.numel()
    d_hidden = d_y @ down
    d_arg = d_hidden * slope
    ones = x.new_ones(1, len(x))

    def product(a, b, of_a=0.0, of_b=0.0):
        ends = x.new_zeros(a.shape) + of_a, x.new_zeros(b.shape) + of_b
        carried = rounding.squares(ends[0], b) + rounding.squares(a, ends[1])
        return rounding.of_product(a, b) + carried.sqrt()

    e_arg = product(x, up.T) + 2 * UNIT * arg.detach().abs()
    e_hidden = slope.abs() * e_arg + 8 * UNIT * hidden.abs()  # GELU: a dozen operations at most, each of parts of it
    e_y = product(hidden, down.T, e_hidden)
    e_d_y = 2 * e_y / y.numel() + 2 * UNIT * d_y.abs()
    e_d_arg = slope.abs() * product(d_y, down, e_d_y) + d_hidden.abs() * (curve.abs() * e_arg + 8 * UNIT)
    return {
        "up.weight": product(d_arg.T, x, e_d_arg.T),
        "up.bias": product(ones, d_arg, of_b=e_d_arg)[0],
        "down.weight": product(d_y.T, hidden, e_d_y.T, e_hidden),
    }


@able
def test_a_compiled_graph_forms_all_its_products_by_onednn_and_the_same_gradients():
    torch.manual_seed(0)
    model, oracle = _Two(), _Two().double()
    oracle.load_state_dict(model.state_dict())
    x = drawn(48, 24)
    bounds = gradient_bounds(oracle, x.double())
    oracle(x.double()).backward()
    watched = Watched()
    model.compile(fullgraph=True, dynamic=False, options={"post_grad_custom_post_pass": watched})
    model(x).backward()
    assert watched.seen.count("mkldnn._linear_pointwise.default") == 5  # two forward, three backward: x has no gradient
    assert not any(name.startswith(("aten.mm", "aten.addmm")) for name in watched.seen)
    for (name, mine), exact in zip(model.named_parameters(), oracle.parameters(), strict=True):
        rounding.check(mine.grad, exact.grad, bounds[name], name)


@able
def test_a_compiled_product_with_a_slice_is_left_to_blas():
    watched = Watched()
    a, wide = drawn(32, 48), drawn(48, 64)
    call = torch.compile(
        lambda a, wide: a @ wide[:, 24:], dynamic=False, options={"post_grad_custom_post_pass": watched}
    )
    b = wide[:, 24:]
    rounding.check(call(a, wide), a.double() @ b.double(), rounding.of_product(a, b))
    assert "aten.mm.default" in watched.seen


def test_graphs_are_left_as_they_are_where_mkl_is_at_its_best(monkeypatch):
    assert inductor_options()
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    assert not inductor_options()
    assert not products.by_onednn(drawn(2, 2))
