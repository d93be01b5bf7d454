"""Which parameters are decayed."""

from __future__ import annotations

import pytest

from ratrain.model.build import build
from ratrain.model.gpt2 import Linear
from ratrain.recipe.groups import group_parameters

MATRICES = {
    "blocks.0.attn.qkv.weight",
    "blocks.0.attn.proj.weight",
    "blocks.0.mlp.up.weight",
    "blocks.0.mlp.down.weight",
}


def decay_by_name(model, decay=0.1):
    return {name: group.weight_decay for group in group_parameters(model, decay) for name in group.names}


@pytest.mark.parametrize("variant", ["gpt2", "v1"])
def test_only_the_matrices_of_the_blocks_are_decayed(tiny, variant):
    model = build(tiny(variant, "model.n_layer=1"), device="meta")
    decays = decay_by_name(model)
    assert {name for name, decay in decays.items() if decay == 0.1} == MATRICES
    assert set(decays.values()) == {0.1, 0.0}


def test_every_parameter_is_in_exactly_one_group(tiny):
    model = build(tiny("v1"), device="meta")
    listed = [
        (name, id(p)) for g in group_parameters(model, 0.1) for name, p in zip(g.names, g.parameters, strict=True)
    ]
    assert sorted(listed) == sorted((name, id(p)) for name, p in model.named_parameters())


def test_compiling_changes_no_group(tiny):
    model = build(tiny("v1"))
    before = decay_by_name(model)
    for block in model.blocks:
        block.compile(backend="eager")
    assert decay_by_name(model) == before


def test_a_tensor_that_stands_in_two_places_is_decayed_once(tiny):
    model = build(tiny("gpt2", "model.n_layer=2"), device="meta")
    weight = model.get_parameter("blocks.0.mlp.up.weight")
    model.get_submodule("blocks.1.mlp.up").register_parameter("weight", weight)
    tensors = [id(p) for group in group_parameters(model, 0.1) for p in group.parameters]
    assert len(tensors) == len(set(tensors)) == len(list(model.parameters()))


def test_a_matrix_outside_the_blocks_is_not_decayed(tiny):
    model = build(tiny(), device="meta")
    model.register_module("extra", Linear(4, 4, bias=False))
    assert decay_by_name(model)["extra.weight"] == 0


def test_gpt2_of_124_million_parameters_decays_its_48_matrices(tiny):
    model = build(tiny("gpt2", scale="gpt2_124m"), device="meta")
    decayed, kept = group_parameters(model, 0.1)
    assert len(decayed.names) == 48
    assert sum(p.numel() for p in decayed.parameters) == 84_934_656
    assert "wte.weight" in kept.names
    assert len({*decayed.names, *kept.names}) == len([*model.parameters()])
