"""Maps an old step to its manifest: `V7` to v7, `12` of the RATIO study to ratio12, `L6` to l6, and so on."""

from __future__ import annotations

import re

_FAMILIES = {"V": ("v", 0, 19), "C": ("c", 1, 3), "L": ("l", 0, 7), "S": ("s", 0, 3), "R": ("r", 0, 3)}
_NUMBERED = {"ratio": 18, "recip": 5}
KNOWN = "0 to 18, V0 to V19, C1 to C3, L0 to L7, S0 to S3, R0 to R3"


def manifest_of(step: str, *, study: str = "ratio", profile: str = "intended") -> str:
    """Returns the manifest id of `step`; bare numbers are of `study` (ratio or recip). Raises ValueError.

    The V and C series have no `as_run` manifests: docs/series.md lists how their runs differed from the intention.
    """
    match = re.fullmatch(r"([A-Z]?)(\d{1,2})", step.strip().upper(), re.ASCII)
    if not match:
        raise ValueError(f"no such step: {step.strip()[:20]!r}; expected some of {KNOWN}")
    letter, number = match[1], int(match[2])
    prefix, first, last = _FAMILIES.get(letter, ("", 1, 0)) if letter else (study, 0, _NUMBERED[study])
    if not first <= number <= last:
        raise ValueError(f"no such step: {step.strip()!r}; expected some of {KNOWN}")
    as_run = profile == "as_run" and letter not in ("V", "C")
    return f"{prefix}{number}{'_as_run' if as_run else ''}"
