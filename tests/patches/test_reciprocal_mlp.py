"""The reciprocal MLP against its definition, and against the MLP that it stands on."""

import pytest
import torch
import torch.nn.functional as F

from ratrain.errors import ManifestError
from ratrain.model.build import build
from ratrain.registry import patch_kinds


@pytest.mark.parametrize("gate", ["none", "layer", "token"])
@pytest.mark.parametrize("mixer", [False, True, 5])
@pytest.mark.parametrize("s", [1.0, 0.4])
def test_the_last_channels_are_mixed_gated_and_projected(block, x, equal, gate, mixer, s):
    mlp = block("reciprocal_mlp", width=20, gate=gate, mixer=mixer).mlp
    for name, buffer in mlp.named_buffers():
        if name.endswith("s"):
            buffer.fill_(s)
    h = F.gelu(x @ mlp.up.weight.T + mlp.up.bias)
    std, rec = h[..., :-20], h[..., -20:]
    new = rec
    if mixer:
        for matrix in (part.weight for part in mlp.mix.mixer):
            new = new @ matrix.T
    if gate == "token":
        new = new * torch.sigmoid(x @ mlp.mix.token.u + mlp.mix.token.c)[..., None]
    rec = (1 - s) * rec + s * new
    w_rec = mlp.gate.w_rec * (mlp.gate.g if gate == "layer" else 1)
    scaled = torch.cat([(1 - s + s * mlp.gate.w_std) * std, (1 - s + s * w_rec) * rec], dim=-1)
    equal(mlp, mlp(x), scaled @ mlp.down.weight.T + mlp.down.bias)


def test_neutral_gates_are_the_base_mlp_to_the_bit(tiny):
    base = tiny("gpt2")
    patch = patch_kinds()["reciprocal_mlp"](width=0.375, init="neutral")
    tokens = torch.arange(20)[None]
    plain, gated = (build(base.model_copy(update={"patch": p})) for p in ({}, {"reciprocal_mlp": patch}))
    assert torch.equal(plain.logits(tokens), gated.logits(tokens))


@pytest.mark.parametrize(("width", "n_rec"), [(20, 20), (0.375, 24), (0.5, 32)])
def test_the_width_is_a_count_or_a_share_of_the_hidden_channels(block, width, n_rec):
    gate = block("reciprocal_mlp", width=width).mlp.gate
    with torch.no_grad():
        gate.w_std.fill_(1.0)
        gate.w_rec.fill_(0.0)
    assert gate().tolist() == [1.0] * (64 - n_rec) + [0.0] * n_rec


@pytest.mark.parametrize("width", [64, 100, 0.001, 0.999])
def test_both_groups_must_have_channels(block, width):
    with pytest.raises(ManifestError, match="must leave both groups of the 64 hidden channels some"):
        block("reciprocal_mlp", width=width)


def test_v10_has_half_as_many_mlp_parameters_again(tiny):
    def of_mlp(name):
        model = build(tiny(name), device="meta")
        return sum(p.numel() for n, p in model.named_parameters() if ".mlp." in n and n.endswith("weight"))

    assert of_mlp("v10") == 1.5 * of_mlp("v2") == 1.5 * of_mlp("v0")
