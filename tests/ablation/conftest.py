"""Ablation manifests of this folder's tests: two arms beside the baseline, at the tiny scale, uncompiled."""

from __future__ import annotations

import json

import pytest

STUDY = """\
id = "two"
title = "two ideas"
scale = "tiny"
seed.init = [1, 2]
arms = ["v9"]
set.compile.scope = "off"
set.train.budget = { steps = 6 }
set.log.every = 2

[arm.kept]
manifest = "v19"
grid.patch.kv_prune.keep = [0.5, 0.25]
"""


@pytest.fixture
def study(tmp_path):
    """Writes an ablation manifest, STUDY unless another text is given."""

    def study(text: str = STUDY):
        file = tmp_path / "study.toml"
        file.write_text(text)
        return file

    return study


@pytest.fixture
def ablate(ratrain, tmp_path):
    """Runs a study and returns its results and what it said."""

    def ablate(file, *words, code=0):
        place = ("--out", tmp_path / "runs", "--device", "cpu", "--json")
        got, out, err = ratrain("--ablate", file, *place, "--no-costs", *words)
        assert got == code, err
        return (json.loads(out) if out else None), err

    return ablate
