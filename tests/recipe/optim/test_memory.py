"""Bytes that each optimizer holds per weight of a matrix, as docs/optimizers.md states them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ratrain.engine.step import Precision, TrainStep
from ratrain.model.build import build
from ratrain.recipe.groups import group_parameters
from ratrain.registry import optim_kinds

PAGE = Path(__file__).parents[3] / "docs" / "optimizers.md"


def stated():
    """Bytes by kind, from the table of the page."""
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|.*\| (\d+)[^|]*\|$", PAGE.read_text(), re.MULTILINE)
    return {kind: int(size) for kinds, size in rows for kind in re.findall(r"[a-z_]+", kinds)}


@pytest.mark.parametrize("kind", optim_kinds())
def test_the_page_states_what_a_step_leaves(tiny, kind):
    pruning = ("prune.kind=state", "prune.score=bitter0", "prune.target=0.5") if kind == "adamwprune" else ()
    manifest = tiny("gpt2", f"optim.kind={kind}", *pruning)
    model = build(manifest)
    groups = group_parameters(model, manifest.optim.weight_decay)
    step = TrainStep(model, manifest.optim, groups=groups, precision=Precision("fp32", model), micro_batch=2)
    tokens = torch.randint(2048, (2, 17), generator=torch.Generator().manual_seed(0))
    step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    matrices = groups[0].parameters
    held = [*matrices, *(t for w in matrices for t in step.optimizer.state.get(w, {}).values() if t.numel() > 1)]
    size = sum(w.numel() for w in matrices)
    assert sum(t.nbytes for t in held) == stated()[kind] * size
    most = sum(t.nbytes for state in step.optimizer.state.values() for t in state.values() if t.numel() > 1)
    assert most <= 4 * type(manifest.optim).held * sum(p.numel() for p in step.parameters)
