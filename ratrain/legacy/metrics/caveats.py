"""Known faults of the reference's numbers: of all runs, of a trainer, or of a step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from ratrain.config.find import shipped
from ratrain.config.parse import parse_file
from ratrain.legacy.metrics.read import OldRun

_ALL = (
    "validation losses are means over random batches, drawn anew at each evaluation: two runs of one model differed by"
    " 0.0024, and for other models it was not measured",
    "on one GPU weight decay was applied only by AdamWPrune and SinkGD, and there to every tensor; under"
    " DDP embeddings, norms and gates decayed too, and the tied table was stepped twice",
    "text was cut without <|endoftext|> between documents, and train and validation are two ends of one stream: these"
    " losses are not comparable with ratrain's, which has other corpora, tokens and windows",
)
_OF_TRAINER = {
    "train_ra_mla.py": (
        "nothing was seeded: no number can be reproduced",
        "trained in bfloat16 but evaluated in fp32; the evaluation after the last step is not in the file",
        "adamwspam was AdamW with AMSGrad and clip 1.0: no part of SPAM ran, and no step pruned",
        "ms per iteration are forward, backward and step together, without waiting for the GPU",
        "missing data were replaced by random tokens, with only a warning",
    ),
    "train.py": (
        "the best loss may be of a step before pruning; sparsity counts masks, not zero weights",
        "SPAM's counter ran twice as fast as its interval says, and its rate was a saw-tooth if warm-up was as long",
        "every GPU of a DDP run was seeded alike and drew the same batches: no more data than on one GPU",
        "the first logged training loss is a tenth of the true one (divided by log_interval); perplexities stop"
        " at exp(20)",
        "a time-limited run ended far below its target sparsity",
    ),
}
_RANDOM = math.log(50257)  # of uniformly random tokens
_SPACES = {"L": "lens:", "S": "sinkgd:", "R": "rwr:", "": "ratio:"}


def caveats(runs: Sequence[OldRun]) -> list[str]:
    """Returns one line per fault, the general ones first."""
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
        yield f"its loss is that of random tokens, ln 50257 = {_RANDOM:.2f}: its data may have been missing"
    if run.evaluated and run.evaluated[-1][1] < 1:
        yield "a loss below 1 is impossible on text: the model saw the tokens to predict"


def _as_run() -> dict[str, str]:
    """Returns the faults of each step as it ran, from `origin.as_run` of the steps' manifests."""
    told: dict[str, str] = {}
    for file in shipped():
        origin = parse_file(file).tree.get("origin")
        if isinstance(origin, dict) and re.fullmatch(r"(\w+:)?\w+", str(origin.get("step"))) and "as_run" in origin:
            told.setdefault(str(origin["step"]), str(origin["as_run"]))
    return told
