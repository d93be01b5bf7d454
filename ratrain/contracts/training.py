"""Contracts on training: it is reproducible, lowers the loss, works in bf16, and compiles to one graph per mode."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ratrain.config.schema import CompileSection, Manifest
from ratrain.contracts.registry import contract
from ratrain.contracts.states import activate, fitted, loss_of, step_of, tokens_of
from ratrain.engine.step import Precision
from ratrain.machine.compile import GraphCounter, compile_model
from ratrain.model.gpt2 import GPT2


@contract
def one_graph_each_to_train_and_to_evaluate_wherever_the_activation_stands(manifest: Manifest) -> None:
    torch._dynamo.reset()
    model, graphs = fitted(manifest), GraphCounter()
    compile_model(model, CompileSection(scope="model", backend="eager"))
    for activation in (0.0, 0.5, 1.0):
        activate(model, activation)
        model.train()
        loss_of(model, manifest).backward()
        model.eval()
        with torch.no_grad():
            loss_of(model, manifest)
    assert graphs.graphs == 2, f"{graphs.graphs} graphs; expected one to train and one to evaluate"


@contract
def compiled_it_computes_the_same_and_sees_no_later_token(manifest: Manifest) -> None:
    torch._dynamo.reset()
    plain, compiled = fitted(manifest), fitted(manifest)
    kind, at = manifest.train.precision, 40
    modes = {one: Precision(kind, one) for one in (plain, compiled)}
    compile_model(compiled, CompileSection(scope="model", backend="eager"))  # Dynamo's graph, without code generation
    tokens, targets = tokens_of(manifest, 2, 65), tokens_of(manifest, 4, 65)[2:].clone()
    targets[:, at:] = -1  # ignored in the loss, so that no later token may change it
    edited = tokens.clone()
    edited[:, at:] = (edited[:, at:] + 1) % manifest.model.vocab_size
    for training in (True, False):
        where = "compiled, training" if training else "compiled, evaluating"
        results = [
            _loss_and_gradients(model.train(training), given, targets, modes[model])
            for model, given in ((plain, tokens), (compiled, tokens), (compiled, edited))
        ]
        worst = _unlike(results[0], results[1])
        assert worst <= _COMPILED[kind], f"{where}: loss or gradients are {worst:.2g} from those that are not compiled"
        worst = _unlike(results[1], results[2])
        assert worst <= _COMPILED[kind], f"{where}: tokens from {at} on change loss or gradients before by {worst:.2g}"


# relative to the largest value of a tensor: sums in another order, and with bf16 rounding at every layer
_COMPILED = {"fp32": 1e-4, "amp_bf16": 5e-2, "bf16": 5e-2, "fp8": 0.5}


def _loss_and_gradients(model: GPT2, tokens: Tensor, targets: Tensor, precision: Precision) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with precision.forward():
        loss = model(tokens, targets)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def _unlike(one: list[Tensor], other: list[Tensor]) -> float:
    """Returns the largest difference relative to its tensor's largest value, floored at 1e-3 of the overall one."""
    scale = max(float(x.abs().max()) for x in one)
    pairs = zip(one, other, strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-3 * scale)) for a, b in pairs)


@contract
def nothing_is_read_back_from_the_device(manifest: Manifest) -> None:
    model = fitted(manifest)
    for training in (True, False):
        with _Reads() as reads:
            loss = loss_of(model.train(training), manifest)
        where = "training" if training else "evaluating"
        assert not reads.seen, (
            f"{where}, the forward pass reads numbers from the device ({', '.join(reads.seen)}): a GPU would wait"
        )
        loss.backward()


class _Reads(TorchDispatchMode):
    """Records the operations that read tensor values back to Python."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@contract
def the_same_seed_gives_the_same_losses(manifest: Manifest) -> None:
    first, second = (_losses(manifest, steps=3) for _ in range(2))
    assert first == second, f"two equal runs have losses {first} and {second}"


@contract
def training_lowers_the_loss(manifest: Manifest) -> None:
    losses = _losses(manifest, steps=25)
    assert losses[-1] < losses[0] - 0.5, (
        f"25 steps on one batch lowered the loss from {losses[0]:.3f} to {losses[-1]:.3f}"
    )


@contract
def bf16_stays_near_fp32(manifest: Manifest) -> None:
    lr = 1e-3  # at ten times this rate the loss overshoots, which hides the effect of rounding
    exact = _losses(manifest, steps=3, lr=lr)
    for kind in ("bf16", "amp_bf16"):
        rounded = _losses(manifest, steps=3, lr=lr, precision=kind)
        worst = max(abs(a - b) for a, b in zip(exact, rounded, strict=True))
        assert worst < 0.01, f"{kind} is {worst:.4f} nats off"


def _losses(manifest: Manifest, *, steps: int, lr: float = 1e-2, precision: str = "fp32") -> list[float]:
    """Returns the losses of a few uncompiled steps on one batch."""
    model: GPT2 = fitted(manifest)
    step, tokens = step_of(model, manifest, lr=lr, precision=precision), tokens_of(manifest, 2, 66)
    return [float(step(tokens[:, :-1], tokens[:, 1:]).loss) for _ in range(steps)]
