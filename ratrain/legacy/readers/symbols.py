"""Symbols of the old Kconfig, from `symbols.toml`, and names that files set although no Kconfig defined them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import tomli

# names that no Kconfig defined, so that the old tools dropped them, and the symbols that they evidently mean;
# names with a meaning of their own are in `UNDEFINED_ACTS`
UNDEFINED = {
    "MAX_ITERS": "GPT2_MAX_ITERS",
    "LOG_INTERVAL": "GPT2_LOG_INTERVAL",
    "DTYPE": "GPT2_AMP_DTYPE",
    "TRACKER_TRACKIO": "ENABLE_TRACKIO",
    "TRACKER_WANDB": "ENABLE_WANDB",
    "TEST_PARALLEL_JOBS": "PARALLEL_JOBS",
    "GPT2_BATCH_SIZE": "BATCH_SIZE",
    "GPT2_LEARNING_RATE": "LEARNING_RATE",
    "GPT2_WEIGHT_DECAY": "WEIGHT_DECAY",
    "SPARSITY_50": "SPARSITY_ENABLE_50",
    "TEST_PRUNING_STATE": "PRUNING_ENABLE_STATE",
    "GPT2_TRACKER": "TRACKER",
    "GPT2_VANILLA_ABLATION_MODE": "RA_MLA_ABLATION_MODE",
    "GPT2_VANILLA_ABLATION_STEPS": "RA_MLA_ABLATION_STEPS",
}
UNDEFINED_ACTS = {
    "WEIGHT_DECAY": "optim.weight_decay",
    "GPT2_DATASET": "data.source",
    "GPT2_DATASET_TINYSTORIES": "data.source",
    "ENABLE_DOUBLE_ATTENTION": "patch.double_attention",
    "GPT2_MODEL_SIZE": "scale",
    "TRACKER": "log.trackers",
    "TRACKER_NONE": "log.trackers",
    "GRADIENT_CLIP_NORM": "optim.clip",
    "ADAMWPRUNE_VARIANT": "prune.score",
    "TEST_ADAMWPRUNE_VARIANTS": "prune.score",
    "ADAMWPRUNE_RAMP_END_STEP": "prune.end",
    "TEST_SPARSITIES": "prune.target",
    "PRUNING_ENABLE_MOMENTUM": "prune.kind",
}
UNDEFINED_FLAGS = {"GPT2_DATASET_TINYSTORIES", "ENABLE_DOUBLE_ATTENTION"}
UNDEFINED_IDLE = {
    "MOMENTUM_PRUNING_ALPHA": "momentum pruning was never implemented",
    "PRUNING_ENABLE_RANDOM": "random pruning was never implemented",
    "HYPER_PARAM_MANUAL": "every value is the file's own here",
}
UNDEFINED_REFUSED = {
    "HYPER_PARAM_AUTO": "it chose the batch by the GPU's memory; name it: BATCH_SIZE, GPT2_GRADIENT_ACCUMULATION",
}
# words in a name that select a part of the training: the part, and an example of a line that selects one
_CHOICES = (
    ({"DATASET", "DATASETS"}, "a dataset", "GPT2_DATASET_FINEWEBEDU=y"),
    ({"ABLATION"}, "an ablation", 'RA_MLA_ABLATION_MODE=y and RA_MLA_ABLATION_STEPS="V0,V1"'),
    ({"OPTIMIZER", "OPTIMIZERS", "SGD", "SPAM", "SINKGD", "MUON", "LION"}, "an optimizer", "OPTIMIZER_SELECT_ADAMW=y"),
    ({"PRUNING", "PRUNE", "SPARSITY"}, "how weights are pruned", "PRUNING_SELECT_MAGNITUDE=y"),
    (
        {"ENABLE", "MODEL", "ATTENTION", "ATTN", "RA", "MLA", "MLP", "LENS", "RWR", "ROPE", "KV", "KVSPLICE"},
        "a mechanism",
        'a step of RA_MLA_ABLATION_STEPS, or a manifest ("ratrain list" names all)',
    ),
)
Type = Literal["bool", "int", "string"]


@dataclass(frozen=True)
class Definition:
    """One definition of a symbol. `defaults`: pairs (value, condition); the first whose condition holds counts."""

    type: Type
    defaults: tuple[tuple[str, str], ...] = ()
    needs: str = ""
    range: tuple[int, int] | None = None
    choice: str = ""  # named by its default
    selects: tuple[str, ...] = ()
    hidden: bool = False


@dataclass(frozen=True)
class Symbol:
    """A name that a defconfig may set; exactly one of `acts`, `idle`, `refused` is given, none for a hidden symbol."""

    name: str
    definitions: tuple[Definition, ...]
    acts: str = ""
    idle: str = ""
    refused: str = ""

    @property
    def first(self) -> Definition:
        return self.definitions[0]

    @property
    def hidden(self) -> bool:
        return all(one.hidden for one in self.definitions)


@cache
def symbols() -> Mapping[str, Symbol]:
    """Returns all symbols that Kconfig defined, in its reading order."""
    tables = tomli.loads(Path(__file__).with_name("symbols.toml").read_text())
    return {name: _symbol(name, said) for table in tables.values() for name, said in table.items()}


@cache
def known_names() -> Mapping[str, None]:
    """Returns every name with a meaning in a defconfig, in order."""
    return dict.fromkeys([*symbols(), *UNDEFINED, *UNDEFINED_ACTS, *UNDEFINED_IDLE])


def chosen_by(name: str) -> tuple[str, str] | None:
    """Returns the part of the training that an unknown symbol selects by its name, and an example line, or None."""
    words = set(name.split("_"))
    if any(word.startswith("ADAM") for word in words):
        words.add("OPTIMIZER")
    return next(((what, example) for signs, what, example in _CHOICES if words & signs), None)


def _symbol(name: str, said: Any) -> Symbol:
    entries = said if isinstance(said, list) else [said]
    verdict = {key: entries[0].get(key, "") for key in ("acts", "idle", "refused")}
    # the whole of gpt2/Kconfig was read only if the model was GPT-2
    gate = "MODEL_GPT2" if name.startswith("GPT2_") else ""
    return Symbol(name, tuple(_definition(entry, gate) for entry in entries), **verdict)


def _definition(entry: Mapping[str, Any], gate: str) -> Definition:
    default = entry.get("default", [])
    defaults = [[default]] if isinstance(default, str) else default
    needs = " && ".join(f"({part})" for part in (gate, entry.get("needs", "")) if part)
    return Definition(
        type=entry["type"],
        defaults=tuple((each[0], each[1] if len(each) > 1 else "") for each in defaults),
        needs=needs,
        range=tuple(entry["range"]) if "range" in entry else None,
        choice=entry.get("choice", ""),
        selects=tuple(entry.get("selects", ())),
        hidden=entry.get("hidden", False),
    )
