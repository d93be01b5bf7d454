"""A trained model as its unpatched base, where the two are the same function: gates are absorbed into the weights."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ratrain.config.schema import ModelSpec
from ratrain.errors import UsageError
from ratrain.model.gpt2 import GPT2, Attention, Block, NormedQKV

_TOKENS = 32  # of the passes that are compared
_CLOSE = 1e-5  # of the largest logit


@torch.no_grad()
def plain(model: GPT2, name: str) -> GPT2:
    """Returns a GPT2 without patches, on the CPU and in eval mode, that computes the function of `model`.

    Absorbed are gates on score channels and on the hidden channels of an MLP, a core that maps queries and keys
    linearly to as many channels (`tied_ra` with a rank), and the multipliers of a parametrisation. Raises UsageError
    for any other mechanism; `name` is that of the run.
    """
    base = GPT2(model.spec.model_copy(update={"parametrisation": "standard", "base": None}))
    own = dict(model.named_parameters())
    for site, patch in model.claimed.items():
        if not _absorbs(model, site):
            raise UsageError(
                f"{name}: patch.{patch} at {site} computes what no GPT-2 computes; "
                f"ratrain.load({name!r}).model is the model itself"
            )
    for key, parameter in base.named_parameters():
        parameter.copy_(own[key])
    for ours, theirs in zip(model.blocks, base.blocks, strict=True):
        _absorb(cast("Block", ours), cast("Block", theirs))
    _absorb_multipliers(model.spec, base, name)
    for module in base.modules():  # tables of positions
        if any(True for _ in module.buffers(recurse=False)):
            cast("Any", module).reset_parameters(torch.Generator())
    base.eval()
    _require_equal(model, base, name)
    return base


def _absorbs(model: GPT2, site: str) -> bool:
    module, leaf = model.get_submodule(site), site.rpartition(".")[2]
    if leaf == "score":
        qkv = cast("Any", model.get_submodule(site.removesuffix(".score"))).qkv
        gate = cast("Any", module)()
        return not isinstance(qkv, NormedQKV) or gate is None or bool((gate == 1).all())
    folds = leaf == "core" and hasattr(module, "fold") and getattr(module, "widths", None) == 1
    return folds or leaf == "gate"


def _absorb(ours: Block, theirs: Block) -> None:
    """Multiplies the gates of one block into the weights of the plain one."""
    attn, gate = theirs.attn, ours.attn.score()
    if gate is not None and not isinstance(attn.qkv, NormedQKV):
        rows = torch.cat([gate.flatten(), gate.new_ones(2 * gate.numel())])
        attn.qkv.weight.mul_(rows[:, None])
        if attn.qkv.bias is not None:
            attn.qkv.bias.mul_(rows)
    if hasattr(ours.attn.core, "fold"):
        _fold(cast("Any", ours.attn.core), attn)
    if (gate := ours.mlp.gate()) is not None:
        theirs.mlp.down.weight.mul_(gate)


def _absorb_multipliers(spec: ModelSpec, base: GPT2, name: str) -> None:
    """Multiplies the factors of muP and CompleteP on logits, scores and branches into the weights of the plain model.

    Raises UsageError where queries are normed, which undoes a factor on their weights.
    """
    if spec.score_scale is not None and spec.qk_norm != "none":
        raise UsageError(
            f"{name}: model.parametrisation = {spec.parametrisation!r} scales scores by {spec.score_scale:.4g}, "
            f"which no weight can absorb behind model.qk_norm; ratrain.load({name!r}).model is the model itself"
        )
    for block in base.blocks:
        attn, mlp = cast("Block", block).attn, cast("Block", block).mlp
        for weight in (*attn.proj.parameters(), *mlp.down.parameters()):
            weight.div_(spec.depth_growth)
        for rows in attn.qkv.parameters() if spec.score_scale is not None else ():
            rows[: spec.n_embd].mul_(spec.score_scale * spec.head_dim**0.5)
    for weight in base.norm.parameters():
        weight.div_(spec.width_growth)


def _fold(core: Any, attn: Attention) -> None:
    """Maps the rows of the query and key weights as the core maps queries and keys: both maps are linear."""
    qkv = attn.qkv
    for rows in (qkv.weight, *([] if qkv.bias is None else [qkv.bias[:, None]])):
        q, k, _ = rows.view(3, qkv.n_head, -1, rows.shape[1])  # each [H, D, C]: one "token" per input channel
        new_q, new_k = core.fold(q.mT[None].clone(), k.mT[None].clone())
        q.copy_(new_q[0].mT)
        k.copy_(new_k[0].mT)


def _require_equal(model: GPT2, base: GPT2, name: str) -> None:
    """Raises UsageError unless both models compute the same logits, which every absorbed mechanism must keep."""
    generator = torch.Generator().manual_seed(0)
    shape = 2, min(_TOKENS, model.spec.block_size)
    tokens = torch.randint(model.spec.vocab_size, shape, generator=generator)
    wanted = model.logits(tokens.to(model.wte.weight.device)).cpu()
    off = float((wanted - base.logits(tokens)).abs().max() / wanted.abs().max())
    if not off < _CLOSE:
        raise UsageError(f"{name}: its mechanisms are more than gates: without them the logits differ by {off:.1e}")


def unpaired(rows: Tensor, n_head: int) -> Tensor:
    """Reorders rows [H * D, C] or [H * D]: rotary pairs (2p, 2p + 1) of a head become (p, p + D / 2)."""
    heads = rows.unflatten(0, (n_head, -1, 2))  # [H, D / 2, 2, ...]
    return heads.transpose(1, 2).flatten(0, 2)
