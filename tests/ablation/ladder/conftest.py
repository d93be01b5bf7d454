"""A ladder manifest of this folder's tests: one arm and a planted one, of a few steps."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ratrain.ablation.record import PlannedArm
from ratrain.ablation.results import Reached, Row
from ratrain.events import Evaluated, Fingerprints
from ratrain.storage.run_log import RunLog

LADDER = """\
id = "steps"
scale = "tiny"
arms = ["v9"]
set.compile.scope = "off"
set.log.every = 100
set.model.block_size = 16

[rungs]
params = [36_000, 75_000, 150_000, 300_000]
tokens = [128, 320, 1000, 2600]
seeds = [4, 3, 3, 3]

[arm.more]
manifest = "aa_order"
tokens = [2.0, 1.8, 1.5, 1.0]
"""


@pytest.fixture
def ladder(tmp_path):
    """Writes a ladder manifest, LADDER unless another text is given."""

    def ladder(text: str = LADDER):
        file = tmp_path / "ladder.toml"
        file.write_text(text)
        return file

    return ladder


SIZES = (30, 10)


@pytest.fixture
def row():
    """Makes the row of an arm from its final losses by seed, NaN for a run that diverged half-way."""

    def row(name: str, role: Any, losses: list, *, of: str = "", tokens: int = 10_000, flops: int = 6000) -> Row:
        folders = tuple(f"{name}-{seed}" for seed in range(1, len(losses) + 1))
        arm = PlannedArm(name, role, of, "", {}, name, "", None, "none", 1000, flops, 1, tokens, (), folders)
        stated = Fingerprints(data="", order="", windows="w", weights={}, unit="passage", sizes=SIZES)
        runs = []
        for seed, (loss, folder) in enumerate(zip(losses, folders, strict=True), start=1):
            diverged = math.isnan(loss)
            last = Evaluated(step=1, loss=loss, tokens=tokens // (2 if diverged else 1), seconds=1.0)
            log = RunLog(
                Path(), cast("Any", SimpleNamespace(environment={})), evaluated=[last], fingerprints=stated,
            )  # fmt: skip
            status = "diverged" if diverged else "done"
            runs.append(Reached(seed, seed, folder, status, loss, log, (loss, loss)))
        return Row(arm, tuple(runs), ())

    return row
