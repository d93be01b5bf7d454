"""`ratrain audit`: checks the contracts of any decoder and reports them as one page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ratrain.audit.claims import look_at, restored
from ratrain.audit.finding import Finding, some
from ratrain.audit.model import ForeignModel
from ratrain.audit.optimizer import audit_optimizer
from ratrain.audit.source import Target, construct, foreign_code
from ratrain.errors import DataError

_ORDER = ("BROKEN", "warning", "holds", "note", "unchecked")


@dataclass(frozen=True)
class Audit:
    """The built model, the form of its calls, and the findings."""

    built: str
    called: str
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        return not any(finding.verdict == "BROKEN" for finding in self.findings)

    def page(self) -> str:
        """Formats the audit as text: broken claims first, unchecked claims last."""
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
    """Builds the target and checks every claim. Raises RatrainError if the target gives no usable model."""
    torch.manual_seed(0)
    module, text = construct(target, arguments)
    if not isinstance(module, nn.Module):
        raise DataError(f"{target.word}: gives a {type(module).__name__}; expected a torch.nn.Module")
    make, place = (None, target.word) if optimizer is None else (optimizer.call, optimizer.word)
    with foreign_code(target.word, "looking at the parameters"):
        size = sum(p.numel() for p in module.parameters())
        # before the conversion to float64, which would separate parameters that share memory
        first = [_one_memory(module), *audit_optimizer(module, make, place)]
    with foreign_code(target.word, "calling the model"):
        model = ForeignModel(module, vocab_size=vocab_size, length=length)
    kind = str(model.dtype).removeprefix("torch.")
    called = f"{model.call}; {model.length} of {model.vocab_size} kinds of token, {kind}"
    findings = [*look_at(model, target), restored(model, target, arguments), *first]
    if model.why_not_double:
        what = "float64 does not run, so effects below fp32 rounding are not seen"
        findings.append(Finding("note", what, model.why_not_double))
    return Audit(f"{text}, {size:,} parameters", called, tuple(findings))


def _one_memory(module: nn.Module) -> Finding:
    """Checks that tied weights are one parameter, as optimizers require."""
    claim, seen = "tensors that share memory are one parameter", {}
    for name, p in module.named_parameters():
        if p.device.type != "meta" and p.numel():
            seen.setdefault(p.data_ptr(), []).append(name)
    shared = [" and ".join(names) for names in seen.values() if len(names) > 1]
    if shared:
        what = "are several parameters of one memory: it is updated and decayed as often"
        return Finding("BROKEN", claim, f"{some(shared)} {what}")
    tied = len(list(module.named_parameters(remove_duplicate=False))) - len(list(module.named_parameters()))
    return Finding("holds", claim, f"{tied} of them tied" if tied else "")
