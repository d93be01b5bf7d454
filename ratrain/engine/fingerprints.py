"""Digests of initial weights, data order and validation windows; paired arms of a study must match."""

from __future__ import annotations

import numpy as np

from ratrain.engine.setup import Setup
from ratrain.events import Fingerprints
from ratrain.model.digests import DIGITS, digest

_STEPS = 8  # number of steps whose batches are digested; every batch is drawn by the same rule


def fingerprints(setup: Setup) -> Fingerprints:
    """Computes the digests before the first step; parameters of patches are left out."""
    order = np.stack([setup.sampler.order(step) for step in range(_STEPS)])
    return Fingerprints(
        data=setup.data.fingerprint[:DIGITS],
        order=digest(order.tobytes()),
        windows=setup.windows,
        weights=setup.digests,
        unit=setup.clusters.unit,
        sizes=tuple(setup.clusters.sizes.tolist()),
        overlap=setup.overlap.record() if setup.overlap else {},
    )
