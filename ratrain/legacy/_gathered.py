"""Collects the probes of a module's parts, for a patch that replaces several parts at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ratrain.model.mechanism import offers


class Gathering(nn.Module):
    """A module that offers the probes of its parts, by their names."""

    def probes(self) -> dict[str, Tensor]:
        parts: list[Any] = [part for part in self.modules() if not isinstance(part, Gathering)]
        return {name: value for part in parts if offers(part, "probes") for name, value in part.probes().items()}
