"""The events that the engine publishes: immutable records. Sinks receive them; the engine depends on no sink."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

NOT_CAUSAL = "is not causal"  # in the Notice about a mechanism that sees later tokens


@dataclass(frozen=True)
class Event:
    """Base class of events. An event's name in logs is its class name."""

    def record(self) -> dict[str, Any]:
        return {"event": type(self).__name__, **asdict(self)}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Event | None:
        """Returns the event of a record; None for a kind unknown to this version.

        Unknown fields are dropped. Raises ValueError, with the field's name, if a field is missing or of another type.
        """
        name = str(record.get("event"))
        if name not in (kinds := _kinds()):
            return None
        try:
            return kinds[name].validate_python({**_ADDED.get(name, {}), **record})
        except ValueError as error:
            fault = error.errors()[0]  # type: ignore[attr-defined]
            raise ValueError(f"{'.'.join(map(str, (name, *fault['loc'])))}: {fault['msg']}") from error


@dataclass(frozen=True)
class RunStarted(Event):
    id: str
    title: str
    scale: str
    folder: str
    recipe_hash: str
    run_hash: str
    seed_init: int
    seed_data: int
    device: str
    precision: str
    parameters: int
    flops_per_token: float  # forward and backward
    kv_bytes_per_token: int
    train_tokens: int  # in the data set
    val_tokens: int
    budget: dict[str, float]
    total_steps: int | None  # None if the budget is in seconds
    tokens_per_step: int
    peak_flops: dict[str, float | None]  # "datasheet", "measured"
    baselines: dict[str, float]  # nats per token: "uniform", "unigram", "bigram"; of a recall task "uniform", "guess"
    processes: int = 1  # number of data-parallel processes
    manifest: dict[str, Any] = field(default_factory=dict)  # resolved, every key
    environment: dict[str, Any] = field(default_factory=dict)  # as in env.json


@dataclass(frozen=True)
class Fingerprints(Event):
    """Digests that paired runs must share, so that only the variant differs: 16 digits of each SHA-256."""

    data: str  # the corpus
    order: str  # tokens of the first batches
    windows: str  # tokens of the evaluation
    weights: dict[str, str]  # the base model's initial tensors, by name: shape and digest
    unit: str  # the sampling unit of the windows: "document", "passage"; of a recall task "row"
    sizes: tuple[int, ...]  # targets in each unit
    overlap: dict[str, Any] = field(default_factory=dict)  # validation text in the training text (data/overlap.py)


@dataclass(frozen=True)
class AttentionChosen(Event):
    """The backend of the base model's causal attention in training and evaluation, and how it was chosen."""

    backend: str  # flash, cudnn, efficient, math, ours; torch: its own selection at each call
    source: str  # asked (in the manifest), measured, cached (measured before), recorded (by this run), default (torch)
    case: str  # dtype, [B, H, T, D] and device
    seconds: dict[str, float]  # of a forward and a backward pass; empty without a measurement


@dataclass(frozen=True)
class Resumed(Event):
    step: int
    checkpoint: str
    skipped: tuple[str, ...] = ()  # newer checkpoints that did not verify, and why


@dataclass(frozen=True)
class Branched(Event):
    """The run starts from a step of another run."""

    step: int
    run: str
    run_hash: str


@dataclass(frozen=True)
class Pretrained(Event):
    """The run starts from weights of another trainer."""

    weights: str
    sha256: str
    tensors: int
    repack: str
    notes: tuple[str, ...] = ()  # facts that could not be checked


@dataclass(frozen=True)
class Activated(Event):
    """A mechanism is switched on: its s is above 0 from the next step on."""

    step: int
    patch: str
    s: float


@dataclass(frozen=True)
class PhaseStarted(Event):
    """The engine enters a phase that may take long: 'compile', 'evaluate', 'fit', 'save', 'examine'."""

    phase: str
    note: str = ""


@dataclass(frozen=True)
class Compiled(Event):
    """The model is compiled for one kind of pass: 'train' before the first step, 'evaluate' after the first window."""

    what: str
    seconds: float
    graphs: int
    expected: int  # one per region; more are recompiles
    cached: bool


@dataclass(frozen=True)
class Window(Event):
    """The steps between two device syncs; losses and norms are per step, `step` is the last one, counted from 1."""

    step: int
    tokens: int
    spent: float  # fraction of the budget
    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    skipped: int  # steps in this window whose gradient was not finite
    lr: float
    seconds: float  # training only, without compilation, evaluation and checkpoints
    tokens_per_second: float
    mfu: float | None  # of the measured peak
    mfu_datasheet: float | None
    peak_memory: int  # bytes: device memory on a GPU, resident set on a CPU
    graphs: int
    recompiles: int
    eta: float | None  # seconds
    sparsity: float = 0.0  # of the prunable weights


@dataclass(frozen=True)
class Evaluated(Event):
    step: int
    loss: float
    tokens: int
    seconds: float
    parts: tuple[float, ...] = ()  # mean loss of each document or passage (Fingerprints.unit)
    bits_per_byte: float | None = None  # None in runs before December 2026, and for recall tasks
    windows: str = ""  # digest of the validation windows; empty in runs before December 2026
    accuracy: float | None = None  # of the answers of a recall task, in [0, 1]; None for text


@dataclass(frozen=True)
class PruningBegan(Event):
    """The weights that this run prunes; its sparsities are relative to them."""

    kind: str
    tensors: tuple[str, ...]
    weights: int
    of_parameters: int


@dataclass(frozen=True)
class Pruned(Event):
    """Masks were updated in this step."""

    step: int
    sparsity: float  # of the prunable weights
    pruned: int
    reached: bool  # the target is reached; masks do not change any more


@dataclass(frozen=True)
class PruningEvaluated(Event):
    """The final result of weight pruning. Losses are in nats per token on the validation windows."""

    step: int
    target: float
    sparsity: float  # of the prunable weights, by the masks
    zeros: dict[str, tuple[int, int]]  # number of zero weights and of all weights, by pruned matrix and token table
    pruned: list[str]  # names of the pruned tensors
    reached: bool  # whether the run reached the mask update that prunes to the target
    not_zero: int  # masked weights that are not zero
    loss_dense_best: float | None  # best at zero sparsity; None: never evaluated there
    loss_target_best: float | None  # best at the target
    loss: float  # of the current weights, not of an average
    loss_reloaded: float  # of the checkpoint, loaded into a model without pruning
    peak_memory: int  # bytes
    step_seconds: dict[str, float | None]  # median step of windows "with looks" and "without"
    bytes_dense: int  # of these tensors in fp32
    bytes_packed: int  # one mask bit per weight, and the kept weights


@dataclass(frozen=True)
class OptimizerTold(Event):
    """Counters of the optimizer that grew since the last window: spikes and resets of SPAM."""

    step: int
    counts: dict[str, int]  # increments since the last window
    totals: dict[str, int]  # since step 0


@dataclass(frozen=True)
class Probed(Event):
    """Values of the probes after a step, by patch and probe: a row per layer, with one value or one per head.

    The row of a layer without the patch is empty.
    """

    step: int
    values: dict[str, dict[str, list[list[float]]]]


@dataclass(frozen=True)
class Fitted(Event):
    """A patch was fitted to activations of the model on training text, with the weights of this step.

    Errors are means over layers and heads, on text held out from the fit, relative to the variance.
    """

    step: int
    patch: str
    vectors: int  # per head
    objective: str  # the quantity whose error is given
    error: float
    error_of_pca: float  # with the same number of channels
    error_of_values: float  # of the values, for every objective
    heads: int
    heads_as_pca: int  # heads without an improvement over PCA


@dataclass(frozen=True)
class Score:
    """One metric of a downstream task: its value over all documents, with a standard error over documents.

    `parts` and `weights` hold its sum and its count by document, if it is a mean of them on some scale: the value
    itself ("mean", "bits per byte") or its logarithm ("perplexity"). The scale "other" has none.
    """

    value: float
    se: float | None
    higher_is_better: bool
    scale: str = "other"
    parts: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()  # words, bytes, or ones


@dataclass(frozen=True)
class TaskScored(Event):
    """The weights of a step were scored on a downstream task, by lm-evaluation-harness; in tasks.jsonl of the run."""

    step: int
    weights: str  # SHA-256 of model.safetensors
    task: str
    digest: str  # SHA-256 of the resolved task, the documents and the requests made of them
    harness: str  # version of lm_eval
    documents: int
    available: int  # documents that the task has; more than `documents` if they were limited
    fewshot: int
    cut: int  # requests whose context was longer than block_size
    scores: dict[str, Score]  # by metric, and its filter if there is one


@dataclass(frozen=True)
class Saved(Event):
    step: int
    path: str
    bytes: int
    seconds: float
    weights: str = ""  # SHA-256 of model.safetensors
    stall: float = 0.0  # of `seconds`, those for which training waited; 0 as well in runs before December 2026


@dataclass(frozen=True)
class Machine(Event):
    """Host and device load, read beside the run."""

    step: int
    cpu_percent: float
    memory: int
    gpu: dict[str, float] | None = None


@dataclass(frozen=True)
class Sampled(Event):
    step: int
    text: str


@dataclass(frozen=True)
class Heartbeats(Event):
    """What rank 0 has heard of the processes of a run, once a minute; by rank."""

    step: int
    steps: tuple[int, ...]  # that each was at when it was heard last
    silent: tuple[float, ...]  # seconds since then, in whole beats


@dataclass(frozen=True)
class Notice(Event):
    """A message to the user: `level` is 'info' or 'warning'."""

    message: str
    level: str = "info"


@dataclass(frozen=True)
class RunEnded(Event):
    status: str  # done, preempted, diverged
    step: int
    loss: float | None
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    windows: str = ""  # digest of the validation windows of the loss


Emit = Callable[[Event], None]


# default values of fields that events of November 2026 lack
_ADDED: dict[str, dict[str, Any]] = {
    "Compiled": {"what": "train"},
    "Fitted": {"objective": "values", "error_of_values": float("nan")},
    "PruningEvaluated": {"reached": True},
}


@functools.cache
def _kinds() -> dict[str, Any]:
    """Returns a pydantic adapter for each kind of event."""
    from pydantic import TypeAdapter  # imported here: a process that only writes events does not need it

    return {kind.__name__: TypeAdapter(kind) for kind in Event.__subclasses__()}
