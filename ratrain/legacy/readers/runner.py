"""Reproduces the old runner: the tests of a .config, and their trainer's arguments. For the reading `legacy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ratrain.legacy.readers.matrix import METHODS, OPTIMIZERS, SPARSITIES, VARIANTS, Axes, Test, tests_of
from ratrain.legacy.readers.options import Trainer

_PLAIN = (  # option, symbol: sent if the symbol has a value, in this order
    ("dataset", "GPT2_DATASET_NAME"),
    ("batch-size", "BATCH_SIZE"),
    ("block-size", "GPT2_BLOCK_SIZE"),
    ("gradient-accumulation", "GPT2_GRADIENT_ACCUMULATION"),
)
_SCHEDULE = (
    ("warmup-steps", "GPT2_WARMUP_STEPS"),
    ("eval-interval", "GPT2_EVAL_INTERVAL"),
    ("eval-samples", "GPT2_EVAL_SAMPLES"),
)
# read by train_ra_mla.py from config.py if no step was given
_ATTRIBUTES = {
    "latent-dim": "RA_MLA_LATENT_DIM",
    "ra-window": "RA_MLA_RA_WINDOW",
    "ra-alpha": "RA_MLA_RA_ALPHA",
    "per-head-q-latent": "RA_MLA_PER_HEAD_Q_LATENT",
    "per-head-v-up": "RA_MLA_PER_HEAD_V_UP",
    "log-metrics": "RA_MLA_LOG_METRICS",
}


@dataclass(frozen=True)
class Launched:
    """One test: its name, its trainer, the trainer's arguments, and the attributes read from config.py."""

    test: Test
    trainer: Trainer
    args: tuple[str, ...]
    attributes: Mapping[str, str]

    @property
    def id(self) -> str:
        return f"gpt2_{self.test.id}"


def launched(config: Mapping[str, str], name: str) -> Iterator[Launched]:
    """Yields the tests of a .config, by its effective symbols.

    `name` is the default project; the old default was made of the folder and the host.
    """
    steps = "y" in (_of(config, "RA_MLA_ABLATION_MODE"), _of(config, "ENABLE_RA_MLA"))
    trainer: Trainer = "train_ra_mla.py" if steps else "train.py"
    for test in tests_of(_axes(config)):
        args = tuple(_arguments(config, test, name))
        yield Launched(test, trainer, args, dict(_attributes(config, test, trainer)))


def _of(config: Mapping[str, str], name: str) -> str:
    return config.get(name, "")


def _is_on(config: Mapping[str, str], name: str) -> bool:
    return config.get(name) == "y"


def _axes(config: Mapping[str, str]) -> Axes:
    several = _is_on(config, "OPTIMIZER_MODE_MULTIPLE")
    prefix = "OPTIMIZER_ENABLE_" if several else "OPTIMIZER_SELECT_"
    optimizers = [name for name in OPTIMIZERS if _is_on(config, prefix + name.upper())]
    methods = [name for name in METHODS if _is_on(config, f"PRUNING_ENABLED_{name.upper()}")]
    levels = [value for key, value in SPARSITIES.items() if _is_on(config, f"TEST_SPARSITY_{key}")]
    variants = [name for name in VARIANTS if _is_on(config, f"GPT2_ADAMWPRUNE_VARIANT_{name.upper()}")]
    return Axes(
        optimizers=optimizers,
        methods=methods or ["none"],
        sparsities=levels or [_of(config, "TARGET_SPARSITY") or "0.9"],
        variants=variants or ["bitter0"],
        steps=_steps(config),
    )


def _steps(config: Mapping[str, str]) -> list[str]:
    if not _is_on(config, "RA_MLA_ABLATION_MODE"):
        return []
    listed = [step.strip() for step in _of(config, "RA_MLA_ABLATION_STEPS").split(",") if step.strip()]
    flags = ["RA_MLA_ABLATION_BASELINE", *(f"RA_MLA_ABLATION_STEP{n}" for n in range(1, 15))]
    return listed or [str(number) for number, flag in enumerate(flags) if _is_on(config, flag)]


def _arguments(config: Mapping[str, str], test: Test, name: str) -> Iterator[str]:
    """Yields the arguments in the runner's order."""
    yield from ("--optimizer", test.optimizer)
    yield from _sent(config, _PLAIN)
    if _is_on(config, "GPT2_COMPILE") or _is_on(config, "COMPILE_MODEL"):
        yield "--compile"
    if _is_on(config, "GPT2_FLASH_ATTENTION"):
        yield "--flash-attention"
    yield from _sent(config, _SCHEDULE)
    yield from _sent(config, (("max-iters", "GPT2_MAX_ITERS"),))
    if int(_of(config, "GPT2_MAX_TIME") or 0) > 0:
        yield from ("--max-time", _of(config, "GPT2_MAX_TIME"))
    if _is_on(config, "GPT2_DECAY_LR"):
        yield "--decay-lr"
    yield from _sent(config, (("min-lr", "GPT2_MIN_LR"), ("learning-rate", "LEARNING_RATE")))
    # GPT2_WEIGHT_DECAY, read first, was never defined: AdamWPrune's value went to every optimizer of the matrix
    yield from _sent(config, (("weight-decay", "ADAMWPRUNE_WEIGHT_DECAY"),))
    yield from ("--pruning-method", test.pruning)
    if test.sparsity is not None:
        yield from ("--target-sparsity", test.sparsity)
        yield from _sent(config, (("pruning-warmup", "PRUNING_WARMUP"),))
    yield from _optimizer(config, test)
    if test.step is not None:
        yield from ("--ra-mla-ablation-step", test.step)
    yield from _trackers(config, test, name)


def _optimizer(config: Mapping[str, str], test: Test) -> Iterator[str]:
    if test.optimizer in ("adamwspam", "adamwprune"):
        spam = (("theta", "THETA"), ("interval", "INTERVAL"), ("warmup-steps", "WARMUP_STEPS"))
        yield from _sent(config, [(f"spam-{option}", f"SPAM_{symbol}") for option, symbol in spam])
        if _is_on(config, "SPAM_ENABLE_CLIP"):
            yield "--spam-enable-clip"
    if test.optimizer == "adamwprune":
        for option in ("base-optimizer-name", "beta1", "beta2", "weight-decay"):
            symbol = f"ADAMWPRUNE_{option.upper().replace('-', '_')}"
            yield from _sent(config, ((f"adamwprune-{option}", symbol),))
        if _is_on(config, "ADAMWPRUNE_AMSGRAD"):
            yield from ("--adamwprune-amsgrad", "true")
        yield from ("--adamwprune-variant", test.variant or "bitter0")


def _trackers(config: Mapping[str, str], test: Test, name: str) -> Iterator[str]:
    on = [tracker for tracker in ("wandb", "trackio") if _is_on(config, f"ENABLE_{tracker.upper()}")]
    if on:
        yield from ("--tracker", ",".join(on))
        yield from ("--tracker-project", _of(config, "TRACKER_PROJECT") or name)
        yield from ("--tracker-run-name", _of(config, "TRACKER_RUN_NAME") or f"gpt2_{test.id}")


def _sent(config: Mapping[str, str], options) -> Iterator[str]:
    for option, symbol in options:
        if value := _of(config, symbol):
            yield from (f"--{option}", value)


def _attributes(config: Mapping[str, str], test: Test, trainer: str) -> Iterator[tuple[str, str]]:
    """Yields, as options, the attributes that the trainers read from config.py beside their arguments."""
    if _is_on(config, "GPT2_USE_DDP"):
        yield "gpus", _of(config, "GPT2_DDP_NUM_GPUS") or "1"
    if trainer == "train_ra_mla.py":
        yield "per-head-gates", _of(config, "RA_V5_PER_HEAD_GATES") or "n"
        for option, symbol in _ATTRIBUTES.items() if test.step is None else ():
            if value := _of(config, symbol):
                yield option, value
