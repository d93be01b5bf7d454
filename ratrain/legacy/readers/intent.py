"""The reading `intent` of a defconfig: the author's intention.

Every declared line counts, also one that the old tools dropped; undeclared options have the old Kconfig's default.
"""

from __future__ import annotations

from collections.abc import Iterator

from ratrain.errors import Fault, ManifestError
from ratrain.legacy.readers.defconfig import Defconfig
from ratrain.legacy.readers.matrix import METHODS, OPTIMIZERS, SPARSITIES, VARIANTS, Axes, Test, tests_of
from ratrain.legacy.readers.options import Said, read_said
from ratrain.legacy.readers.symbols import UNDEFINED, symbols

_OPTIONS = {  # option: its symbols, the strongest first; if none is declared, the last one's default counts
    "batch-size": ("BATCH_SIZE",),
    "gradient-accumulation": ("GPT2_GRADIENT_ACCUMULATION",),
    "block-size": ("GPT2_BLOCK_SIZE",),
    "dropout": ("GPT2_DROPOUT",),
    "bias": ("GPT2_BIAS",),
    "weight-tying": ("GPT2_WEIGHT_TYING",),
    "warmup-steps": ("GPT2_WARMUP_STEPS",),
    "eval-interval": ("GPT2_EVAL_INTERVAL",),
    "eval-samples": ("GPT2_EVAL_SAMPLES",),
    "log-interval": ("GPT2_LOG_INTERVAL",),
    "max-iters": ("GPT2_MAX_ITERS",),
    "max-time": ("GPT2_MAX_TIME",),
    "decay-lr": ("GPT2_DECAY_LR",),
    "min-lr": ("GPT2_MIN_LR",),
    "learning-rate": ("LEARNING_RATE",),
    "dtype": ("GPT2_AMP_DTYPE",),
    "compile": ("GPT2_COMPILE", "COMPILE_MODEL"),
    "spam-theta": ("SPAM_THETA",),
    "spam-enable-clip": ("SPAM_ENABLE_CLIP",),
    "spam-threshold": ("SPAM_SPIKE_THRESHOLD",),
    "spam-periodic-reset": ("SPAM_PERIODIC_RESET",),
    "spam-interval": ("SPAM_INTERVAL",),
    "spam-warmup": ("SPAM_WARMUP",),
    "spam-warmup-steps": ("SPAM_WARMUP_STEPS",),
    "adamwprune-beta1": ("ADAMWPRUNE_BETA1",),
    "adamwprune-beta2": ("ADAMWPRUNE_BETA2",),
    "adamwprune-amsgrad": ("ADAMWPRUNE_AMSGRAD",),
    "pruning-warmup": ("PRUNING_WARMUP", "ADAMWPRUNE_WARMUP_STEPS"),
    "prune-every": ("PRUNING_FREQUENCY", "ADAMWPRUNE_FREQUENCY"),
}
_IF_SAID = {  # the same for options without a default: only a declared symbol counts
    "data-dir": ("DATA_DIR",),
    "clip": ("GRADIENT_CLIP_NORM",),
    "prune-end": ("ADAMWPRUNE_RAMP_END_STEP",),
    "tracker-project": ("TRACKER_PROJECT", "WANDB_PROJECT"),
    "tracker-run-name": ("TRACKER_RUN_NAME",),
    "per-head-gates": ("RA_V5_PER_HEAD_GATES",),
    "log-metrics": ("RA_MLA_LOG_METRICS",),
    "rope": ("RA_MLA_USE_ROPE",),
    "double-attention": ("ENABLE_DOUBLE_ATTENTION",),
}
_RA_MLA = {
    "latent-dim": ("RA_MLA_LATENT_DIM",),
    "ra-window": ("RA_MLA_RA_WINDOW",),
    "ra-alpha": ("RA_MLA_RA_ALPHA",),
    "per-head-q-latent": ("RA_MLA_PER_HEAD_Q_LATENT",),
    "per-head-v-up": ("RA_MLA_PER_HEAD_V_UP",),
    "mlp-attn-gate": ("RA_MLA_MLP_ATTN_GATE",),
    "mlp-cross-token": ("RA_MLA_MLP_CROSS_TOKEN",),
    "mlp-latent-recip": ("RA_MLA_MLP_LATENT_RECIP",),
    "mlp-gate-alpha": ("RA_MLA_MLP_GATE_ALPHA",),
    "mlp-cross-alpha": ("RA_MLA_MLP_CROSS_ALPHA",),
    "mlp-recip-alpha": ("RA_MLA_MLP_RECIP_ALPHA",),
    "mlp-gate-dim": ("RA_MLA_MLP_GATE_DIM",),
    "mlp-sparse-k": ("RA_MLA_MLP_SPARSE_K",),
    "mlp-sparse-tau": ("RA_MLA_MLP_SPARSE_RMS_THRESHOLD",),
    "mlp-sparse-normalize": ("RA_MLA_MLP_SPARSE_NORMALIZE",),
}
_DECAY = {"adam": "ADAM_WEIGHT_DECAY", "adamw": "ADAMW_WEIGHT_DECAY", "adamwadv": "ADV_WEIGHT_DECAY",
          "adamwspam": "ADV_WEIGHT_DECAY", "sgd": "SGD_WEIGHT_DECAY"}  # fmt: skip
_SIZES = {"124M": "gpt2", "350M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}


class Intent:
    """A defconfig by its author's intention. Raises ManifestError if a value cannot be read."""

    def __init__(self, file: Defconfig):
        self._file = file
        self._values = {}
        for name, line in file.lines.items():
            meant = UNDEFINED.get(name, name)
            is_bool = meant in symbols() and symbols()[meant].first.type == "bool"
            if (meant == name or meant not in file.lines) and (is_bool or line.value != "n"):  # n: `is not set`
                self._values[meant] = line.value
        self._assumed: dict[str, str] = {}  # by axis of the matrix: the source of its default
        self._lines = {UNDEFINED.get(name, name): line for name, line in file.lines.items()}

    # -- runs ----------------------------------------------------------------------------------------------------------

    def tests(self) -> list[Test]:
        """Returns the declared runs, in the old runner's order. Raises ManifestError for other models than GPT-2."""
        self._check_model()
        steps = self._steps()
        axes = Axes(self._optimizers(), self._methods(), self._sparsities(), self._variants(), steps)
        tests = list(tests_of(axes))
        if not tests:
            message = (
                f"no run results from optimizers {', '.join(axes.optimizers)} and pruning {', '.join(axes.methods)}"
            )
            hint = "AdamWPrune goes with state pruning, every other optimizer with magnitude and movement"
            raise ManifestError([Fault(self._file.label, "", f"{message}; {hint}")])
        return tests

    @property
    def is_recip(self) -> bool:
        """Whether steps 0 to 5 are of the earlier reciprocal study: its files set the alpha of an MLP mechanism."""
        told = any(name.startswith("RA_MLA_MLP_") and name.endswith("_ALPHA") for name in self._values)
        return told and all(step in tuple("012345") for step in self._steps())

    def _check_model(self) -> None:
        named = [self._values.get("MODEL", ""), self._values.get("TEST_MODELS", "")]
        if "gpt2" in ",".join(named).split(",") or any(
            self._is_on(name) for name in ("MODEL_SELECT_GPT2", "MODEL_ENABLE_GPT2", "MODEL_GPT2")
        ):
            return
        other = next((name for name in named if name), "")
        where = self._where("MODEL") if self._values.get("MODEL") else self._file.label
        what = f"the model is {other!r}" if other else "no model is chosen"
        raise ManifestError([Fault(where, "MODEL", f"{what}; this trainer has GPT-2 only: MODEL_SELECT_GPT2=y")])

    def _optimizers(self) -> list[str]:
        for prefix in ("OPTIMIZER_SELECT_", "OPTIMIZER_ENABLE_", "TEST_OPTIMIZER_ENABLED_", "OPTIMIZER_"):
            if found := [name for name in OPTIMIZERS if self._is_on(prefix + name.upper())]:
                return found[-1:] if prefix == "OPTIMIZER_SELECT_" else found
        said = self._values.get("OPTIMIZER", "")
        if said and said not in OPTIMIZERS:
            raise self._fault("OPTIMIZER", f"{said!r} is not one of {', '.join(OPTIMIZERS)}")
        if not said:
            self._assumed["optimizer"] = "the old trainers"
        return [said or "adamw"]

    def _methods(self) -> list[str]:
        if self._is_on("PRUNING_MODE_NONE"):
            return ["none"]
        for prefix in ("PRUNING_SELECT_", "PRUNING_ENABLE_", "PRUNING_ENABLED_", "TEST_PRUNING_", "PRUNING_"):
            found = [name for name in METHODS if self._is_on(prefix + name.upper())]
            if prefix == "PRUNING_ENABLE_" and self._is_on("PRUNING_ENABLE_MOMENTUM") and "movement" not in found:
                found = [name for name in METHODS if name in (*found, "movement")]
            if found:
                return found[-1:] if prefix == "PRUNING_SELECT_" else found
        said = self._values.get("PRUNING_METHOD") or "none"
        if said not in METHODS:
            raise self._fault("PRUNING_METHOD", f"{said!r} is not one of {', '.join(METHODS)}")
        return [said]

    def _sparsities(self) -> list[str]:
        for prefix in ("SPARSITY_ENABLE_", "TEST_SPARSITY_"):
            if found := [value for key, value in SPARSITIES.items() if self._is_on(prefix + key)]:
                return found
        if listed := self._values.get("TEST_SPARSITIES"):
            return [self._percent(word.strip()) for word in listed.split(",")]
        if said := self._values.get("TARGET_SPARSITY") or self._values.get("ADAMWPRUNE_TARGET_SPARSITY"):
            return [said]
        self._assumed["sparsity"] = "Kconfig"
        return ["0.9"]

    def _percent(self, word: str) -> str:
        if not word.isdecimal() or not 0 < int(word) < 100:
            raise self._fault("TEST_SPARSITIES", f"expected percentages with commas between, got {word!r}")
        return f"{int(word) / 100:g}"

    def _variants(self) -> list[str]:
        if found := [name for name in VARIANTS if self._is_on(f"GPT2_ADAMWPRUNE_VARIANT_{name.upper()}")]:
            return found
        for name in ("TEST_ADAMWPRUNE_VARIANTS", "ADAMWPRUNE_VARIANT", "GPT2_ADAMWPRUNE_DEFAULT_VARIANT"):
            if listed := [word.strip() for word in self._values.get(name, "").split(",") if word.strip()]:
                if unknown := [word for word in listed if word not in VARIANTS]:
                    raise self._fault(name, f"{unknown[0]!r} is not one of bitter0 to bitter9")
                return listed
        self._assumed["variant"] = "the old runner"
        return ["bitter0"]

    def _by(self, axis: str, plural: str) -> str:
        if axis in self._assumed:
            return f"assumed: no {axis} is declared; the default of {self._assumed[axis]}"
        return f"of the declared {plural}"

    def _steps(self) -> list[str]:
        vanilla = self._values.get("RA_MLA_ABLATION_STEPS") and "GPT2_VANILLA_ABLATION_STEPS" in self._file.lines
        if not (self._is_on("RA_MLA_ABLATION_MODE") or vanilla):
            return []
        listed = [step.strip() for step in self._values.get("RA_MLA_ABLATION_STEPS", "").split(",") if step.strip()]
        flags = ["RA_MLA_ABLATION_BASELINE", *(f"RA_MLA_ABLATION_STEP{n}" for n in range(1, 15))]
        steps = listed or [str(number) for number, flag in enumerate(flags) if self._is_on(flag)]
        if not steps:
            raise self._fault("RA_MLA_ABLATION_MODE", 'no step is named; expected RA_MLA_ABLATION_STEPS="V0,V1"')
        return list(dict.fromkeys(steps))

    # -- options -------------------------------------------------------------------------------------------------------

    def options(self, test: Test) -> dict[str, Said]:
        """Returns the options of one run."""
        return dict(self._said_for(test))

    def _said_for(self, test: Test) -> Iterator[tuple[str, Said]]:
        tables = [_OPTIONS, _RA_MLA] if self._is_on("ENABLE_RA_MLA") else [_OPTIONS]
        for table in tables:
            for option, names in table.items():
                yield option, self._first(option, names) or self._default(option, names[-1])
        for option, names in _IF_SAID.items():
            if said := self._first(option, names):
                yield option, said
        yield from self._chosen(test)
        yield "optimizer", Said(test.optimizer, self._by("optimizer", "optimizers"))
        yield "pruning-method", Said(test.pruning, "of the declared methods")
        if test.sparsity is not None:
            by, where = self._by("sparsity", "sparsities"), self._where("TARGET_SPARSITY")
            yield "target-sparsity", read_said("target-sparsity", test.sparsity, by=by, where=where)
        if test.variant is not None:
            yield "adamwprune-variant", Said(test.variant, self._by("variant", "variants"))
        if test.step is not None:
            by = "RA_MLA_ABLATION_STEPS"
            yield "ra-mla-ablation-step", Said(test.step, self._written(by), self._where(by))

    def _chosen(self, test: Test) -> Iterator[tuple[str, Said]]:
        """Yields options that depend on several symbols."""
        yield "dataset", self._dataset()
        size = next((size for size in _SIZES if self._is_on(f"GPT2_MODEL_{size}")), None)
        size = size or self._values.get("GPT2_MODEL_SIZE") or "124M"
        if size not in _SIZES:
            raise self._fault("GPT2_MODEL_SIZE", f"{size!r} is not one of {', '.join(_SIZES)}")
        yield "model-name", Said(_SIZES[size], f"GPT2_MODEL_{size}")
        decay = ("WEIGHT_DECAY", "ADAMWPRUNE_WEIGHT_DECAY", _DECAY.get(test.optimizer, "WEIGHT_DECAY"))
        for option in ("weight-decay", "adamwprune-weight-decay"):
            if said := self._first(option, decay):  # one rule for all optimizers that are compared
                yield option, said
        for option, key in (("beta1", "BETA1"), ("beta2", "BETA2"), ("epsilon", "EPSILON")):
            if said := self._first(option, (f"{test.optimizer.upper()}_{key}",)):
                yield option, said
        bases = [name for name in OPTIMIZERS if self._is_on(f"ADAMWPRUNE_BASE_{name.upper()}")]
        base = bases[-1] if bases else self._values.get("ADAMWPRUNE_BASE_OPTIMIZER_NAME", "adamw")
        yield "adamwprune-base-optimizer-name", Said(base, f"ADAMWPRUNE_BASE_{base.upper()}")
        if self._is_on("GPT2_USE_DDP") and (said := self._first("gpus", ("GPT2_DDP_NUM_GPUS",))):
            yield "gpus", said
        yield "tracker", self._tracker()
        every = self._first("checkpoint-every", ("CHECKPOINT_INTERVAL",)) if self._is_on("SAVE_CHECKPOINT") else None
        if every and every.value >= 100:  # so many epochs were never trained: iterations are meant
            yield "checkpoint-every", every
        if self._values.get("MIXED_PRECISION") == "n":
            yield "dtype", Said("float32", "MIXED_PRECISION")
        for option, stem in (("mlp-tying-mode", "TYING"), ("mlp-sparse-mode", "SPARSE")):
            modes = {f"RA_MLA_MLP_{stem}_{mode.upper()}": mode for mode in _MODES[option]}
            if on := [(name, mode) for name, mode in modes.items() if self._is_on(name)]:
                yield option, Said(on[-1][1], on[-1][0], self._where(on[-1][0]))

    def _dataset(self) -> Said:
        for name in ("shakespeare", "finewebedu", "openwebtext", "tinystories"):
            if self._is_on(symbol := f"GPT2_DATASET_{name.upper()}"):
                return Said(name, symbol, self._where(symbol))
        if self._is_on("GPT2_DATASET_CUSTOM"):
            path = self._values.get("GPT2_CUSTOM_DATASET_PATH", "data/custom")
            return Said(path if "/" in path else f"./{path}", "GPT2_CUSTOM_DATASET_PATH")
        for symbol in ("GPT2_DATASET", "GPT2_DATASET_NAME"):
            if symbol in self._values:
                return read_said("dataset", self._values[symbol], by=symbol, where=self._where(symbol))
        return Said("shakespeare", "Kconfig's default of GPT2_DATASET_SHAKESPEARE", given=False)

    def _tracker(self) -> Said:
        if text := self._values.get("TRACKER"):
            return Said(text, "TRACKER", self._where("TRACKER"))
        on = [name for name in ("wandb", "trackio") if self._is_on(f"ENABLE_{name.upper()}")]
        return Said(",".join(on) or "none", " and ".join(f"ENABLE_{name.upper()}" for name in on))

    def _first(self, option: str, names: tuple[str, ...]) -> Said | None:
        """Returns the value of the first declared symbol, None if none is declared."""
        for name in names:
            if (value := self._values.get(name)) is not None:
                return read_said(option, value, by=name, where=self._where(name))
        return None

    def _default(self, option: str, name: str) -> Said:
        defaults = symbols()[name].first.defaults
        said = read_said(option, defaults[0][0] if defaults else "n", by=name, where=name)
        return Said(said.value, f"Kconfig's default of {name}", given=False)

    def _is_on(self, name: str) -> bool:
        return self._values.get(name) == "y"

    def _where(self, name: str) -> str:
        line = self._lines.get(name)
        return f"{self._file.label}:{line.number}" if line else self._file.label

    def _fault(self, name: str, message: str) -> ManifestError:
        return ManifestError([Fault(self._where(name), self._written(name), message)])

    def _written(self, name: str) -> str:
        """Returns the symbol's line in the file, which may have another name."""
        return self._lines[name].name if name in self._lines else name


_MODES = {"mlp-tying-mode": ("untied", "tied_transpose", "per_head_scalar"), "mlp-sparse-mode": ("none", "topk", "rms")}
