"""A folder that transformers loads: config.json, model.safetensors, the tokenizer, and a model card.

`GPT2LMHeadModel` computes every model with layer norms and learned positions. A model with RMS norms, rotary positions
and ReLU squared is a `LlamaForCausalLM`, or with QK-norm a `Qwen3ForCausalLM`: their gated MLP, act(G x) * (U x), is
ReLU(W x)^2 if act is ReLU and G = U = W. Their linear layers have biases in attention and the MLP alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ratrain.atomic import write_file
from ratrain.config.schema import ModelSpec
from ratrain.errors import UsageError
from ratrain.export.plain import plain, unpaired
from ratrain.export.tokenizer_json import tokenizer_files
from ratrain.model.gpt2 import GPT2
from ratrain.model.pretrained import gpt2_name
from ratrain.model.rotary import BASE

_GPT2_ACT = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu2": "relu2"}


def architecture(spec: ModelSpec) -> str | None:
    """Returns the class of transformers that computes an unpatched model of these shapes; None if there is none."""
    if (spec.norm, spec.pos, spec.qk_norm) == ("layer", "learned", "none"):
        return "GPT2LMHeadModel"
    if (spec.norm, spec.pos, spec.act) == ("rms", "rope", "relu2"):
        if spec.qk_norm == "none":
            return "LlamaForCausalLM"
        return None if spec.bias else "Qwen3ForCausalLM"
    return None


def write_hf(model: GPT2, *, tokenizer: str, name: str, folder: Path, card: str) -> str:
    """Writes the folder and returns the name of the class that loads it; `name` is the run's, `card` the README.

    Raises UsageError if no class of transformers computes the model, CannotCreateError and DiskError.
    """
    spec = model.spec
    kind = architecture(spec)
    if kind is None:
        keys = ", ".join(f"{key} = {getattr(spec, key)!r}" for key in ("pos", "norm", "qk_norm", "act", "bias"))
        raise UsageError(
            f"{name}: no class of transformers computes a decoder with {keys}; ratrain.load({name!r}).model is the "
            "model itself"
        )
    base = plain(model, name)
    config, tensors = _gpt2(base) if kind == "GPT2LMHeadModel" else _llama(base, kind)
    eot = spec.vocab_size - 1
    config |= {
        "architectures": [kind], "vocab_size": spec.vocab_size, "bos_token_id": eot, "eos_token_id": eot,
        "tie_word_embeddings": base.unembed is None, "dtype": "float32", "torch_dtype": "float32",
    }  # fmt: skip
    if base.unembed is not None:
        tensors["lm_head.weight"] = base.unembed.weight[: spec.vocab_size]
    flat = {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    generation = {"bos_token_id": eot, "eos_token_id": eot}
    files: dict[str, bytes] = {
        "config.json": _json(config),
        "generation_config.json": _json(generation),
        "model.safetensors": safetensors.torch.save(flat, metadata={"format": "pt"}),
        "README.md": card.encode(),
        **{file: _json(content) for file, content in tokenizer_files(tokenizer, length=spec.block_size).items()},
    }
    for file, content in files.items():
        write_file(folder / file, [content])
    return kind


def _gpt2(base: GPT2) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns config and tensors of GPT2LMHeadModel, whose linear layers are stored as [in, out]."""
    spec = base.spec
    config = {
        "model_type": "gpt2", "n_positions": spec.block_size, "n_ctx": spec.block_size, "n_embd": spec.n_embd,
        "n_layer": spec.n_layer, "n_head": spec.n_head, "n_inner": spec.n_hidden, "layer_norm_epsilon": spec.norm_eps,
        "activation_function": _GPT2_ACT[spec.act], "resid_pdrop": spec.dropout, "embd_pdrop": spec.dropout,
        "attn_pdrop": spec.dropout,
    }  # fmt: skip
    tensors: dict[str, Tensor] = {gpt2_name(name): parameter for name, parameter in base.named_parameters()}
    tensors.pop("lm_head.weight", None)  # an untied one is added for every class
    tensors["wte.weight"] = tensors["wte.weight"][: spec.vocab_size]
    for name, weight in list(tensors.items()):
        layer = name.removesuffix(".weight")
        if layer.startswith(("h.", "ln_f")) and name != layer:
            tensors[name] = weight.T if weight.dim() > 1 else weight
            tensors.setdefault(f"{layer}.bias", weight.new_zeros(weight.shape[0]))
    return config, {f"transformer.{name}": tensor for name, tensor in tensors.items()}


def _llama(base: GPT2, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns config and tensors of a Llama or Qwen3 with ReLU gates, whose gate and up projection are one matrix."""
    spec = base.spec
    config: dict[str, Any] = {
        "model_type": "llama" if kind == "LlamaForCausalLM" else "qwen3", "hidden_size": spec.n_embd,
        "intermediate_size": spec.n_hidden, "num_hidden_layers": spec.n_layer, "num_attention_heads": spec.n_head,
        "num_key_value_heads": spec.n_head, "head_dim": spec.head_dim, "max_position_embeddings": spec.block_size,
        "rms_norm_eps": spec.norm_eps, "hidden_act": "relu", "attention_bias": spec.bias, "mlp_bias": spec.bias,
        "attention_dropout": spec.dropout, "rope_theta": BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": BASE},
    }  # fmt: skip
    tensors = {"embed_tokens.weight": base.wte.weight[: spec.vocab_size], "norm.weight": base.norm.weight}
    for layer, block in enumerate(base.blocks):
        for part, tensor in block.named_parameters():
            tensors |= {f"layers.{layer}.{name}": own for name, own in _of_llama(part, tensor, spec.n_head)}
        if kind == "Qwen3ForCausalLM":
            one = base.wte.weight.new_ones(spec.head_dim)
            tensors |= {f"layers.{layer}.self_attn.{name}_norm.weight": one for name in "qk"}
    return config, {f"model.{name}": tensor for name, tensor in tensors.items()}


def _of_llama(part: str, tensor: Tensor, n_head: int) -> list[tuple[str, Tensor]]:
    """Returns name and tensor of each parameter in Llama's block that one of ours becomes."""
    module, kind = part.rsplit(".", 1)
    if module == "attn.qkv":
        q, k, v = tensor.chunk(3)
        turned = {"q": unpaired(q, n_head), "k": unpaired(k, n_head), "v": v}
        return [(f"self_attn.{name}_proj.{kind}", rows) for name, rows in turned.items()]
    names = {
        "norm_1": ["input_layernorm"], "norm_2": ["post_attention_layernorm"], "attn.proj": ["self_attn.o_proj"],
        "mlp.up": ["mlp.gate_proj", "mlp.up_proj"], "mlp.down": ["mlp.down_proj"],
    }  # fmt: skip
    return [(f"{name}.{kind}", tensor) for name in names[module]]


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
