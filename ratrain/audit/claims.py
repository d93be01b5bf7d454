"""The claims that an audit checks by calling the model.

Most are checked twice, with the weights as built and with all weights perturbed: a path closed by an initial zero would
hide the computation behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ratrain.audit import losses, modes
from ratrain.audit.finding import Finding, some
from ratrain.audit.model import ForeignModel
from ratrain.audit.source import Target, construct, described, foreign_code
from ratrain.contracts.perturbation import batch_leak, differs, random_tokens, shake, suffix_leak, without_gradient
from ratrain.errors import DataError

_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest logit: error of a sum in another order
_CACHE = 1e-5  # of the largest logit: models keep parts of the softmax and of norms in fp32


def look_at(model: ForeignModel, target: Target) -> Iterator[Finding]:
    """Yields one finding or more for every claim; restores the weights after each."""
    if model.logits(random_tokens(model.vocab_size, 2, model.length)).isnan().any():
        yield Finding("BROKEN", "its logits are numbers", "they hold NaN as built; no other claim was checked")
        return
    built = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    checks: tuple[Callable[[ForeignModel], Iterator[Finding]], ...] = (
        _causal, _gradients_apart, _apart, _repeatable, modes.alike, modes.nothing_left, modes.compiled, _alive,
        losses.own_loss, _decodes, _ends, losses.beginning,
    )  # fmt: skip
    for check in checks:
        try:
            with foreign_code(target.word, "calling the model"):
                yield from check(model)
        except DataError as error:
            yield Finding("BROKEN", _CLAIMS[check], str(error))
        with torch.no_grad():
            for name, p in model.module.named_parameters():
                p.copy_(built[name])
        model.module.zero_grad(set_to_none=True)


def restored(model: ForeignModel, target: Target, arguments: dict[str, Any]) -> Finding:
    """Checks that another model, loaded before its first call, computes the same; a model that draws weights in its
    first forward pass does not."""
    claim, tokens = "loading a checkpoint restores the outputs", random_tokens(model.vocab_size, 2, model.length)
    torch.manual_seed(1)
    other, _ = construct(target, arguments)
    try:
        with foreign_code(target.word, "loading a checkpoint"):
            other.to(model.dtype).load_state_dict(model.module.state_dict())
            again = ForeignModel(other, vocab_size=model.vocab_size, length=model.length, seed=1)
            loaded = again.logits(tokens)
    except DataError as error:
        return Finding("BROKEN", claim, str(error))
    if model.noisy(tokens):
        return Finding("unchecked", claim, "two calls of one model differ already")
    if differs(model.logits(tokens), loaded, _tolerance(model)).any():
        what = "they differ: state that they depend on is not saved, or is drawn at the first call"
        return Finding("BROKEN", claim, what)
    return Finding("holds", claim)


def _states(model: ForeignModel) -> Iterator[str]:
    """Puts the model into each state and yields its name: weights as built and perturbed, in training with and without
    dropout, and evaluating."""
    for shaken in (False, True):
        if shaken:
            shake(model.module)
        for name in ("training", "training without dropout", "evaluating"):
            model.module.train(name != "evaluating")
            with model.without_dropout() if name == "training without dropout" else nullcontext():
                yield name + (", weights shaken" if shaken else "")
    model.module.eval()


def _causal(model: ForeignModel) -> Iterator[Finding]:
    lengths = sorted({min(8, model.length), model.length // 2 + 1, max(2, model.length - 1), model.length})
    for state in _states(model):
        for length in lengths:
            tokens = random_tokens(model.vocab_size, 2, length)
            leak = suffix_leak(model.logits, tokens, model.vocab_size, tolerance=_tolerance(model))
            if leak is not None:
                yield Finding("BROKEN", _CLAIMS[_causal], f"{state}, {leak}")
                return
    yield Finding("holds", _CLAIMS[_causal], f"training and evaluating, {', '.join(map(str, lengths))} tokens")
    # the last position must see the first
    shake(model.module)
    tokens = random_tokens(model.vocab_size, 1, model.length)
    edited = tokens.clone()
    edited[:, 0] = (edited[:, 0] + 1) % model.vocab_size
    if not differs(model.logits(tokens)[:, -1], model.logits(edited)[:, -1], _tolerance(model)).any():
        yield Finding("warning", "the last position does not see the first", "a window, or a mask that hides too much")


def _apart(model: ForeignModel) -> Iterator[Finding]:
    tokens = random_tokens(model.vocab_size, 4, model.length)
    for state in _states(model):
        for rows in (2, 4):
            if batch_leak(model.logits, tokens[:rows], model.vocab_size, tolerance=_tolerance(model)):
                what = f"{state}: changing one of {rows} changes the output of another"
                yield Finding("BROKEN", _CLAIMS[_apart], what)
                return
        if model.module.training or model.noisy(tokens):
            continue  # noise differs for a batch of another shape
        alone = model.logits(tokens[:1])[0]
        if differs(model.logits(tokens)[0], alone, _CACHE * float(alone.abs().max())).any():
            what = f"{state}: a sequence alone has another output than beside others"
            yield Finding("BROKEN", _CLAIMS[_apart], what)
            return
    yield Finding("holds", _CLAIMS[_apart])


def _gradients_apart(model: ForeignModel) -> Iterator[Finding]:
    """Compares the gradients of the outputs before a token, before and after an edit of the tokens from it on."""
    tokens, at = random_tokens(model.vocab_size, 2, model.length), model.length // 2
    edited = tokens.clone()
    edited[:, at:] = (edited[:, at:] + 1) % model.vocab_size
    shake(model.module)
    model.module.train()
    before, after = (model.gradients(one, until=at) for one in (tokens, edited))
    bound = {name: _CACHE * float(g.abs().max().clamp(min=1e-30)) for name, g in before.items()}
    leaky = [n for n, g in before.items() if n in after and differs(g, after[n], bound[n]).any()]
    if leaky:
        what = f"that of {some(leaky)}, from the outputs before token {at}, changes with the tokens from {at} on"
        yield Finding("BROKEN", _CLAIMS[_gradients_apart], what)
    else:
        yield Finding("holds", _CLAIMS[_gradients_apart])


def _repeatable(model: ForeignModel) -> Iterator[Finding]:
    tokens = random_tokens(model.vocab_size, 2, model.length)
    model.module.eval()
    if model.noisy(tokens):
        what = "two calls differ: dropout, or other noise, does not ask whether the model is training"
        yield Finding("BROKEN", _CLAIMS[_repeatable], what)
    else:
        yield Finding("holds", _CLAIMS[_repeatable])


def _alive(model: ForeignModel) -> Iterator[Finding]:
    tokens = random_tokens(model.vocab_size, 2, model.length)
    at_first = _dead(model, tokens)
    infinite = [n for n, p in model.module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    for _ in range(2):  # parameters behind an initial zero then get a gradient
        _descend(model.module)
        dead = _dead(model, tokens)
    frozen = [n for n, p in model.module.named_parameters() if not p.requires_grad]
    if infinite:
        yield Finding("BROKEN", _CLAIMS[_alive], f"as built that of {some(infinite)} is not finite")
    elif dead:
        yield Finding("BROKEN", _CLAIMS[_alive], f"none, or one that is not finite, reaches {some(dead)}")
    else:
        yield Finding("holds", _CLAIMS[_alive])
    if late := [n for n in at_first if n not in dead and n not in infinite]:
        yield Finding("note", "no gradient at the first step, for the zeros it begins with", some(late))
    if frozen:
        yield Finding("note", "requires no gradient", some(frozen))


@torch.no_grad()
def _descend(module: nn.Module) -> None:
    """Takes one step down each finite gradient, long enough to move every weight visibly."""
    for p in module.parameters():
        if p.grad is not None and p.grad.isfinite().all():
            p.sub_(0.02 * p.grad / p.grad.abs().max().clamp(min=1e-30))


def _dead(model: ForeignModel, tokens: Tensor) -> list[str]:
    """Returns the trained parameters whose gradient, summed over a training and an evaluating pass, is missing, zero or
    not finite."""
    model.module.zero_grad(set_to_none=True)
    for training in (True, False):
        model.module.train(training)
        model.backward(tokens)
    trained = ((n, p) for n, p in model.module.named_parameters() if p.requires_grad)
    return without_gradient(trained)


def _decodes(model: ForeignModel) -> Iterator[Finding]:
    if not model.decodes:
        why = "forward takes no past_key_values and use_cache; other kinds of cache are not supported"
        yield Finding("unchecked", _CLAIMS[_decodes], why)
        return
    tokens = random_tokens(model.vocab_size, 2, model.length)
    shake(model.module)
    model.module.eval()
    whole, half = model.logits(tokens), model.length // 2
    ways = {"one by one": [1] * model.length, "after half as a prompt": [half, *([1] * (model.length - half))]}
    if model.length > 8:
        ways["in pieces of several"] = [half, 1, 3, 1, model.length - half - 5]
    for way, sizes in ways.items():
        decoded = model.decode(tokens, sizes)
        if decoded is None:
            yield Finding("unchecked", _CLAIMS[_decodes], "asked for a cache, forward gives none back")
            return
        worst = float((decoded - whole).abs().max())
        if not worst <= _CACHE * float(whole.abs().max()):
            yield Finding("BROKEN", _CLAIMS[_decodes], f"{way}: logits are up to {worst:.2g} off")
            return
    yield Finding("holds", _CLAIMS[_decodes], ", ".join(ways))


def _ends(model: ForeignModel) -> Iterator[Finding]:
    if model.block_size is None:
        yield Finding("unchecked", _CLAIMS[_ends], "the model has no attribute with its longest context")
        return
    tokens = random_tokens(model.vocab_size, 1, model.block_size + 1)
    what = f"{model.block_size + 1} tokens, one more than it is made for"
    try:
        model.logits(tokens)
    except AssertionError as error:
        yield Finding("note", f"{what}, are refused", described(error))
    except Exception as error:
        yield Finding("note", f"{what}, fail", described(error))
    else:
        yield Finding("note", f"{what}, are accepted", "right for relative positions only")


def _tolerance(model: ForeignModel) -> float:
    return _ROUNDING[model.dtype] * float(model.logits(random_tokens(model.vocab_size, 1, 2)).abs().max())


_CLAIMS: dict[Callable[..., Any], str] = {
    _causal: "no position sees a later token",
    _apart: "no sequence sees another",
    _repeatable: "evaluating twice gives the same",
    _alive: "every parameter gets a gradient",
    _decodes: "cached decoding equals the full forward",
    _ends: "its longest context",
    _gradients_apart: "no gradient comes from a later token",
    losses.own_loss: losses.OWN,
    losses.beginning: losses.BEGINNING,
    modes.alike: modes.ALIKE,
    modes.nothing_left: modes.NOTHING_LEFT,
    modes.compiled: modes.COMPILED,
}
