"""The first contract: the model runs forward and backward. If it fails, every other contract fails."""

from __future__ import annotations

from ratrain.config.schema import Manifest
from ratrain.contracts.registry import contract
from ratrain.contracts.states import fitted, loss_of


@contract
def it_runs_forward_and_backward(manifest: Manifest) -> None:
    loss_of(fitted(manifest), manifest).backward()
