"""`ratrain audit`: the contracts that any decoder should keep, on anybody's, as one page.

Every claim is looked at twice, with the weights as built and with all of them shaken: a path that a zero at the start
keeps closed would hide whatever it leads to.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ratrain.engine.audit_optimizer import audit_optimizer
from ratrain.engine.finding import Finding, some
from ratrain.engine.foreign_model import ForeignModel
from ratrain.engine.foreign_source import Target, construct, described, told
from ratrain.engine.perturbation import batch_leak, differs, random_tokens, suffix_leak, without_gradient
from ratrain.errors import DataError

_ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest logit: what a sum in another order may do
_ORDER = ("BROKEN", "warning", "holds", "note", "unchecked")
_CACHE = 1e-5  # of the largest logit: models keep parts of the softmax and of norms in fp32


@dataclass(frozen=True)
class Audit:
    """What was built, how it was called, and what was found."""

    built: str
    called: str
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        return not any(finding.verdict == "BROKEN" for finding in self.findings)

    def page(self) -> str:
        """All of it as text: what is broken first, what could not be checked last."""
        lines = [f"built      {self.built}", f"called     {self.called}", ""]
        for finding in sorted(self.findings, key=lambda f: _ORDER.index(f.verdict)):
            lines.append(f"{finding.verdict:9}  {finding.claim}" + (f": {finding.detail}" if finding.detail else ""))
        counts = Counter(finding.verdict for finding in self.findings)
        end = f"{counts['BROKEN']} broken, {counts['holds']} hold, {counts['unchecked']} unchecked"
        return "\n".join([*lines, "", f"{'sound' if self.sound else 'not sound'}: {end}"])


def audit(
    target: Target,
    arguments: dict[str, Any],
    *,
    optimizer: Target | None = None,
    vocab_size: int | None = None,
    length: int | None = None,
) -> Audit:
    """Builds the target and looks at every claim. Raises RatrainError where there is no model to look at."""
    torch.manual_seed(0)
    module, text = construct(target, arguments)
    if not isinstance(module, nn.Module):
        raise DataError(f"{target.word}: gives a {type(module).__name__}; expected a torch.nn.Module")
    size = sum(p.numel() for p in module.parameters())
    make, place = (None, target.word) if optimizer is None else (optimizer.call, optimizer.word)
    # before the model is widened: that would part parameters that share their memory
    first = [_one_memory(module), *audit_optimizer(module, make, place)]
    with told(target.word, "calling the model"):
        model = ForeignModel(module, vocab_size=vocab_size, length=length)
    kind = str(model.dtype).removeprefix("torch.")
    called = f"{model.call}; {model.length} of {model.vocab_size} kinds of token, {kind}"
    findings = [*_looked_at(model, target), *first]
    if model.why_not_double:
        what = "float64 does not run, so what is below rounding in fp32 is not seen"
        findings.append(Finding("note", what, model.why_not_double))
    return Audit(f"{text}, {size:,} parameters", called, tuple(findings))


def _looked_at(model: ForeignModel, target: Target) -> Iterator[Finding]:
    built = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    checks: tuple[Callable[[ForeignModel], Iterator[Finding]], ...] = (
        _causal, _apart, _repeatable, _alive, _decodes, _ends, _begins,
    )  # fmt: skip
    for check in checks:
        try:
            with told(target.word, "calling the model"):
                yield from check(model)
        except DataError as error:
            yield Finding("BROKEN", _CLAIMS[check], str(error))
        with torch.no_grad():
            for name, p in model.module.named_parameters():
                p.copy_(built[name])
        model.module.zero_grad(set_to_none=True)


def _states(model: ForeignModel) -> Iterator[str]:
    """The model as built and shaken, in training and evaluating; each by its name."""
    for shaken in (False, True):
        if shaken:
            _shake(model.module)
        for training in (True, False):
            model.module.train(training)
            yield ("training" if training else "evaluating") + (", weights shaken" if shaken else "")
    model.module.eval()


@torch.no_grad()
def _shake(module: nn.Module) -> None:
    """Moves every weight by noise, so that none is zero, nor any two alike."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        if p.is_floating_point():
            spread = 0.1 * float(p.float().pow(2).mean().sqrt()) + 0.02
            p.add_((spread * torch.randn(p.shape, generator=generator)).to(p.dtype))


def _causal(model: ForeignModel) -> Iterator[Finding]:
    lengths = sorted({min(8, model.length), model.length // 2 + 1, model.length})
    for state in _states(model):
        for length in lengths:
            tokens = random_tokens(model.vocab_size, 2, length)
            leak = suffix_leak(model.logits, tokens, model.vocab_size, tolerance=_tolerance(model))
            if leak is not None:
                yield Finding("BROKEN", _CLAIMS[_causal], f"{state}, {leak}")
                return
    yield Finding("holds", _CLAIMS[_causal], f"training and evaluating, {', '.join(map(str, lengths))} tokens")
    _shake(model.module)
    tokens = random_tokens(model.vocab_size, 1, model.length)
    edited = tokens.clone()
    edited[:, 0] = (edited[:, 0] + 1) % model.vocab_size
    if not differs(model.logits(tokens)[:, -1], model.logits(edited)[:, -1], _tolerance(model)).any():
        yield Finding("warning", "the last position does not see the first", "a window, or a mask that hides too much")


def _apart(model: ForeignModel) -> Iterator[Finding]:
    tokens = random_tokens(model.vocab_size, 2, model.length)
    for state in _states(model):
        if batch_leak(model.logits, tokens, model.vocab_size, tolerance=_tolerance(model)):
            yield Finding("BROKEN", _CLAIMS[_apart], f"{state}: changing one changes the output of the other")
            return
        if model.module.training or _noisy(model, tokens):
            continue  # noise falls otherwise on a batch of another shape
        alone = model.logits(tokens[:1])[0]
        if differs(model.logits(tokens)[0], alone, _CACHE * float(alone.abs().max())).any():
            what = f"{state}: a sequence alone has another output than beside another"
            yield Finding("BROKEN", _CLAIMS[_apart], what)
            return
    yield Finding("holds", _CLAIMS[_apart])


def _repeatable(model: ForeignModel) -> Iterator[Finding]:
    tokens = random_tokens(model.vocab_size, 2, model.length)
    model.module.eval()
    if not model.logits(tokens).isfinite().all():
        yield Finding("BROKEN", _CLAIMS[_repeatable], "the logits hold what is not a finite number")
    elif _noisy(model, tokens):
        what = "two calls differ: dropout, or other noise, does not ask whether the model is training"
        yield Finding("BROKEN", _CLAIMS[_repeatable], what)
    else:
        yield Finding("holds", _CLAIMS[_repeatable])


def _noisy(model: ForeignModel, tokens: Tensor) -> bool:
    return bool(differs(model.logits(tokens, seed=0), model.logits(tokens, seed=1), 0.0).any())


def _alive(model: ForeignModel) -> Iterator[Finding]:
    tokens = random_tokens(model.vocab_size, 2, model.length)
    at_first = _dead(model, tokens)
    _shake(model.module)
    dead = _dead(model, tokens)
    frozen = [n for n, p in model.module.named_parameters() if not p.requires_grad]
    if dead:
        yield Finding("BROKEN", _CLAIMS[_alive], f"none, or one that is not finite, reaches {some(dead)}")
    else:
        yield Finding("holds", _CLAIMS[_alive])
    if late := [n for n in at_first if n not in dead]:
        yield Finding("note", "no gradient at the first step, for the zeros it begins with", some(late))
    if frozen:
        yield Finding("note", "requires no gradient", some(frozen))


def _dead(model: ForeignModel, tokens: Tensor) -> list[str]:
    """Parameters that neither training nor evaluating reaches with a gradient that is finite."""
    model.module.zero_grad(set_to_none=True)
    for training in (True, False):
        model.module.train(training)
        model.backward(tokens)
    trained = ((n, p) for n, p in model.module.named_parameters() if p.requires_grad)
    return without_gradient(trained)


def _decodes(model: ForeignModel) -> Iterator[Finding]:
    if not model.decodes:
        why = "forward takes no past_key_values and use_cache; a cache of another make is not known here"
        yield Finding("unchecked", _CLAIMS[_decodes], why)
        return
    tokens = random_tokens(model.vocab_size, 2, model.length)
    _shake(model.module)
    model.module.eval()
    whole, half = model.logits(tokens), model.length // 2
    ways = {"one by one": [1] * model.length, "after half as a prompt": [half, *([1] * (model.length - half))]}
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
        yield Finding("unchecked", _CLAIMS[_ends], "the model has no attribute that says how long that is")
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


def _begins(model: ForeignModel) -> Iterator[Finding]:
    tokens = random_tokens(model.vocab_size, 8, model.length)
    model.module.eval()
    loss = nn.functional.cross_entropy(model.logits(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    even = math.log(model.vocab_size)
    verdict = "note" if abs(loss - even) < 0.5 else "warning"
    yield Finding(verdict, f"it begins with a loss of {loss:.3f}", f"guessing evenly costs ln V = {even:.3f}")


def _one_memory(module: nn.Module) -> Finding:
    """Whether tied weights are one parameter, as optimizers need them to be."""
    claim, seen = "what shares memory is one parameter", {}
    for name, p in module.named_parameters():
        if p.device.type != "meta" and p.numel():
            seen.setdefault(p.data_ptr(), []).append(name)
    shared = [" and ".join(names) for names in seen.values() if len(names) > 1]
    if shared:
        what = "are several parameters of one memory, which is stepped and decayed as often"
        return Finding("BROKEN", claim, f"{some(shared)} {what}")
    tied = len(list(module.named_parameters(remove_duplicate=False))) - len(list(module.named_parameters()))
    return Finding("holds", claim, f"{tied} of them tied" if tied else "")


def _tolerance(model: ForeignModel) -> float:
    return _ROUNDING[model.dtype] * float(model.logits(random_tokens(model.vocab_size, 1, 2)).abs().max())


_CLAIMS: dict[Callable[..., Any], str] = {
    _causal: "no position sees a later token",
    _apart: "no sequence sees another",
    _repeatable: "evaluating twice gives the same",
    _alive: "every parameter gets a gradient",
    _decodes: "cached decoding equals the full forward",
    _ends: "its longest context",
    _begins: "its first loss",
}
