"""A checkpoint that nanoGPT's `GPT` (model.py) loads: `model_args`, and the state dict `model`.

It is for sampling and evaluation: it has no optimizer, and nanoGPT's scripts decode with GPT-2's vocabulary.
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from ratrain.atomic import write_file
from ratrain.errors import UsageError
from ratrain.export.plain import plain
from ratrain.model.gpt2 import GPT2
from ratrain.model.pretrained import gpt2_name

# what nanoGPT's model.py has without an option
_FIXED = {"norm": "layer", "norm_eps": 1e-5, "pos": "learned", "qk_norm": "none", "act": "gelu", "head": "tied",
          "mlp_ratio": 4.0}  # fmt: skip


def write_nanogpt(model: GPT2, *, name: str, step: int, loss: float, path: Path) -> None:
    """Writes the file; `name` is the run's, `loss` its last validation loss.

    Raises UsageError if nanoGPT's model cannot compute this one, CannotCreateError and DiskError.
    """
    spec = model.spec
    for key, value in _FIXED.items():
        if getattr(spec, key) != value:
            raise UsageError(f"{name}: nanoGPT has model.{key} = {value!r} alone, this run has {getattr(spec, key)!r}")
    base = plain(model, name)
    tensors: dict[str, Tensor] = {gpt2_name(name): parameter for name, parameter in base.named_parameters()}
    tensors["wte.weight"] = tensors["wte.weight"][: spec.vocab_size]
    state = {f"transformer.{key}": tensor.detach().clone().contiguous() for key, tensor in tensors.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    shape = {"n_layer": spec.n_layer, "n_head": spec.n_head, "n_embd": spec.n_embd, "block_size": spec.block_size}
    rest = {"bias": spec.bias, "vocab_size": spec.vocab_size, "dropout": spec.dropout}
    # for sampling and evaluation: without the optimizer's state nanoGPT does not resume
    content = {"model": state, "model_args": {**shape, **rest}, "iter_num": step, "best_val_loss": loss, "config": {}}
    file = io.BytesIO()
    torch.save(content, file)
    write_file(path, [file.getbuffer()])
