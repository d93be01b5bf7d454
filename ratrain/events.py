"""What the engine states while it runs: frozen facts. Sinks listen; the engine knows none of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

NOT_CAUSAL = "is not causal"  # what a Notice says of a mechanism that sees later tokens


@dataclass(frozen=True)
class Event:
    """A fact. Its name in logs is its class name."""

    def record(self) -> dict[str, Any]:
        return {"event": type(self).__name__, **asdict(self)}

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> Event | None:
        """The event that `record` was made of; None for a kind that this version does not know.

        Fields that are unknown are dropped. Raises ValueError, with its name, for one that is missing or of another
        type.
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
    total_steps: int | None  # None where the budget is in seconds
    tokens_per_step: int
    peak_flops: dict[str, float | None]  # "datasheet", "measured"
    baselines: dict[str, float]  # nats per token: "uniform", "unigram", "bigram"
    processes: int = 1  # that train it together
    manifest: dict[str, Any] = field(default_factory=dict)  # resolved, every key
    environment: dict[str, Any] = field(default_factory=dict)  # as env.json has it


@dataclass(frozen=True)
class Fingerprints(Event):
    """What two runs must have in common for their difference to be the variants' own; SHA-256, 16 digits of each."""

    data: str  # the corpus
    order: str  # tokens of the first batches
    windows: str  # tokens of the evaluation
    weights: dict[str, str]  # the base model's tensors as they begin, by name: shape and digest
    unit: str  # what the windows are a sample of: "document", "passage"
    sizes: tuple[int, ...]  # targets in each of these


@dataclass(frozen=True)
class AttentionChosen(Event):
    """What computes the base's causal attention in training and evaluation, and how that was found."""

    backend: str  # flash, cudnn, efficient, math, ours; torch: its own choice, made anew for each call
    source: str  # asked, measured, cached (measured before), recorded (by this run), default (torch's own)
    case: str  # dtype, [B, H, T, D] and device
    seconds: dict[str, float]  # of a forward and a backward pass; empty where nothing was measured


@dataclass(frozen=True)
class Resumed(Event):
    step: int
    checkpoint: str
    skipped: tuple[str, ...] = ()  # newer checkpoints that did not verify, and why


@dataclass(frozen=True)
class Branched(Event):
    """The run begins at a step of another."""

    step: int
    run: str
    run_hash: str


@dataclass(frozen=True)
class Pretrained(Event):
    """The run begins with weights of another trainer's."""

    weights: str
    sha256: str
    tensors: int
    repack: str
    notes: tuple[str, ...] = ()  # what could not be checked


@dataclass(frozen=True)
class Activated(Event):
    """A mechanism leaves the base model: its s is above 0 from the step after this one on."""

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
    """What one kind of pass needs: 'train' before the first step, 'evaluate' after the first window."""

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
    seconds: float  # training alone: compile, evaluation and checkpoints apart
    tokens_per_second: float
    mfu: float | None  # of the measured peak
    mfu_datasheet: float | None
    peak_memory: int  # bytes: device memory on a GPU, resident set on a CPU
    graphs: int
    recompiles: int
    eta: float | None  # seconds
    sparsity: float = 0.0  # of the weights that are pruned from


@dataclass(frozen=True)
class Evaluated(Event):
    step: int
    loss: float
    tokens: int
    seconds: float
    parts: tuple[float, ...] = ()  # of the documents or passages that Fingerprints tells of


@dataclass(frozen=True)
class PruningBegan(Event):
    """Which weights the sparsities of this run are of."""

    kind: str
    tensors: tuple[str, ...]
    weights: int
    of_parameters: int


@dataclass(frozen=True)
class Pruned(Event):
    """Masks were made anew after this step."""

    step: int
    sparsity: float  # of the weights that are pruned from
    pruned: int
    reached: bool  # the target; no mask changes any more


@dataclass(frozen=True)
class PruningEvaluated(Event):
    """What a run that pruned its weights has at its end. Losses are nats per token on the validation windows."""

    step: int
    target: float
    sparsity: float  # of the weights that are pruned from, by the masks
    zeros: dict[str, tuple[int, int]]  # weights that are zero, and weights, counted: of what is pruned, and the table
    pruned: list[str]  # tensors that are pruned
    reached: bool  # whether the run got to the look that prunes to the target
    not_zero: int  # weights that are masked and not zero
    loss_dense_best: float | None  # while nothing was pruned; None: not evaluated then
    loss_target_best: float | None  # with the target reached
    loss: float  # of the weights as they are, whatever average is evaluated else
    loss_reloaded: float  # of the checkpoint, read into a model that knows of no pruning
    peak_memory: int  # bytes
    step_seconds: dict[str, float | None]  # median step of windows "with looks" and "without"
    bytes_dense: int  # of these tensors in fp32
    bytes_packed: int  # a bit of mask for each weight, and those that stay


@dataclass(frozen=True)
class OptimizerTold(Event):
    """What an optimizer counts has grown since the last window: spikes and resets of SPAM."""

    step: int
    counts: dict[str, int]  # since the last window that told of any
    totals: dict[str, int]  # since step 0


@dataclass(frozen=True)
class Probed(Event):
    """What the patches offer to be looked at after a step: by patch and probe, a row per layer (empty where the patch
    is not), holding a value per head or one."""

    step: int
    values: dict[str, dict[str, list[list[float]]]]


@dataclass(frozen=True)
class Fitted(Event):
    """A patch was fitted to what the model makes of training text, as it is at this step.

    Errors are means over layers and heads, on text that was held out from the fit, relative to the variance.
    """

    step: int
    patch: str
    vectors: int  # per head
    objective: str  # what the errors are of
    error: float
    error_of_pca: float  # in as many channels
    error_of_values: float  # whatever the objective
    heads: int
    heads_as_pca: int  # that nothing served better


@dataclass(frozen=True)
class Saved(Event):
    step: int
    path: str
    bytes: int
    seconds: float
    weights: str = ""  # SHA-256 of model.safetensors


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
class Notice(Event):
    """Something the user should know: `level` is 'info' or 'warning'."""

    message: str
    level: str = "info"


@dataclass(frozen=True)
class RunEnded(Event):
    status: str  # done, preempted, diverged, failed
    step: int
    loss: float | None
    seconds: dict[str, float] = field(default_factory=dict)  # by phase


Emit = Callable[[Event], None]


# fields that events of November 2026 lack
_ADDED: dict[str, dict[str, Any]] = {
    "Compiled": {"what": "train"},
    "Fitted": {"objective": "values", "error_of_values": float("nan")},
    "PruningEvaluated": {"reached": True},
}


@functools.cache
def _kinds() -> dict[str, Any]:
    """A pydantic adapter for each kind of event."""
    from pydantic import TypeAdapter  # here: a process that writes events alone does without

    return {kind.__name__: TypeAdapter(kind) for kind in Event.__subclasses__()}
