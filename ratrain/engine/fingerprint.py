"""What a run begins with, as digests: what two arms of a study must share for their difference to be their own."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ratrain.events import Fingerprints
from ratrain.recipe.sampling import sample_rows

if TYPE_CHECKING:
    from ratrain.engine.engine import Engine

_STEPS = 8  # whose batches are digested: each is drawn by the same rule
_DIGITS = 16


def fingerprints(engine: Engine) -> Fingerprints:
    """Of the engine before its first step; a patch's own tensors are left out."""
    m, base, tokens = engine.manifest, engine.model.base_names, engine.corpus.train
    options = {"seed": m.seed.order, "batch": m.train.batch, "block_size": m.model.block_size}
    order = np.stack([sample_rows(len(tokens), step=step, **options) for step in range(_STEPS)])
    weights = {}
    for name, tensor in engine.precision.masters.items():
        path, _, leaf = name.rpartition(".")
        if path in base:
            weights[f"{base[path]}.{leaf}"] = digest_of(tensor)
    return Fingerprints(
        data=engine.corpus.fingerprint[:_DIGITS],
        order=_digest(order.tobytes()),
        windows=digest_of(engine.evaluator.real_windows),
        weights=weights,
        unit=engine.clusters.unit,
        sizes=tuple(engine.clusters.sizes.tolist()),
    )


def digest_of(tensor: Tensor) -> str:
    """Of a tensor's shape and values."""
    values = tensor.detach().cpu().contiguous()
    return _digest(str(tuple(values.shape)).encode() + values.numpy().tobytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
