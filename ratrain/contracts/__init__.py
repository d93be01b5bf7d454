"""What every variant must keep true, as functions that take a small manifest and raise AssertionError.

`contracts()` finds them all; `ratrain verify` and the tests run them on every patch, also on one outside the package.
"""

# in the order in which they are checked
from ratrain.contracts import decoding, running, sight, modes, mechanism, training  # noqa: I001, F401
from ratrain.contracts.registry import FIRST, SMALL, contracts
from ratrain.contracts.sight import no_position_sees_a_later_token_in_its_own_context
from ratrain.contracts.states import fitted

__all__ = ["FIRST", "SMALL", "contracts", "fitted", "no_position_sees_a_later_token_in_its_own_context"]
