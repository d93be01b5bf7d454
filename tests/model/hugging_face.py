"""A GPT-2 as Hugging Face lays it out: random files, and its forward pass spelled out in plain tensor algebra."""

from __future__ import annotations

import json
import math

import torch
from safetensors.torch import save_file

CONFIG = {
    "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 16, "vocab_size": 100,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip


def tensors_of(config=CONFIG, *, seed=0):
    """Weights far from their usual initial values, so that every bias and every gain is seen."""
    generator = torch.Generator().manual_seed(seed)
    c = config["n_embd"]

    def draw(*shape, mean=0.0):
        return mean + 0.3 * torch.randn(*shape, generator=generator)

    tensors = {"wte.weight": draw(config["vocab_size"], c), "wpe.weight": draw(config["n_positions"], c)}
    for layer in range(config["n_layer"]):
        for name, n_in, n_out in (
            ("attn.c_attn", c, 3 * c), ("attn.c_proj", c, c), ("mlp.c_fc", c, 4 * c), ("mlp.c_proj", 4 * c, c),
        ):  # fmt: skip
            tensors[f"h.{layer}.{name}.weight"] = draw(n_in, n_out)
            tensors[f"h.{layer}.{name}.bias"] = draw(n_out)
    norms = ["ln_f", *(f"h.{layer}.{name}" for layer in range(config["n_layer"]) for name in ("ln_1", "ln_2"))]
    for name in norms:
        tensors |= {f"{name}.weight": draw(c, mean=1.0), f"{name}.bias": draw(c)}
    return tensors


def write(folder, tensors, config=CONFIG, *, prefix="transformer."):
    """The folder that `save_pretrained` would write."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({prefix + name: t for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def logits(tensors, tokens, config=CONFIG, *, reciprocal=0):
    """[B, T] -> [B, T, V] in float64; the last `reciprocal` score channels of each head are transposed."""
    w = {name: t.double() for name, t in tensors.items()}
    h = w["wte.weight"][tokens] + w["wpe.weight"][: tokens.shape[1]]
    for layer in range(config["n_layer"]):
        at = f"h.{layer}"
        x = _norm(h, w, f"{at}.ln_1", config)
        h = h + _conv1d(_attention(_conv1d(x, w, f"{at}.attn.c_attn"), config, reciprocal), w, f"{at}.attn.c_proj")
        x = _conv1d(_norm(h, w, f"{at}.ln_2", config), w, f"{at}.mlp.c_fc")
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # gelu_new
        h = h + _conv1d(x, w, f"{at}.mlp.c_proj")
    return _norm(h, w, "ln_f", config) @ w["wte.weight"].T


def _conv1d(x, w, name):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]  # [in, out]


def _norm(x, w, name, config):
    x = x - x.mean(-1, keepdim=True)
    return (
        x / (x.pow(2).mean(-1, keepdim=True) + config["layer_norm_epsilon"]).sqrt() * w[f"{name}.weight"]
        + w[f"{name}.bias"]
    )


def _attention(qkv, config, reciprocal):
    q, k, v = (x.unflatten(-1, (config["n_head"], -1)).transpose(1, 2) for x in qkv.split(config["n_embd"], dim=-1))
    std = q.shape[-1] - reciprocal
    scores = q[..., :std] @ k[..., :std].mT + k[..., std:] @ q[..., std:].mT
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    probs = (scores / math.sqrt(q.shape[-1])).masked_fill(hidden, -torch.inf).softmax(-1)
    return (probs @ v).transpose(1, 2).flatten(2)
