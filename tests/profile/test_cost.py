"""FLOPs and bytes of operations that torch really ran, against sums done by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import profile

from ratrain.profile import cost
from ratrain.profile.trace import Array, Op, read


def run(call):
    """The operation that `call` comes to."""
    with profile(record_shapes=True, profile_memory=True, acc_events=True) as seen:
        result = call()
    root = read(seen.profiler.kineto_results)
    del result
    return next(op for op in root.children if cost.is_registered(op.name))


def rand(*shape):
    return torch.randn(*shape, requires_grad=False)


A, B, C = rand(8, 16), rand(16, 32), rand(8, 32)
X, Y = rand(3, 8, 16), rand(3, 16, 32)
ROW = rand(32)
TABLE, IDS = rand(100, 16), torch.arange(7)
BF16 = A.bfloat16()


@pytest.mark.parametrize(
    ("call", "flops", "elements"),
    [
        (lambda: torch.mm(A, B), 2 * 8 * 16 * 32, 8 * 16 + 16 * 32 + 8 * 32),
        (lambda: torch.mm(A, B, out=C), 2 * 8 * 16 * 32, 896),
        (lambda: torch.addmm(ROW, A, B), 2 * 8 * 16 * 32, 32 + 896),
        (lambda: C.addmm_(A, B), 2 * 8 * 16 * 32, 896 + 256),
        (lambda: torch.bmm(X, Y), 3 * 2 * 8 * 16 * 32, 3 * 896),
        (lambda: torch.baddbmm(ROW, X, Y), 3 * 2 * 8 * 16 * 32, 3 * 896 + 32),
        (lambda: torch.mul(C, C), None, 256 + 256),
        (lambda: torch.add(C, ROW), None, 256 + 32 + 256),
        (lambda: C.mul_(0.5), None, 256 + 256),
        (lambda: C.fill_(0.5), None, 256),
        (lambda: C.view(32, 8), None, 0),
        (lambda: C.float(), None, 0),
        (lambda: torch.softmax(C, -1, out=C), None, 256 + 256),
        (lambda: torch._foreach_mul_([C, A], 0.5), None, 2 * (256 + 128)),
    ],
    ids=lambda value: "" if callable(value) else None,
)
def test_products_and_moves_are_counted(call, flops, elements):
    op = run(call)
    assert cost.nbytes(op) == pytest.approx(4 * elements, rel=0, abs=8)  # a number may come as an array of one
    assert cost.flops(op) == flops


def test_an_expanded_dimension_is_read_once():
    row = ROW.expand(8, 32)
    assert cost.nbytes(run(lambda: torch.add(C, row))) == 4 * (256 + 32 + 256)


def test_a_lookup_reads_what_it_returns_and_not_the_table():
    assert cost.nbytes(run(lambda: F.embedding(IDS, TABLE))) == 8 * 7 + 2 * 4 * 7 * 16


def test_narrow_numbers_are_narrow():
    assert cost.nbytes(run(lambda: torch.add(BF16, BF16))) == 2 * (128 + 128)


def test_attention_counts_two_products_and_five_to_go_back():
    q, k, v = (rand(2, 3, 64, 16).requires_grad_() for _ in range(3))
    with profile(record_shapes=True, profile_memory=True, acc_events=True) as seen:
        y, scale = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        y.backward(torch.ones_like(y))
    del scale
    calls = [op for op in read(seen.profiler.kineto_results).walk() if cost.is_attention(op)]
    one = 2 * 2 * 3 * 64 * 64 * 16
    assert [cost.flops(op) for op in calls] == [2 * one, 5 * one]
    array, rows = 4 * q.numel(), 4 * 2 * 3 * 64  # the logsumexp of every row
    assert [cost.nbytes(op) for op in calls] == [4 * array + rows, 8 * array + rows]


def test_a_product_by_onednn_is_one_too():
    x, weight = (Array(shape, 4, 0) for shape in ((5, 8, 16), (32, 16)))
    op = Op("mkldnn::_linear_pointwise", 0, 1, (x, weight, None, None, None, None))
    assert cost.flops(op) == 2 * 40 * 16 * 32


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_bytes_of_a_product_by_onednn_leave_out_its_scratch_memory():
    x, weight, bias = rand(64, 48), rand(96, 48), rand(96)
    op = run(lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    assert cost.flops(op) == 2 * 64 * 48 * 96
    assert cost.nbytes(op) == 4 * (64 * 48 + 96 * 48 + 96 + 64 * 96)


def test_adamw_reads_and_writes_weights_gradients_and_two_moments():
    parameter = torch.nn.Parameter(rand(64, 64))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    with profile(record_shapes=True, profile_memory=True, acc_events=True) as seen:
        for _ in range(2):
            parameter.grad = torch.ones(64, 64)
            optimizer.step()
    update = [op for op in read(seen.profiler.kineto_results).walk() if op.name == "aten::_fused_adamw_"][-1]
    assert cost.nbytes(update) == pytest.approx(8 * 4 * 64 * 64, abs=16)  # and the count of steps


def test_what_has_no_schema_moves_what_nobody_knows():
    assert cost.nbytes(Op("aten::mm", 0, 1, ("nonsense",))) is None
    assert cost.flops(Op("aten::mm", 0, 1, (Array((2, 3), 4, 24), Array((4, 5), 4, 80)))) is None
    assert not cost.is_registered("Torch-Compiled Region: 0/0")
    assert not cost.is_registered("autograd::engine::evaluate_function: AddBackward0")
