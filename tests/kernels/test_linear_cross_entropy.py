"""Head projection and cross-entropy in one op, held to torch's own and to its reference."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from ratrain.kernels.linear_cross_entropy import linear_cross_entropy, op, reference

rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))
N, C, V, N_CLASS = 300, 16, 256, 200  # rows, channels, rows of the weight, classes that can occur


def drawn(dtype=torch.float64, *, n=N, v=V, n_class=N_CLASS):
    """x [n, C], weight [v, C] and targets [n], some of them ignored."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, C, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(v, C, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(-1, n_class, (n,), generator=generator)
    targets[:: n // 5] = -1
    return x, weight, targets


def chunked(monkeypatch, rows):
    monkeypatch.setattr(op, "_rows", lambda x, weight: rows)


def bounds(x, weight, targets, *, n_class=N_CLASS, z_loss=0.0, stored=torch.float32):
    """Of the summed loss and of its gradients: sums in fp32, logits, gradients of logits and results in `stored`."""
    unit, narrow, kind = rounding.UNIT[torch.float32], rounding.UNIT[stored], torch.finfo(stored)
    least = torch.finfo(torch.float32).tiny + kind.tiny * kind.eps  # what is less may vanish
    x, w = x.detach().double(), weight.detach().double()[:n_class]
    counted = (targets != -1)[:, None]
    logits = x @ w.T
    norm, target = logits.logsumexp(-1, keepdim=True), targets[:, None].clamp(min=0)
    of_logit = (rounding.of_product(x, w.T) + narrow * logits.abs()).amax(-1, keepdim=True)  # [N, 1]
    one = torch.ones((), dtype=torch.float64)  # the sum of the probabilities, and above that of their squares
    of_norm = (
        of_logit + rounding.of_sum(n_class, one, one) + 4 * unit * (norm.abs() + logits.abs().amax(-1, keepdim=True))
    )
    losses = (norm - logits.gather(1, target)) * counted
    of_loss = (of_norm + of_logit) * counted  # rows round by themselves
    total = rounding.of_sum(len(x), losses.sum(), losses.square().sum()) + of_loss.square().sum().sqrt()
    probs, slope = (logits - norm).exp(), 1 + 2 * z_loss * norm
    d_logits = (probs * slope).scatter_add(1, target, -torch.ones_like(norm)) * counted
    of_d = probs * (slope.abs() * (of_logit + of_norm + unit * (4 + (logits - norm).abs())) + 2 * z_loss * of_norm)
    of_d = (of_d + (2 * unit + narrow) * d_logits.abs() + least) * counted
    d_x, d_weight = d_logits @ w, d_logits.T @ x
    # the errors of a row have its norm in common; each part of a sum over rows is rounded, and the whole at most twice
    of_d_x = rounding.of_product(d_logits, w) + of_d @ w.abs() + 2 * narrow * d_x.abs() + least
    terms = rounding.squares(d_logits.T, x).sqrt()
    of_d_weight = rounding.of_product(d_logits.T, x) + rounding.squares(of_d.T, x).sqrt()
    of_d_weight = of_d_weight + narrow * (2 * d_weight.abs() + terms) + least
    return total, of_d_x, F.pad(of_d_weight, (0, 0, 0, len(weight) - n_class))


@pytest.mark.parametrize("rows", [1, 7, 150, 300, 1000])
def test_loss_and_gradients_are_those_of_torch_whatever_the_chunks(monkeypatch, rows):
    chunked(monkeypatch, rows)
    x, weight, targets = drawn()
    ours = linear_cross_entropy(x, weight, targets, n_class=N_CLASS)
    theirs = F.cross_entropy(x @ weight[:N_CLASS].T, targets, ignore_index=-1)
    torch.testing.assert_close(ours, theirs)
    scale = torch.tensor(0.37, dtype=torch.float64)  # what comes from above must reach the gradients
    expected = torch.autograd.grad(theirs * scale, (x, weight))
    torch.testing.assert_close(torch.autograd.grad(ours * scale, (x, weight)), expected)


@pytest.mark.parametrize("rows", [7, 1000])
def test_losses_of_rows_are_those_of_torch_and_have_no_gradient(monkeypatch, rows):
    chunked(monkeypatch, rows)
    x, weight, targets = drawn()
    with torch.no_grad():
        ours = linear_cross_entropy(x.view(3, 100, C), weight, targets.view(3, 100), n_class=N_CLASS, reduction="none")
        theirs = F.cross_entropy(x @ weight[:N_CLASS].T, targets, ignore_index=-1, reduction="none")
    torch.testing.assert_close(ours, theirs.view(3, 100))
    with pytest.raises(ValueError, match="have no gradient"):
        linear_cross_entropy(x, weight, targets, reduction="none")


@pytest.mark.parametrize("rows", [7, 1000])
def test_the_z_loss_enters_the_gradient_and_not_the_value(monkeypatch, rows):
    chunked(monkeypatch, rows)
    x, weight, targets = drawn()
    ours = linear_cross_entropy(x, weight, targets, n_class=N_CLASS, z_loss=0.01)
    logits, counted = x @ weight[:N_CLASS].T, targets != -1
    plain = F.cross_entropy(logits, targets, ignore_index=-1)
    torch.testing.assert_close(ours, plain)
    whole = plain + 0.01 * logits[counted].logsumexp(-1).square().mean()
    expected = torch.autograd.grad(whole, (x, weight), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(ours, (x, weight)), expected)
    summed = torch.ones((), dtype=torch.float64) / counted.sum()
    stated = reference.backward(summed, x, weight, targets, N_CLASS, -1, 0.01)
    torch.testing.assert_close(stated, expected)


def test_leading_dimensions_do_not_matter():
    x, weight, targets = drawn()
    flat = linear_cross_entropy(x, weight, targets)
    folded = linear_cross_entropy(x.view(3, 5, 20, C), weight, targets.view(3, 5, 20))
    assert torch.equal(flat, folded)


def test_padding_rows_of_the_weight_are_never_predicted_and_never_moved():
    x, weight, targets = drawn()
    loud = torch.cat([weight[:N_CLASS], 1e3 * weight[N_CLASS:]]).detach().requires_grad_()
    loss = linear_cross_entropy(x, loud, targets, n_class=N_CLASS)
    assert torch.equal(loss, linear_cross_entropy(x, weight, targets, n_class=N_CLASS))
    (grad,) = torch.autograd.grad(loss, loud)
    assert not grad[N_CLASS:].any()


def test_ignored_rows_change_nothing_and_get_no_gradient():
    x, weight, targets = drawn()
    loss = linear_cross_entropy(x, weight, targets, n_class=N_CLASS)
    kept = targets != -1
    torch.testing.assert_close(loss, linear_cross_entropy(x[kept], weight, targets[kept], n_class=N_CLASS))
    (grad,) = torch.autograd.grad(loss, x)
    assert not grad[~kept].any()
    assert grad[kept].any(-1).all()


@pytest.mark.parametrize("n", [0, 5])
def test_no_counted_row_costs_nothing_and_moves_nothing(n):
    x, weight, targets = drawn(n=N)
    loss = linear_cross_entropy(x[:n], weight, torch.full_like(targets[:n], -1), n_class=N_CLASS)
    assert loss == 0
    d_x, d_weight = torch.autograd.grad(loss, (x, weight))
    assert not d_x.any()
    assert not d_weight.any()


def test_a_target_whose_probability_underflows_still_has_its_loss_and_gradient():
    x, weight, _ = drawn(torch.float32, n=5)
    x = (100 * x).detach().requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    logits = exact[0] @ exact[1][:N_CLASS].T
    least = logits.argmin(-1)
    ours, theirs = linear_cross_entropy(x, weight, least, n_class=N_CLASS), F.cross_entropy(logits, least)
    assert theirs > 200  # e^-104 is below what fp32 can hold
    of_loss, *of_grads = bounds(x, weight, least)
    rounding.check(ours, theirs, of_loss / 5)
    grads = torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(theirs, exact)
    for found, expected, bound in zip(*grads, of_grads, strict=True):
        rounding.check(found, expected, bound / 5)


class Stated(torch.autograd.Function):
    """The reference's forward, with the backward that it states."""

    @staticmethod
    def forward(ctx, x, weight, targets):
        ctx.save_for_backward(x, weight, targets)
        return reference.forward(x, weight, targets, n_class=5, ignore=-1)[0]

    @staticmethod
    def backward(ctx, grad):
        return (*reference.backward(grad, *ctx.saved_tensors, n_class=5, ignore=-1), None)


def test_the_backward_that_the_reference_states_is_that_of_its_forward():
    x, weight, targets = drawn(n=12, v=8, n_class=5)
    assert torch.autograd.gradcheck(Stated.apply, (x, weight, targets))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [64, 1000])
def test_the_op_is_its_reference(monkeypatch, rows, dtype):
    chunked(monkeypatch, rows)
    x, weight, targets = drawn(dtype)
    total, count, _, d_x, d_weight = op._forward(x, weight, targets, N_CLASS, -1, 0.0, x.dtype, True, False)
    exact = x.detach().double(), weight.detach().double(), targets, N_CLASS, -1
    expected, counted = reference.forward(*exact)
    assert count == counted
    wanted = expected, *reference.backward(torch.ones((), dtype=torch.float64), *exact)
    if dtype == torch.float64:
        torch.testing.assert_close((total, d_x, d_weight), wanted)
    else:
        for found, each, bound in zip((total, d_x, d_weight), wanted, bounds(x, weight, targets), strict=True):
            rounding.check(found, each, bound)


@pytest.mark.parametrize("wants_grad", [True, False])
def test_the_op_keeps_the_rules_of_torch_library(wants_grad):
    x, weight, targets = drawn(torch.float32)
    inputs = (x, weight) if wants_grad else (x.detach(), weight.detach())
    torch.library.opcheck(op._forward, (*inputs, targets, N_CLASS, -1, 0.01, torch.float32, wants_grad, False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, t: (x[:, :-1], w, t), r"x \(300, 15\) and weight \(256, 16\) do not fit"),
        (lambda x, w, t: (x, w[0], t), "do not fit"),
        (lambda x, w, t: (x, w, t[:-1]), r"expected targets \(300,\), got \(299,\)"),
        (lambda x, w, t: (x, w, t.int()), "targets must be int64, got torch.int32"),
        (lambda x, w, t: (x, w[:100], t), "n_class must be between 1 and 100, got 200"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*change(*drawn()), n_class=N_CLASS)


def test_a_compiled_graph_holds_exactly_one_node_of_ours():
    torch._dynamo.reset()
    graphs = []

    def capture(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend=capture)
    x, weight, targets = drawn(torch.float32)
    torch.testing.assert_close(compiled(x, weight, targets), linear_cross_entropy(x, weight, targets))
    (graph,) = graphs
    assert [str(node.target) for node in graph.graph.nodes if "ratrain" in str(node.target)] == [
        "ratrain.linear_cross_entropy.default"
    ]


def test_gradients_survive_ahead_of_time_autograd():
    torch._dynamo.reset()
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    x, weight, targets = drawn(torch.float32)
    expected = torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, weight, targets), (x, weight)), expected)


def test_autocast_keeps_the_weight_gradient_in_fp32_and_near_it():
    x, weight, targets = drawn(torch.float32)
    exact = linear_cross_entropy(x, weight, targets, n_class=N_CLASS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = linear_cross_entropy(x, weight, targets, n_class=N_CLASS)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=2**-8, atol=0)
    for ours, theirs in zip(*(torch.autograd.grad(loss, (x, weight)) for loss in (rounded, exact)), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 2**-6 * theirs.norm()  # bf16 keeps 8 bits of each of two factors


def test_uninitialised_memory_never_reaches_the_result(monkeypatch):
    x, weight, targets = drawn(torch.float32)
    clean = torch.autograd.grad(linear_cross_entropy(x, weight, targets, n_class=N_CLASS), (x, weight))
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))
    poisoned = torch.autograd.grad(linear_cross_entropy(x, weight, targets, n_class=N_CLASS), (x, weight))
    assert all(map(torch.equal, clean, poisoned))


def largest_allocation(run) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    results: Any = recorded.profiler and recorded.profiler.kineto_results
    return max(event.nbytes() for event in results.events() if event.name() == "[memory]")


def test_the_logits_of_all_rows_never_stand_in_memory():
    n, v = 2048, 50304
    x, weight, targets = drawn(torch.float32, n=n, v=v, n_class=50257)
    whole = 4 * n * v
    largest = largest_allocation(lambda: linear_cross_entropy(x, weight, targets, n_class=50257).backward())
    assert largest <= whole / 8  # eight chunks of 256 rows
    # the recorder would have seen them
    assert largest_allocation(lambda: x.detach() @ weight.detach().T) >= whole


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("rows", [7, 1000])
def test_the_kernel_is_torchs_own(monkeypatch, dtype, rows, z_loss):
    chunked(monkeypatch, rows)
    x, weight, targets = drawn(dtype, v=300, n_class=259)
    loss = linear_cross_entropy(x, weight, targets, n_class=259, z_loss=z_loss)
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    logits = exact[0] @ exact[1][:259].T
    expected = F.cross_entropy(logits, targets, ignore_index=-1)
    n_counted = (targets != -1).sum()
    of_loss, *of_grads = bounds(x, weight, targets, n_class=259, z_loss=z_loss, stored=dtype)
    rounding.check(loss, expected, of_loss / n_counted)
    whole = expected + z_loss * logits[targets != -1].logsumexp(-1).square().mean()
    grads = torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(whole, exact)
    for found, wanted, bound in zip(*grads, of_grads, strict=True):
        rounding.check(found, wanted, bound / n_counted)
