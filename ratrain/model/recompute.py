"""Activation checkpointing (Chen et al. 2016, arXiv:1604.06174): the backward pass computes activations again.

`block` keeps only the input of each block. `selective` also keeps the results of matrix products and of attention,
which are the expensive ones, and computes norms, activations and gates again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ratrain.errors import Fault, ManifestError
from ratrain.model.gpt2 import GPT2
from ratrain.model.mechanism import own_modules, that_offer

_EXPENSIVE = {
    getattr(torch.ops.aten, name).default
    for name in (
        *("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention"),
        *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
        "_scaled_dot_product_flash_attention_for_cpu",
    )
}


def recompute(model: GPT2, kind: str) -> None:
    """Wraps the forward pass of every block of `model`; kind is "none", "block" or "selective".

    Raises ManifestError for a patch whose modules keep state of a pass, which a second pass would count twice.
    """
    if kind == "none":
        return
    if modules := list(that_offer((part for _, part in own_modules(model)), "settle")):
        names = sorted({type(module).__name__ for module in modules})
        what = f"{', '.join(names)} keeps state of each forward pass, which would be counted twice; expected none"
        raise ManifestError([Fault("", "parallel.activation_checkpointing", what)])
    for block in model.blocks:
        block.forward = _recomputing(cast("Any", block), selective=kind == "selective")


def _recomputing(block: nn.Module, *, selective: bool) -> Callable[..., tuple[Tensor, Tensor | None]]:
    plain = block.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)

    def forward(h: Tensor, state: Tensor | None, cache=None) -> tuple[Tensor, Tensor | None]:
        if cache is not None or not torch.is_grad_enabled():
            return plain(h, state, cache)
        return cast("Any", checkpoint(plain, h, state, **options))

    return forward


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _EXPENSIVE else CheckpointPolicy.PREFER_RECOMPUTE
