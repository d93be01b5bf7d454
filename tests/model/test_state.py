"""What one layer leaves for the next travels through the value seam, and composes with cached decoding."""

import torch
from torch import nn

from ratrain.model.build import build
from ratrain.model.generate import decode
from ratrain.registry import Patch, register


@register("value_residual")
class ValueResidual(Patch):
    """Values of the first layer, mixed into those of every other (arXiv:2410.17897)."""

    target: str = "blocks.*.attn.value"

    def build(self, old, spec):
        return Mix()


class Mix(nn.Module):
    def forward(self, v, state):
        return (v, v) if state is None else ((v + state) / 2, state)


def test_later_layers_see_what_the_first_one_left(tiny):
    manifest = tiny("gpt2").model_copy(update={"patch": {"value_residual": ValueResidual()}})
    model, base = build(manifest).double().eval(), build(tiny("gpt2")).double().eval()
    tokens = torch.randint(2048, (2, 20), generator=torch.Generator().manual_seed(0))
    seen = []
    for block in model.blocks:
        block.attn.core.register_forward_pre_hook(lambda _module, args: seen.append(args[2]))
    logits = model.logits(tokens)
    _, _, own = model.blocks[1].attn.qkv(model.blocks[1].norm_1(model.blocks[0](model.embed(tokens), None)[0]), None)
    torch.testing.assert_close(seen[1], (own + seen[0]) / 2)
    assert not torch.allclose(logits, base.logits(tokens))
    torch.testing.assert_close(decode(model, tokens), logits)
