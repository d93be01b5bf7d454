"""Value residual: what reaches each layer's core."""

import pytest
import torch

from ratrain.errors import ManifestError
from ratrain.model.build import build
from ratrain.patches.value_residual import ValueResidual


def of(tiny, n_layer):
    manifest = tiny("gpt2", f"model.n_layer={n_layer}").model_copy(
        update={"patch": {"value_residual": ValueResidual()}}
    )
    return build(manifest).double()


def values_of(model):
    """v of each layer as its projection gives it, and as its core gets it."""
    own, seen = [], []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda _module, _inputs, out: own.append(out[2]))
        block.attn.core.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[2]))
    model.logits(torch.arange(9)[None])
    return own, seen


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_every_layer_above_the_first_mixes_in_the_firsts_values(tiny, s):
    model = of(tiny, 3)
    with torch.no_grad():
        for i, block in enumerate(model.blocks[1:]):
            block.attn.value.a.fill_(0.3 + i)
            block.attn.value.b.fill_(0.6 - i)
            block.attn.value.s.fill_(s)
    own, seen = values_of(model)
    torch.testing.assert_close(seen[0], own[0])
    for i in (0, 1):
        mixed = (0.3 + i) * own[i + 1] + (0.6 - i) * own[0]
        torch.testing.assert_close(seen[i + 1], (1 - s) * own[i + 1] + s * mixed)


def test_it_starts_with_half_of_each(tiny):
    own, seen = values_of(of(tiny, 2))
    torch.testing.assert_close(seen[1], (own[0] + own[1]) / 2)


def test_a_single_layer_is_refused(tiny):
    with pytest.raises(ManifestError, match="needs a second layer"):
        of(tiny, 1)
