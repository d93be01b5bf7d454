"""Digests of initial weights, data order and validation windows; paired arms of a study must match."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ratrain.data.sampling import sample_rows
from ratrain.engine.setup import Setup
from ratrain.events import Fingerprints

_STEPS = 8  # number of steps whose batches are digested; every batch is drawn by the same rule
_DIGITS = 16


def fingerprints(setup: Setup) -> Fingerprints:
    """Computes the digests before the first step; parameters of patches are left out."""
    m, tokens = setup.manifest, setup.corpus.train
    options = {"seed": m.seed.order, "batch": m.train.batch, "block_size": m.model.block_size}
    order = np.stack([sample_rows(len(tokens), step=step, **options) for step in range(_STEPS)])
    return Fingerprints(
        data=setup.corpus.fingerprint[:_DIGITS],
        order=_digest(order.tobytes()),
        windows=digest_of(setup.evaluator.real_windows),
        weights=weight_digests(setup.precision.masters, setup.model.base_names),
        unit=setup.clusters.unit,
        sizes=tuple(setup.clusters.sizes.tolist()),
    )


def weight_digests(parameters: Mapping[str, Tensor], base_names: Mapping[str, str]) -> dict[str, str]:
    """Returns shape and digest of every base-model parameter, by its name in the base model.

    The shape is included because another width means other random draws.
    """
    found = {}
    for name, tensor in parameters.items():
        path, _, leaf = name.rpartition(".")
        if path in base_names:
            found[f"{base_names[path]}.{leaf}"] = f"{'x'.join(map(str, tensor.shape))} {digest_of(tensor)}"
    return found


def digest_of(tensor: Tensor) -> str:
    """Returns the digest of a tensor's shape and values."""
    values = tensor.detach().cpu().contiguous()
    return _digest(str(tuple(values.shape)).encode() + values.numpy().tobytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
