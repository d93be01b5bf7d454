"""Contracts: properties that every variant must have, checked by functions that take a small manifest.

A broken contract raises AssertionError. `contracts()` returns all of them; `ratrain verify` and the tests run them on
every patch, also on patches outside the package.
"""

# imported in the order in which they are checked
from ratrain.contracts import decoding, running, sight, modes, mechanism, training, transfer  # noqa: I001, F401
from ratrain.contracts.registry import COMPILED, FIRST, SMALL, contracts
from ratrain.contracts.sight import no_position_sees_a_later_token_in_its_own_context
from ratrain.contracts.states import fitted

__all__ = ["COMPILED", "FIRST", "SMALL", "contracts", "fitted", "no_position_sees_a_later_token_in_its_own_context"]
