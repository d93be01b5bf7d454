"""Runs under muP: resumed to the bit, pruned, averaged, divided into groups that every part of a run reads."""

from __future__ import annotations

import pytest
import torch

from ratrain.engine.assembly import assemble
from ratrain.recipe.groups import group_parameters
from ratrain.run.sample import load_run
from ratrain.storage.checkpoint import load_newest
from ratrain.storage.run_log import read_run

MUP = ("model.parametrisation=mup", "model.base={ n_embd = 16, n_head = 2 }", "model.n_embd=64", "model.n_head=4")


def checkpoint_of(run):
    return load_newest(run / "checkpoints")[0]


def test_groups_hold_every_parameter_once_and_matrices_first(tiny):
    model = assemble(tiny("v5", *MUP, "patch.reciprocal_mlp.width=16")).model
    groups = group_parameters(model, 0.1)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(dict(model.named_parameters()))
    assert [group.matrices for group in groups] == sorted((group.matrices for group in groups), reverse=True)
    assert all(group.weight_decay == pytest.approx(0.1 / group.lr_factor) for group in groups if group.matrices)


def test_a_run_that_was_stopped_resumes_to_the_same_bits(trained, ratrain, tmp_path):
    long = ("train.budget.steps=8", "schedule.kind=constant", "schedule.warmup={steps=0}", "checkpoint.every=4")
    whole = trained("v1", *MUP, *long)
    half = trained("v1", *MUP, *long[1:], "train.budget.steps=4")
    assert half.parent.name == whole.parent.name  # with a constant rate a longer budget continues the same run
    words = [word for key in (*MUP, *long) for word in ("--set", key)]
    assert ratrain("v1", "--scale", "tiny", "--out", half.parents[1], "--json", *words)[0] == 0
    ours, theirs = checkpoint_of(half), checkpoint_of(whole)
    assert ours.step == theirs.step == 8
    for kind in ("model", "optimizer"):
        one, other = getattr(ours, kind), getattr(theirs, kind)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_logs_the_schedules_rate_and_is_loaded_with_its_multipliers(trained):
    run = trained("v0", *MUP, "train.budget.steps=6", "schedule.kind=constant", "schedule.lr=1e-3", "eval.ema=0.5")
    assert read_run(run).windows[-1].lr == pytest.approx(1e-3)
    _, model = load_run(run, device=torch.device("cpu"), warn=pytest.fail)
    assert (model.read_scale, model.blocks[0].attn.core.scale) == (1 / 4, 8**0.5 / 16)


@pytest.mark.parametrize("prune", ["magnitude", "movement"])
def test_weights_are_pruned_across_groups(tiny, prune):
    keys = (f"prune.kind={prune}", "prune.target=0.5", "patch.reciprocal_mlp.mixer=true")
    made = assemble(tiny("v4", *MUP, *keys, "patch.reciprocal_mlp.width=16"))
    made.step.set_lr(1e-3)
    (pruner,) = made.step.hooks
    pruner.expect(0.5, last=True)
    tokens = torch.arange(132).view(4, 33)
    made.step(tokens[:, :-1], tokens[:, 1:])
    weights = [made.model.get_parameter(name) for name in pruner.names]
    assert len({group.lr_factor for group in made.step.groups if group.matrices}) == 2
    zeros, whole = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros == pytest.approx(whole / 2, abs=1)
