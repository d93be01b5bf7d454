"""Digests of weights, by which runs are seen to begin alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

DIGITS = 16


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
    return digest(str(tuple(values.shape)).encode() + values.numpy().tobytes())


def digest(data: bytes) -> str:
    """Returns the first digits of the SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]
