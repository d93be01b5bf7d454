"""Claims on sites, and initial values that only the seed and a module's name decide."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ratrain.errors import ManifestError
from ratrain.model.build import build, claim_sites, seed_of
from ratrain.model.gpt2 import Linear
from ratrain.registry import Patch, register


def toy(target, make):
    """A patch that puts make(old) wherever `target` matches."""

    @register("toy")
    class Toy(Patch):
        def build(self, old, spec):
            return make(old)

    return Toy(target=target)


class Gate(nn.Module):
    """A gate per hidden channel, drawn at random."""

    def __init__(self, n=64):
        super().__init__()
        self.w = nn.Parameter(torch.empty(n))

    def reset_parameters(self, generator):
        nn.init.normal_(self.w, generator=generator)

    def forward(self):
        return self.w


class Around(nn.Module):
    """Keeps what was there, under a longer name."""

    def __init__(self, old):
        super().__init__()
        self.inner = old

    def forward(self, *args):
        return self.inner(*args)


def gate(target="blocks.*.mlp.gate"):
    return toy(target, lambda old: Gate())


def faults_of(manifest):
    with pytest.raises(ManifestError) as caught:
        build(manifest, device="meta")
    return [(fault.key, fault.message) for fault in caught.value.faults]


# claims


def test_a_site_claimed_twice_is_refused_by_name(manifest_of):
    ((key, message),) = faults_of(manifest_of({"a": gate(), "b": gate("blocks.1.mlp.gate")}))
    assert key == "patch.b"
    assert message.startswith("blocks.1.mlp.gate is claimed by patch.a already")


def test_a_target_that_matches_nothing_is_refused(manifest_of):
    ((key, message),) = faults_of(manifest_of({"a": gate("blocks.*.mlp.gait")}))
    assert key == "patch.a.target"
    assert "'blocks.*.mlp.gait' matches no part" in message


@pytest.mark.parametrize("order", [("blocks.*.mlp", "blocks.*.mlp.gate"), ("blocks.*.mlp.gate", "blocks.*.mlp")])
def test_a_site_inside_a_claimed_one_is_refused_in_either_order(manifest_of, order):
    first, second = order
    ((key, message),) = faults_of(manifest_of({"a": gate(first), "b": gate(second)}))
    assert key == "patch.b"
    assert "claimed by patch.a already (as " in message


def test_neighbours_whose_names_begin_alike_do_not_overlap(model_of):
    # blocks.1 is no part of blocks.10
    claims, faults = claim_sites(model_of(n_layer=11), {"a": gate("blocks.1"), "b": gate("blocks.10")})
    assert claims == {"blocks.1": "a", "blocks.10": "b"}
    assert not faults


def test_a_star_stands_for_one_part_of_a_name(model_of):
    model = model_of()
    assert set(claim_sites(model, {"a": gate("blocks.*")})[0]) == {"blocks.0", "blocks.1"}
    assert not claim_sites(model, {"a": gate("blocks.*.gate")})[0]
    assert not claim_sites(model, {"a": gate("*")})[0].keys() & {"blocks.0", "norm.weight"}


def test_a_dot_in_a_target_is_a_dot(model_of):
    assert not claim_sites(model_of(), {"a": gate("blocks.0xmlp")})[0]


def refusing(message):
    def make(old):
        raise ValueError(message)

    return make


def test_what_a_patch_refuses_is_a_fault_of_that_patch_told_once(manifest_of):
    assert faults_of(manifest_of({"a": toy("blocks.*.mlp", refusing("too wide"))})) == [("patch.a", "too wide")]


def test_all_faults_are_told_at_once(manifest_of):
    patches = {
        "a": toy("blocks.*.attn", refusing("too wide")),
        "b": gate("nowhere"),
        "c": gate(),
        "d": gate(),
        "e": toy("norm", refusing("too deep")),
    }
    assert {key for key, _ in faults_of(manifest_of(patches))} == {"patch.a", "patch.b.target", "patch.d", "patch.e"}


def test_every_claim_is_made_on_the_base_model_before_anything_is_replaced(manifest_of):
    # the second target exists only inside what the first patch puts in
    patches = {"a": toy("blocks.*.mlp.up", Around), "b": gate("blocks.*.mlp.up.inner")}
    assert [key for key, _ in faults_of(manifest_of(patches))] == ["patch.b.target"]


# initial values


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_seed_decides_every_weight(model_of):
    first, again, other = model_of(seed=1), model_of(seed=1), model_of(seed=2)
    assert same(first.state_dict(), again.state_dict())
    drawn = [name for name, p in first.named_parameters() if p.dim() > 1]
    assert not any(torch.equal(first.get_parameter(name), other.get_parameter(name)) for name in drawn)


def test_the_state_of_the_global_generator_neither_matters_nor_moves(model_of):
    torch.manual_seed(0)
    first, state = model_of(), torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert same(first.state_dict(), model_of().state_dict())


def test_a_patch_changes_no_other_draw(model_of):
    base, patched = model_of().state_dict(), model_of({"a": gate()}).state_dict()
    own = {key for key in patched if ".gate." in key}
    assert len(own) == 2
    assert same(base, {key: tensor for key, tensor in patched.items() if key not in own})
    first, second = (patched[key] for key in sorted(own))
    assert not torch.equal(first, second)


def test_a_second_patch_changes_no_draw_of_the_first(model_of):
    alone = model_of({"a": gate()}).state_dict()
    beside = model_of({"b": toy("norm", Around), "a": gate()}).state_dict()
    assert all(torch.equal(beside[key], alone[key]) for key in alone if ".gate." in key)


def test_a_base_module_kept_under_a_longer_name_keeps_its_draw(model_of):
    base, kept = model_of(), model_of({"a": toy("blocks.*.mlp", Around)})
    for name, parameter in base.blocks[1].mlp.named_parameters():
        assert torch.equal(kept.blocks[1].mlp.get_parameter(f"inner.{name}"), parameter)


def test_the_meta_device_gives_shapes_only(model_of):
    model = model_of(device="meta")
    assert all(p.is_meta for p in model.parameters())
    shapes = {name: p.shape for name, p in model_of().named_parameters()}
    assert shapes == {name: p.shape for name, p in model.named_parameters()}


class Forgetful(Gate):
    def reset_parameters(self, generator):
        self.w[:-1] = 0  # one element is left


class ForgetsMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.empty(4, dtype=torch.bool))

    def reset_parameters(self, generator):
        self.get_buffer("mask")[:3] = True


class NoReset(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.empty(4))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Forgetful, r"blocks.0.mlp.gate: reset_parameters of Forgetful does not fill w"),
        (ForgetsMask, r"blocks.0.mlp.gate: reset_parameters of ForgetsMask does not fill mask"),
        (NoReset, r"blocks.0.mlp.gate: NoReset has parameters or buffers but no reset_parameters"),
    ],
)
def test_a_module_that_leaves_something_unfilled_is_refused(manifest_of, module, message):
    with pytest.raises(ManifestError, match=message):
        build(manifest_of({"a": toy("blocks.*.mlp.gate", lambda old: module())}))


def test_a_linear_put_in_by_a_patch_is_drawn_by_its_own_name(model_of):
    patched = model_of({"a": toy("blocks.*.mlp.up", lambda old: Linear(16, 64, bias=True))})
    # the same name and seed as the base's: the same draw
    assert torch.equal(patched.blocks[0].mlp.up.weight, model_of().blocks[0].mlp.up.weight)


def test_seeds_are_the_same_on_every_machine():
    # the first eight bytes of sha-256("1/wte"), little-endian, halved
    assert seed_of(1, "wte") == seed_of("1", "wte") == 0x6BCB6442CA911B55
    assert seed_of(1, "a") != seed_of(2, "a")
