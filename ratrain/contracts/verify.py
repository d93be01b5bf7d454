"""`ratrain verify`: checks every contract on one manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ratrain.config.schema import Manifest
from ratrain.contracts import COMPILED, FIRST, contracts, no_position_sees_a_later_token_in_its_own_context
from ratrain.errors import ManifestError
from ratrain.model.build import build


@dataclass(frozen=True)
class Verdict:
    """The outcome of one contract; `fault` describes how it is broken, None if it holds."""

    claim: str
    seconds: float
    fault: str | None


def verify(manifest: Manifest, *, block_size: int | None = None) -> Iterator[Verdict]:
    """Checks each contract in turn and yields its verdict; `manifest` should be resolved with the SMALL overrides.

    `block_size` is the context length of training, at which causality is checked as well. If the first contract fails,
    no other is checked. With compile.scope = "off" those on compiled code are not. Raises ManifestError if the manifest
    does not build.

    The contracts are on the mechanism, and hold under the standard parametrisation; the one on transfer sets muP.
    """
    plain = {"parametrisation": "standard", "base": None}
    manifest = manifest.model_copy(update={"model": manifest.model.model_copy(update=plain)})
    build(manifest)
    off = manifest.compile.scope == "off"
    checks = [(claim, check, manifest) for claim, check in contracts().items() if not (off and claim in COMPILED)]
    if block_size is not None and block_size != manifest.model.block_size:
        longer = manifest.model_copy(update={"model": manifest.model.model_copy(update={"block_size": block_size})})
        claim = f"no position sees a later token, at its own {block_size} tokens"
        checks.append((claim, no_position_sees_a_later_token_in_its_own_context, longer))
    for claim, check, of in checks:
        start, fault = time.perf_counter(), None
        try:
            check(of)
        except ManifestError:
            raise  # the model does not build
        except Exception as error:  # any error of a mechanism is reported as a fault
            fault = f"{type(error).__name__}: {error}" if not isinstance(error, AssertionError) else str(error)
        yield Verdict(claim, time.perf_counter() - start, fault)
        if fault is not None and claim == FIRST:
            return  # the model does not run: the other contracts would fail in the same way
