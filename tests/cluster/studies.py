"""Small studies, and what must not depend on where their runs ran."""

from __future__ import annotations

import json
from pathlib import Path

FIXED = """\
id = "fixed"
scale = "tiny"
seed.init = [1, 2, 3]
arms = ["v9", "v19"]
set.compile.scope = "off"
set.train.budget = { steps = 6 }
set.eval.windows = 2
"""

# in tokens, so that the looks do not depend on a clock
ADAPTIVE = """\
id = "adaptive"
scale = "tiny"
seed = { min = 3, max = 8 }
budget = "0.03 Mtokens"
arms = ["v9", "soft_cap"]
verdict.delta = 0.01
set.compile.scope = "off"
set.train.budget = { steps = 6 }
set.eval.windows = 2
"""


def words_of(file: Path, out: Path) -> list:
    return ["--ablate", file, "--out", out, "--device", "cpu", "--no-costs"]


def results_of(out: Path) -> dict:
    """The results of the only study in `out`: all that is stated of runs, verdicts and looks."""
    (file,) = out.glob("studies/*/results.json")
    return json.loads(file.read_text())
