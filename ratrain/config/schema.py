"""The schema of a manifest: every key with its type, bounds and default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_serializer,
    model_validator,
)

from ratrain.config.recall import MIXTURE, RECALL, read_keys

INIT_STD = 0.02  # of GPT-2
VOCAB_MULTIPLE = 128  # rows of the token table are padded to this; matrix tiles on every device divide it


class Section(BaseModel):
    """A table of a manifest: frozen, without unknown keys and without conversions except from int to float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class OneOf(Section):
    """A table in which exactly one key is set."""

    @model_validator(mode="after")
    def _exactly_one(self):
        if len(self.model_fields_set) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def unit(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def amount(self) -> float:
        return getattr(self, self.unit)


class Budget(OneOf):
    """The training budget; schedules run on its spent fraction."""

    tokens: PositiveInt | None = None
    steps: PositiveInt | None = None
    seconds: PositiveFloat | None = None


class Span(OneOf):
    """A span of a run: a fraction of the budget, or a number of steps."""

    fraction: float | None = Field(default=None, ge=0, lt=1)
    steps: NonNegativeInt | None = None


class BaseShape(Section):
    """The shape at which learning rate, init_std, weight decay and eps were chosen."""

    n_embd: PositiveInt | None = None
    n_head: PositiveInt | None = None
    n_layer: PositiveInt | None = Field(default=None, description="completep only: mup does not depend on the depth")

    @model_validator(mode="after")
    def _divides(self):
        if self.n_embd and self.n_head and self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}")
        return self


READ_OF_BASE = {  # keys of `base` by parametrisation
    "standard": (),
    "mup": ("n_embd", "n_head"),
    "completep": ("n_embd", "n_head", "n_layer"),
}


class ModelSpec(Section):
    """Shapes of the base model; patches read them and never change them."""

    n_layer: PositiveInt
    n_head: PositiveInt
    n_embd: PositiveInt
    block_size: PositiveInt = Field(description="longest context in tokens, and the length of a training sequence")
    vocab_size: PositiveInt = Field(description="tokens that can occur; the table is padded to a multiple of 128")
    mlp_ratio: PositiveFloat = Field(default=4, description="MLP hidden width over n_embd, in whole channels")
    bias: bool = Field(default=True, description="biases in linear layers and layer norms")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    pos: Literal["learned", "rope"] = Field(default="learned", description="rows added to tokens, or q and k turned")
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: PositiveFloat = 1e-5
    qk_norm: Literal["none", "rms"] = Field(default="none", description="of queries and keys, per head")
    act: Literal["gelu", "gelu_tanh", "relu2"] = Field(
        default="gelu", description="of the MLP; gelu_tanh is what released GPT-2 weights expect"
    )
    head: Literal["tied", "untied"] = Field(default="tied", description="whether the token table is also the head")
    init_std: PositiveFloat = Field(
        default=INIT_STD,
        description="standard deviation of the initial weights; 0.02 suits GPT-2's 768 channels and more",
    )
    parametrisation: Literal["standard", "mup", "completep"] = Field(
        default="standard",
        description="how initial weights, learning rates and multipliers follow the width (mup), or the width and the "
        "depth (completep), from the shape `base` on (docs/parametrisation.md)",
    )
    base: BaseShape | None = None

    @model_validator(mode="after")
    def _has_base(self):
        given, reads = self.base.model_fields_set if self.base else set(), READ_OF_BASE[self.parametrisation]
        if unread := sorted(given.difference(reads)):
            wanted = f"; drop base.{', base.'.join(unread)}, or take another parametrisation"
            raise ValueError(f"parametrisation = {self.parametrisation!r} does not read base.{unread[0]}{wanted}")
        if missing := [key for key in reads if self.base is None or getattr(self.base, key) is None]:
            wanted = ", ".join(f"base.{key}" for key in missing)
            raise ValueError(f"parametrisation = {self.parametrisation!r} needs the shape it grows from: set {wanted}")
        return self

    @model_validator(mode="after")
    def _divides(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}")
        if self.pos == "rope" and self.head_dim % 2:
            raise ValueError(f"pos = 'rope' turns channels in pairs, but n_embd / n_head = {self.head_dim} is odd")
        return self

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def n_hidden(self) -> int:
        return round(self.mlp_ratio * self.n_embd)

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def width_growth(self) -> float:
        """n_embd over that of the base shape; 1 under the standard parametrisation."""
        return self.n_embd / self.base.n_embd if self.base and self.base.n_embd else 1.0

    @property
    def depth_growth(self) -> float:
        """n_layer over that of the base shape under completep; else 1."""
        return self.n_layer / self.base.n_layer if self.base and self.base.n_layer else 1.0

    @property
    def score_scale(self) -> float | None:
        """The factor on attention scores, root(base head_dim) / head_dim; None: one over the root of head_dim."""
        if not (self.base and self.base.n_embd and self.base.n_head):
            return None
        of_base = self.base.n_embd // self.base.n_head
        return None if of_base == self.head_dim else of_base**0.5 / self.head_dim

    @property
    def residual_std(self) -> float:
        """Standard deviation of the initial projections into the residual stream, before any growth of the width."""
        n_layer = self.base.n_layer if self.base and self.base.n_layer else self.n_layer
        return self.init_std / (2 * n_layer) ** 0.5


class DataSection(Section):
    """The text, or the recall task: then the answers alone are predicted (docs/recall.md)."""

    source: str = Field(
        default="shakespeare",
        description="'shakespeare' (embedded), a folder of .bin token shards, 'mixture' of such, or a recall task: "
        "'mqar', 'induction', 'copy', 'needle'",
    )
    tokenizer: str = Field(
        default="shakespeare2k", description="'shakespeare2k' or 'gpt2'; decodes samples. Recall tasks: 'symbols'"
    )
    mixture: Mapping[str, Annotated[float, Field(gt=0, le=1e9)]] = Field(
        default={}, description='source = \'mixture\': the sources by their weights, { "web" = 0.7, "books" = 0.3 }'
    )
    most_overlap: float = Field(
        default=0.01, ge=0, le=1, description="largest share of the validation text that may be training text as well"
    )
    pairs: PositiveInt = Field(default=8, description="recall: pairs or symbols to remember in a row")
    distance: NonNegativeInt = Field(default=0, description="recall: least tokens between them and the first answer")
    noise: float = Field(default=0.0, ge=0, le=1, description="recall: probability that a filler token is not blank")

    @property
    def is_recall(self) -> bool:
        return self.source in RECALL

    @model_validator(mode="after")
    def _reads(self):
        if unread := sorted(self.model_fields_set - read_keys(self.source)):
            raise ValueError(f"source = {self.source!r} does not read {', '.join(unread)}")
        if self.source == MIXTURE and (len(self.mixture) < 2 or {MIXTURE, *RECALL} & set(self.mixture)):
            raise ValueError("source = 'mixture' needs two texts or more in mixture, each with its weight")
        return self

    @model_serializer(mode="wrap")
    def _dump(self, dump):
        return {key: value for key, value in dump(self).items() if key in read_keys(self.source)}


class OptimSection(Section):
    """The keys of every optimizer; each kind adds its own keys in `recipe/optim/<kind>.py`."""

    kind: ClassVar[str]
    moments: ClassVar[bool] = False  # whether every matrix has Adam's two moments
    held: ClassVar[int] = 2  # most state values kept per weight

    weight_decay: float = Field(default=0.1, ge=0, description="on the matrices of the blocks only")
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 never clips")

    @property
    def divisible(self) -> bool:
        """Whether its optimizer can work where FSDP divides the matrices among processes."""
        return True

    @property
    def transfers(self) -> bool:
        """Whether the learning rates, eps and decay of `model.parametrisation` are right for it: they are Adam's."""
        return False


class ScheduleSection(Section):
    kind: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    lr: PositiveFloat
    warmup: Span = Span(fraction=0.02)
    final: float = Field(default=0.1, ge=0, le=1, description="last learning rate over the peak")
    decay: float = Field(default=0.2, gt=0, le=1, description="wsd: fraction of the budget that decays")


_READS = {  # keys that each kind of activation reads
    "at_once": (),
    "after": ("after",),
    "ramp": ("after", "over"),
    "variance": ("after", "over", "rule", "window", "every", "threshold", "deadline"),
}


class ActivationSection(Section):
    """The schedule that switches a mechanism on: its s goes from 0, the base model, to 1."""

    kind: Literal["at_once", "after", "ramp", "variance"] = "at_once"
    after: Span = Field(default=Span(steps=0), description="when s leaves 0; variance: the earliest step")
    over: Span = Field(default=Span(steps=0), description="ramp, variance: duration of the ramp of s from 0 to 1")
    rule: Literal["detrended", "raw"] = Field(
        default="detrended", description="raw: the variance of the losses themselves, which measures descent as well"
    )
    window: PositiveInt = Field(default=100, ge=3, description="variance: number of last training losses")
    every: PositiveInt = Field(default=50, description="variance: steps between tests")
    threshold: PositiveFloat = Field(default=0.02, description="variance: opens below this, in nats squared")
    deadline: Span = Field(default=Span(fraction=0.5), description="variance: the latest step")

    @model_validator(mode="after")
    def _reads(self):
        unread = sorted(self.model_fields_set - {"kind", *_READS[self.kind]})
        if unread:
            raise ValueError(f"kind = {self.kind!r} does not read {', '.join(unread)}")
        if self.kind == "after" and "after" not in self.model_fields_set:
            raise ValueError("kind = 'after' needs after = { steps = ... } or { fraction = ... }")
        if self.kind == "ramp" and "over" not in self.model_fields_set:
            raise ValueError("kind = 'ramp' needs over = { steps = ... } or { fraction = ... }")
        return self

    @model_serializer(mode="wrap")
    def _read_keys(self, dump):
        return {key: value for key, value in dump(self).items() if key in ("kind", *_READS[self.kind])}


class TrainSection(Section):
    budget: Budget
    batch: PositiveInt = Field(description="sequences per step, over all devices and micro-steps")
    micro_batch: PositiveInt = Field(description="sequences per forward pass; must divide batch")
    precision: Literal["fp32", "bf16", "amp_bf16", "fp8"] = Field(
        default="fp32",
        description="number format of the forward pass; fp8: bf16, with products of 8-bit numbers in the MLPs and the "
        "head, on GPUs that have them (H100, L40S and newer)",
    )
    deterministic: Literal["auto", "on", "off"] = Field(default="auto", description="auto: on for CPU, off on a GPU")
    z_loss: NonNegativeFloat = Field(
        default=0.0, description="weight of the squared log of the softmax's sum, in the gradient, not in the loss told"
    )
    max_skips: NonNegativeInt = Field(default=10, description="non-finite steps in a row before the run gives up")

    @model_validator(mode="after")
    def _divides(self):
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide batch = {self.batch}")
        return self


_OTHER = 1 << 62  # bit that makes a twin's seed differ from any seed in a manifest


class SeedSection(Section):
    """The random seeds. `twin` makes an A/A arm: the same variant and seeds, with one difference."""

    init: NonNegativeInt = 1
    data: NonNegativeInt = 1
    twin: Literal["none", "ulp", "init", "order"] = Field(
        default="none",
        description="A/A arm: one initial weight a unit in the last place higher, other initial weights, another order",
    )

    @property
    def weights(self) -> int:
        """The seed of the initial weights."""
        return self.init ^ _OTHER if self.twin == "init" else self.init

    @property
    def order(self) -> int:
        """The seed of the batches and the dropout masks."""
        return self.data ^ _OTHER if self.twin == "order" else self.data


class InitSection(Section):
    """The initial weights; empty: drawn by seed.init."""

    weights: str | None = Field(
        default=None, min_length=1, description="a GPT-2 in Hugging Face's layout: its folder, or a .safetensors file"
    )
    sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the weights (shards joined); empty: computed"
    )
    repack: Literal["exact", "reciprocal"] = Field(
        default="exact",
        description="reciprocal: also rearranged as the mechanisms define it, which is another function",
    )

    @model_validator(mode="after")
    def _has_weights(self):
        if self.weights is None and (self.sha256 is not None or self.repack != "exact"):
            raise ValueError("sha256 and repack need weights; set weights as well")
        return self


class EvalSection(Section):
    every: NonNegativeInt = Field(default=0, description="steps between evaluations; 0: only at the end")
    windows: PositiveInt = Field(default=64, description="validation windows, fixed and the same for every variant")
    ema: float = Field(
        default=0.0, ge=0, lt=1, description="decay per step of an average of the weights that is evaluated; 0: none"
    )


class CheckpointSection(Section):
    every: NonNegativeInt = Field(default=0, description="steps between checkpoints; 0: only at the end")
    keep: PositiveInt = Field(default=2, ge=2, description="newest checkpoints kept; two, so that one may be bad")
    asynchronous: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="write checkpoints beside the next steps, from a copy in the host's memory; auto: on a GPU",
    )

    def is_asynchronous(self, *, on_gpu: bool) -> bool:
        return self.asynchronous == "on" or (self.asynchronous == "auto" and on_gpu)


class ParallelSection(Section):
    """How one run is divided among the processes of torchrun or --devices."""

    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="ddp: every process holds the model; fsdp: its matrices, their gradients and the optimizer's state "
        "are divided (FSDP2); auto: fsdp where the state would fill more than half of a GPU's memory",
    )
    shard: Literal["full", "optimizer"] = Field(
        default="full",
        description="fsdp: full: a block is gathered for its forward and for its backward pass; optimizer: once for "
        "both, so that only gradients and the optimizer's state are divided between the passes",
    )
    replicas: PositiveInt = Field(
        default=1, description="fsdp: groups of processes that each hold the whole model, divided (HSDP)"
    )
    activation_checkpointing: Literal["none", "block", "selective"] = Field(
        default="none",
        description="activations that the backward pass computes again: of a block, or of all in it but matrix "
        "products and attention",
    )


class CompileSection(Section):
    scope: Literal["auto", "block", "model", "off"] = Field(
        default="auto",
        description="part of the model compiled to one graph; auto: each block on CPU, the model on a GPU",
    )
    backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    attention: Literal["auto", "flash", "fa3", "fa4", "cudnn", "efficient", "math", "ours"] = Field(
        default="auto",
        description="what computes causal attention; auto: on a GPU the fastest that is measured there, "
        "FlashAttention 3 and 4 among them where they are installed",
    )
    strict: bool = Field(
        default=False, description="refuse the run if the named attention is unavailable, instead of using another"
    )
    autotune: bool = Field(
        default=False,
        description="on a GPU the tiles of the blocks' matrix products are chosen by timing (torch's max-autotune): "
        "minutes at the first run, and rounding that depends on which tile won",
    )


class LogSection(Section):
    every: PositiveInt = Field(default=10, description="steps in a window: the device is read once per window")
    probes: bool = Field(default=True, description="gates of the patches with every window, shares with evaluations")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="trackers that show the run; need ratrain[trackers]"
    )
    study: str = Field(
        default="", max_length=128, description="group of runs in wandb and trackio; empty: the seeds of a recipe"
    )
    project: str = Field(
        default="", max_length=128, pattern=r"^[^/\\#?%:]*$",
        description="project of the run in wandb and trackio; empty: ratrain (wandb: WANDB_PROJECT if set)",
    )  # fmt: skip
    run_name: str = Field(
        default="", max_length=128, description="name of the run in wandb and trackio; empty: its id and seed"
    )


class PruneSection(Section):
    """Weight pruning: the score of a weight, the target sparsity, and the schedule. Without the section: none."""

    kind: Literal["magnitude", "movement", "state"] = Field(
        description="what says how much a weight matters: its size; -w x gradient, summed over the steps; or, with the "
        "moments of Adam, what `score` names (AdamWPrune)"
    )
    score: (
        Literal[
            "bitter0", "bitter1", "bitter2", "bitter3", "bitter4",
            "bitter5", "bitter6", "bitter7", "bitter8", "bitter9",
        ]
        | None
    ) = Field(default=None, description="state: a formula of docs/weight_pruning.md")  # fmt: skip
    target: float = Field(ge=0, lt=1, description="fraction of the weights that is zero in the end, exactly")
    schedule: Literal["linear", "cubic_late", "cubic_early"] = Field(
        default="cubic_early",
        description="fraction at p of the way: target x p, target x p^3, target x (1 - (1 - p)^3) (Zhu & Gupta 2017)",
    )
    start: Span = Field(default=Span(fraction=0.1), description="start of pruning")
    end: Span = Field(default=Span(fraction=0.8), description="step at which the target is reached, then held")
    every: PositiveInt = Field(default=50, description="steps between updates of the masks")
    layers: Literal["auto", "global", "uniform", "depth"] = Field(
        default="auto",
        description="global: one threshold for all; uniform: every matrix loses the same fraction; depth: the last "
        "1.3 / 0.7 as much as the first; auto: depth for bitter4, else global",
    )
    embedding: bool = Field(default=False, description="whether the token table is pruned too, not only the blocks")
    regrow: float = Field(
        default=0.0, ge=0, lt=1,
        description="fraction of the weights that stay that is exchanged at each look, for those of the largest "
        "gradient (RigL, Evci et al. 2020); 0: what is gone stays gone",
    )  # fmt: skip

    @field_validator("score", mode="before")
    @classmethod
    def _has_run(cls, score: Any) -> Any:
        if score == "bitter10":
            raise ValueError("bitter10 never ran: the reference has scorers of that name that nothing calls")
        return score

    @model_validator(mode="after")
    def _reads(self):
        if (self.score is not None) != (self.kind == "state"):
            raise ValueError("kind = 'state' needs a score, bitter0 to bitter9, and no other kind reads one")
        return self

    @property
    def shares(self) -> str:
        """The effective `layers`, with "auto" resolved."""
        if self.layers != "auto":
            return self.layers
        return "depth" if self.score == "bitter4" else "global"


class Manifest(Section):
    """One variant and its training, fully resolved."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str = ""
    scale: str = Field(default="custom", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    same_as: str | None = Field(default=None, description="id of the variant that this one knowingly equals")
    origin: dict[str, str] = Field(default={}, description="the reference's run, if it differs from its intent")
    model: ModelSpec
    data: DataSection = DataSection()
    optim: Any = Field(description="an OptimSection of the kind named by optim.kind")
    schedule: ScheduleSection
    train: TrainSection
    seed: SeedSection = SeedSection()
    init: InitSection = InitSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    parallel: ParallelSection = ParallelSection()
    compile: CompileSection = CompileSection()
    log: LogSection = LogSection()
    activation: ActivationSection = ActivationSection()
    prune: PruneSection | None = None
    patch: Mapping[str, Any] = Field(default={}, description="a Patch by name; the kind is the name unless it says so")
