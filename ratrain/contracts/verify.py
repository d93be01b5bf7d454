"""`ratrain verify`: every contract on one manifest, as a table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ratrain.config.schema import Manifest
from ratrain.contracts import FIRST, contracts, no_position_sees_a_later_token_in_its_own_context
from ratrain.errors import ManifestError
from ratrain.model.build import build


@dataclass(frozen=True)
class Verdict:
    """One contract's outcome; `fault` says how it is broken."""

    claim: str
    seconds: float
    fault: str | None


def verify(manifest: Manifest, *, block_size: int | None = None) -> Iterator[Verdict]:
    """Yields a verdict per contract as it is reached; `manifest` should be resolved with the SMALL overrides.

    `block_size` is the context that it trains with, where causality is looked at as well.
    """
    build(manifest)
    checks = [(claim, check, manifest) for claim, check in contracts().items()]
    if block_size is not None and block_size != manifest.model.block_size:
        longer = manifest.model_copy(update={"model": manifest.model.model_copy(update={"block_size": block_size})})
        claim = f"no position sees a later token, at its own {block_size} tokens"
        checks.append((claim, no_position_sees_a_later_token_in_its_own_context, longer))
    for claim, check, of in checks:
        start, fault = time.perf_counter(), None
        try:
            check(of)
        except ManifestError:
            raise  # it does not even build
        except Exception as error:  # a contract reports what a mechanism does, whatever it raises
            fault = f"{type(error).__name__}: {error}" if not isinstance(error, AssertionError) else str(error)
        yield Verdict(claim, time.perf_counter() - start, fault)
        if fault is not None and claim == FIRST:
            return  # it does not even run: the others would say the same
