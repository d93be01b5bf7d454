"""GLU against its equation, and the size of the MLP that its manifest makes."""

import pytest
import torch.nn.functional as F

from ratrain.model.build import build
from ratrain.model.count import count


@pytest.mark.parametrize(("act", "form"), [("gelu", F.gelu), ("relu2", lambda h: F.relu(h) ** 2)])
@pytest.mark.parametrize("s", [1.0, 0.4])
def test_hidden_channels_are_multiplied_by_a_second_projection(block, x, equal, act, form, s):
    mlp = block("glu", f"model.act={act}").mlp
    mlp.mix.s.fill_(s)
    hidden = form(x @ mlp.up.weight.T + mlp.up.bias)
    gated = hidden * (x @ mlp.mix.v.weight.T + mlp.mix.v.bias)
    equal(mlp, mlp(x), ((1 - s) * hidden + s * gated) @ mlp.down.weight.T + mlp.down.bias)


def test_the_manifests_mlp_is_as_large_as_the_bases(tiny):
    models = [build(tiny(name), device="meta") for name in ("glu", "gpt2")]
    sizes = [sum(p.numel() for p in model.blocks[0].mlp.parameters()) for model in models]
    assert 0.97 < sizes[0] / sizes[1] <= 1
    costs = [count(model).forward_flops_per_token for model in models]
    assert costs[0] <= costs[1]
