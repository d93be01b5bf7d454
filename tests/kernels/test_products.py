"""Products by oneDNN where MKL is the slower one: in operations and in compiled graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ratrain.kernels import products
from ratrain.machine.products import ByOneDNN, inductor_options

able = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    """Whatever CPU this is: the choice alone depends on it."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@able
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (5, 7, 3), (64, 32, 96), (128, 256, 40)])
def test_equals_the_product_in_float64(m, k, n, turned):
    a, b = drawn(m, k), drawn(n, k).T if turned else drawn(k, n)
    exact = a.double() @ b.double()
    torch.testing.assert_close(products.product(a, b).double(), exact, rtol=1e-5, atol=1e-5)


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


@able
def test_a_compiled_graph_forms_all_its_products_by_onednn_and_the_same_gradients():
    torch.manual_seed(0)
    model, oracle = _Two(), _Two().double()
    oracle.load_state_dict(model.state_dict())
    x = drawn(48, 24)
    oracle(x.double()).backward()
    watched = Watched()
    model.compile(fullgraph=True, dynamic=False, options={"post_grad_custom_post_pass": watched})
    model(x).backward()
    assert watched.seen.count("mkldnn._linear_pointwise.default") == 5  # two forward, three backward: x has no gradient
    assert not any(name.startswith(("aten.mm", "aten.addmm")) for name in watched.seen)
    for mine, exact in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


@able
def test_a_compiled_product_with_a_slice_is_left_to_blas():
    watched = Watched()
    a, wide = drawn(32, 48), drawn(48, 64)
    call = torch.compile(
        lambda a, wide: a @ wide[:, 24:], dynamic=False, options={"post_grad_custom_post_pass": watched}
    )
    torch.testing.assert_close(call(a, wide), a @ wide[:, 24:], rtol=1e-5, atol=1e-5)
    assert "aten.mm.default" in watched.seen


def test_graphs_are_left_as_they_are_where_mkl_is_at_its_best(monkeypatch):
    assert inductor_options()
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    assert not inductor_options()
    assert not products.by_onednn(drawn(2, 2))
