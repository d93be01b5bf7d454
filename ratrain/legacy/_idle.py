"""Parameters that the reference built and never used."""

from __future__ import annotations

import torch
from torch import nn


class Idle(nn.Module):
    """Parameters that the reference built and no output depends on, kept for its counts and its checkpoints.

    Shapes are those of `parts`, names theirs with underscores. They are zero, since unused, and never trained.
    """

    def __init__(self, **parts: nn.Module | tuple[int, ...]):
        super().__init__()
        for name, part in parts.items():
            shapes = {"": part} if isinstance(part, tuple) else {f"_{n}": p.shape for n, p in part.named_parameters()}
            for key, shape in shapes.items():
                full = f"{name}{key}".replace(".", "_")
                self.register_parameter(full, nn.Parameter(torch.empty(shape), requires_grad=False))

    def reset_parameters(self, generator: torch.Generator) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
