"""The list of contracts, and the sizes at which they are checked."""

from __future__ import annotations

from collections.abc import Callable

from ratrain.config.schema import Manifest

# overrides that make any manifest small: heads as wide as the laptop scale's, contexts beyond every block boundary
SMALL = ("model.n_layer=2", "model.n_head=2", "model.n_embd=64", "model.block_size=256", "model.dropout=0")

Contract = Callable[[Manifest], None]
_CONTRACTS: dict[str, Contract] = {}
FIRST = "it runs forward and backward"  # without it no other can hold


def contract(check: Contract) -> Contract:
    """Adds a contract; its claim is the function's name."""
    _CONTRACTS[check.__name__.replace("_", " ")] = check
    return check


def contracts() -> dict[str, Contract]:
    """Every contract by the claim it makes."""
    return dict(_CONTRACTS)
