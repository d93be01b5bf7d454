"""The registry of contracts, and the model size at which they are checked."""

from __future__ import annotations

from collections.abc import Callable

from ratrain.config.schema import Manifest

# overrides that make any manifest small: head width as at laptop scale, contexts longer than every block size
SMALL = ("model.n_layer=2", "model.n_head=2", "model.n_embd=64", "model.block_size=256", "model.dropout=0")

Contract = Callable[[Manifest], None]
_CONTRACTS: dict[str, Contract] = {}
COMPILED = (  # on compiled code
    "one graph each to train and to evaluate wherever the activation stands",
    "compiled it computes the same and sees no later token",
)
FIRST = "it runs forward and backward"  # if it fails, every other contract fails


def contract(check: Contract) -> Contract:
    """Registers a contract; its claim is the function's name."""
    _CONTRACTS[check.__name__.replace("_", " ")] = check
    return check


def contracts() -> dict[str, Contract]:
    """Returns every contract by its claim."""
    return dict(_CONTRACTS)
