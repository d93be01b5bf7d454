"""The budget of a study with seeds as needed: wall time, device time or trained tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Resource = Literal["time", "device time", "tokens"]

_UNITS: dict[str, tuple[Resource, float]] = {
    "s": ("time", 1.0), "m": ("time", 60.0), "min": ("time", 60.0), "h": ("time", 3600.0), "d": ("time", 86400.0),
    "device-min": ("device time", 60.0), "device-h": ("device time", 3600.0),
    "gpu-min": ("device time", 60.0), "gpu-h": ("device time", 3600.0),
    "tokens": ("tokens", 1.0), "Mtokens": ("tokens", 1e6), "Gtokens": ("tokens", 1e9),
}  # fmt: skip
_MOST = 1e12  # of any unit
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z-]+)\s*")
EXPECTED = "a number and a unit, such as 90s, 30m, 2h, 4 gpu-h or 40 Mtokens"


@dataclass(frozen=True)
class StudyBudget:
    """`amount` of one resource: seconds by the clock, seconds of all devices together, or tokens of all runs."""

    resource: Resource
    amount: float

    @classmethod
    def of(cls, text: str) -> StudyBudget:
        """Reads a budget such as "30m". Raises ValueError."""
        match = _FORM.fullmatch(text)
        unit = _UNITS.get(match[2]) if match else None
        if match is None or unit is None:
            raise ValueError(f"{text!r} is no budget; expected {EXPECTED}")
        if not 0 < float(match[1]) < _MOST:
            raise ValueError(f"{text!r} is nothing, or beyond measure; expected {EXPECTED}")
        return cls(unit[0], float(match[1]) * unit[1])

    def text(self, amount: float) -> str:
        """Formats an amount of this resource."""
        if self.resource == "tokens":
            return f"{amount / 1e6:,.1f} Mtokens"
        unit, size = next((u, s) for u, s in (("h", 3600), ("min", 60), ("s", 1)) if amount >= 1.5 * s or s == 1)
        words = f"{amount / size:.3g} {unit}"
        return words if self.resource == "time" else f"{words} of device time"
