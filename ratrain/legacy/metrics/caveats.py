"""What is wrong with numbers that the reference wrote down: true of all runs, of a trainer's, or of a step's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from ratrain.config.find import shipped
from ratrain.config.parse import parse_file
from ratrain.legacy.metrics.read import OldRun

_ALL = (
    "validation losses are means over random batches, drawn anew at each evaluation: two runs of one model differed by"
    " 0.0024, and nobody measured by how much others do",
    "on one GPU no weight decay was applied, whatever was asked for, but by AdamWPrune and SinkGD, to everything; under"
    " DDP embeddings, norms and gates decayed too, and the tied table was stepped twice",
    "text was cut without <|endoftext|> between documents, and train and validation are two ends of one stream: these"
    " losses do not compare with ratrain's, whose corpora, tokens and windows are others",
)
_OF_TRAINER = {
    "train_ra_mla.py": (
        "nothing was seeded: no number can be made again",
        "trained in bfloat16 but evaluated in fp32; the evaluation after the last step is not in the file",
        "adamwspam was AdamW with AMSGrad and clip 1.0: nothing of SPAM ran, and no step pruned any weight",
        "ms of an iteration are forward, backward and step together, without waiting for the GPU",
        "a folder of data that was missing was replaced by random tokens, with a warning only",
    ),
    "train.py": (
        "the best loss is of any step, also of one before pruning had bitten; sparsity counts masks, not zero weights",
        "SPAM's counter ran twice as fast as its interval says, and its rates saw-toothed where warm-up was as long",
        "every GPU of a DDP run was seeded alike and drew the same batches: no more data than one GPU saw",
        "the first training loss that was logged is a tenth of the truth (divided by log_interval); perplexities stop"
        " at exp(20)",
        "a time-limited run ended far below its target sparsity",
    ),
}
_RANDOM = math.log(50257)  # of uniformly random tokens
_SPACES = {"L": "lens:", "S": "sinkgd:", "R": "rwr:", "": "ratio:"}


def caveats(runs: Sequence[OldRun]) -> list[str]:
    """One line each, the general ones first."""
    trainers = dict.fromkeys(run.trainer for run in runs if run.trainer)
    lines = [*(_ALL if trainers else ()), *(line for t in trainers for line in _OF_TRAINER[t])]
    as_run = _as_run()
    for run in runs:
        lines += [f"{run.name}: {line}" for line in _of_run(run, as_run)]
    return list(dict.fromkeys(lines))


def _of_run(run: OldRun, as_run: dict[str, str]) -> Iterator[str]:
    if run.step is not None:
        letter = run.step.rstrip("0123456789")
        name = _SPACES.get(letter, "") + run.step
        if name in as_run:
            yield f"{name} as it ran: {as_run[name]}"
    if run.evaluated and abs(run.evaluated[-1][1] - _RANDOM) < 0.2:
        yield f"its loss is that of random tokens, ln 50257 = {_RANDOM:.2f}: was its data there?"
    if run.evaluated and run.evaluated[-1][1] < 1:
        yield "a loss below 1 is not one of text: it saw the tokens that it was to predict"


def _as_run() -> dict[str, str]:
    """What each step did in place of what it meant, as the manifests that stand for the steps tell it."""
    told: dict[str, str] = {}
    for file in shipped():
        origin = parse_file(file).tree.get("origin")
        if isinstance(origin, dict) and re.fullmatch(r"(\w+:)?\w+", str(origin.get("step"))) and "as_run" in origin:
            told.setdefault(str(origin["step"]), str(origin["as_run"]))
    return told
