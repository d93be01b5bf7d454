"""Claims about an optimizer: it holds each parameter once, and decays each once, by its group's weight decay."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ratrain.audit.finding import Finding, some
from ratrain.audit.source import described, foreign_code, where
from ratrain.errors import DataError, UsageError

_METHODS = ("configure_optimizers", "setup_optimizers", "setup_optimizer", "configure_optimizer")
_USUAL = {
    "weight_decay": 0.1, "learning_rate": 1e-3, "lr": 1e-3, "betas": (0.9, 0.95), "beta1": 0.9, "beta2": 0.95,
    "eps": 1e-8, "device_type": "cpu", "device": "cpu", "fused": False,
}  # fmt: skip
_ONCE = "every trained parameter is in one group of the optimizer"
_DECAY = "weight decay falls on the matrices, and on nothing else"
_STEP = "a step decays each weight as its group says, once"


@dataclass(frozen=True)
class Group:
    parameters: list[Tensor]
    weight_decay: float


def audit_optimizer(module: nn.Module, make: Callable[..., Any] | None, place: str) -> Iterator[Finding]:
    """Checks the optimizer returned by `make(module)`, or by the module's own method if `make` is None.

    Raises DataError if `make` fails, UsageError if the result holds no parameter groups. If the method fails with the
    guessed arguments, the claim is unchecked.
    """
    made = _made(module, make, place)
    if isinstance(made, Finding):
        yield made
        return
    given, said = made
    optimizers, groups = list(_optimizers(given)), list(_groups(given))
    if not groups:
        raise UsageError(f"{said}: expected an optimizer, several, or a list of parameter groups")
    yield _each_once(module, groups, said)
    yield from _decayed_rightly(module, groups)
    try:
        with foreign_code(place, "taking a step"):
            yield from _measured(module, optimizers)
    except DataError as error:
        yield Finding("unchecked", _STEP, str(error))


def _made(module: nn.Module, make: Callable[..., Any] | None, place: str) -> tuple[Any, str] | Finding:
    """Returns the optimizer and the call that made it, as text; a finding if there is no optimizer."""
    name = next((n for n in _METHODS if callable(getattr(module, n, None))), None)
    if make is None and name is None:
        why = f"the model has no {_METHODS[0]}; --optimizer FILE.py:fn names a function of the model"
        return Finding("unchecked", _ONCE, why)
    said = f"{name}()" if make is None else f"{getattr(make, '__name__', 'the function')}(model)"
    with warnings.catch_warnings(), foreign_code(place, "making the optimizer"):
        warnings.simplefilter("ignore")  # torch warns of duplicates, which are found below
        try:
            if make is not None:
                return make(module), said
            method = getattr(module, str(name))
            return method(**_usual_arguments(method)), said
        except Exception as error:
            fails = f"{where(error, place)}: {described(error)}"
            # torch refuses a parameter in two groups, and so do the assertions of minGPT's descendants
            if isinstance(error, AssertionError) or "more than one parameter group" in str(error):
                return Finding("BROKEN", _ONCE, f"{said} refuses: {fails}")
            if make is not None:
                raise
            return Finding("unchecked", _ONCE, f"{said} fails: {fails}; --optimizer FILE.py:fn calls your own")


def _usual_arguments(method: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(method).parameters.values()
    usual = {p.name: _USUAL[p.name] for p in parameters if p.name in _USUAL}
    bag = SimpleNamespace(**_USUAL)  # minGPT passes a training config
    return usual | {p.name: bag for p in parameters if p.default is p.empty and p.name.endswith("config")}


def _optimizers(given: Any) -> Iterator[Optimizer]:
    if isinstance(given, Optimizer):
        yield given
    elif isinstance(given, Mapping) and "params" not in given:
        for value in given.values():
            yield from _optimizers(value)
    elif isinstance(given, (list, tuple)):
        for value in given:
            yield from _optimizers(value)


def _groups(given: Any) -> Iterator[Group]:
    if isinstance(given, Optimizer):
        for group in given.param_groups:
            yield Group(list(group["params"]), float(group.get("weight_decay", 0.0)))
    elif isinstance(given, Mapping) and "params" in given:
        held = [given["params"]] if isinstance(given["params"], Tensor) else list(given["params"])
        tensors = [item[1] if isinstance(item, tuple) else item for item in held]
        yield Group(tensors, float(given.get("weight_decay", 0.0)))
    elif isinstance(given, (Mapping, list, tuple)):
        for value in given.values() if isinstance(given, Mapping) else given:
            yield from _groups(value)


def _each_once(module: nn.Module, groups: list[Group], said: str) -> Finding:
    times = Counter(id(p) for group in groups for p in group.parameters)
    named = dict(module.named_parameters())
    faults = []
    if several := [f"{n} ({times[id(p)]} times)" for n, p in named.items() if times[id(p)] > 1]:
        faults.append(f"in more than one place: {some(several)}: it is stepped, and decayed, as often")
    if left := [n for n, p in named.items() if p.requires_grad and not times[id(p)]]:
        faults.append(f"in none: {some(left)}: it never learns")
    strays = len(times.keys() - {id(p) for p in named.values()})
    if strays:
        faults.append(
            f"{strays} tensors of the optimizer are not parameters of the model (made before it was changed?)"
        )
    return Finding("BROKEN" if faults else "holds", _ONCE, "; ".join(faults) or f"{said}, of {len(groups)}")


def _decayed_rightly(module: nn.Module, groups: list[Group]) -> Iterator[Finding]:
    decay = {id(p): group.weight_decay for group in groups for p in group.parameters}
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    named = [(n, p) for n, p in module.named_parameters() if id(p) in decay and p.requires_grad]
    thin = [n for n, p in named if p.dim() < 2 and decay[id(p)]]
    left = [n for n, p in named if p.dim() > 1 and not decay[id(p)] and id(p) not in tables]
    if not any(decay.values()):
        yield Finding("note", "no group has a weight decay")
        return
    if thin:
        yield Finding("warning", _DECAY, f"biases, gains or gates are decayed: {some(thin)}")
    if left:
        yield Finding("warning", _DECAY, f"matrices are not: {some(left)}")
    if not thin and not left:
        yield Finding("holds", _DECAY)
    if any(decay.get(table) for table in tables):
        yield Finding("note", "embeddings are decayed with the matrices, rows of tokens that did not occur included")


@torch.no_grad()
def _measured(module: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[Finding]:
    """Takes one step with zero gradients, so that only the decay moves a weight, and compares it with the groups."""
    if not optimizers:
        return  # parameter groups without an optimizer take no step
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    coupled = [o for o in optimizers if any(g.get("weight_decay") and not _decoupled(o, g) for g in o.param_groups)]
    if coupled:
        what = f"{type(coupled[0]).__name__} adds its decay to the gradient (L2), where the second moment rescales it"
        yield Finding("warning", _STEP, f"{what}; AdamW does not")
        return
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    expected = {id(p): g.get("lr", 0.0) * g.get("weight_decay", 0.0) for g in groups for p in g["params"]}
    if not any(expected.values()):
        return
    before = {n: p.detach().clone() for n, p in named}
    for _, p in named:
        p.grad = torch.zeros_like(p)
    try:
        for optimizer in optimizers:
            optimizer.step()
        shrunk = {n: 1 - float((before[n] * p).sum() / (before[n] ** 2).sum()) for n, p in named if before[n].any()}
    finally:
        for n, p in named:
            p.copy_(before[n])
            p.grad = None
    wrong = [
        f"{n} by {shrunk[n]:.3g} in place of {float(expected[id(p)]):.3g}"
        for n, p in named
        if n in shrunk and id(p) in expected and abs(shrunk[n] - expected[id(p)]) > 0.2 * expected[id(p)] + 1e-6
    ]
    if wrong:
        yield Finding("BROKEN", _STEP, f"with gradients of zero it shrinks {some(wrong, 2)}")
    else:
        yield Finding("holds", _STEP)


def _decoupled(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    adaptive = "betas" in group
    return not adaptive or group.get(
        "decoupled_weight_decay", type(optimizer).__name__ not in ("Adam", "NAdam", "RAdam")
    )
