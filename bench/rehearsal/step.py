"""The train step of a variant, compiled for a card and run on fakes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast
from unittest.mock import patch

from bench.rehearsal import fake_gpu
from bench.rehearsal.card import Card
from bench.rehearsal.record import OPTIMIZER, Recorder, Work, listen, total

import torch  # isort: skip - the guard comes before it
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

from bench.manifests import manifest_of
from ratrain.config.schema import Manifest
from ratrain.engine import assembly
from ratrain.kernels import kv_prune, linear_cross_entropy, ra_attention  # noqa: F401 - operations are held, see listen
from ratrain.machine.attention import Choice
from ratrain.model.build import build
from ratrain.model.gpt2 import GPT2, Core

ATTENTION = ("cudnn", "flash", "efficient", "ours")
_SDPA = {
    "flash": lambda q, k, v, dropout, causal, scale: torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, dropout, causal, scale=scale
    )[0],
    "efficient": lambda q, k, v, dropout, causal, scale: torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, dropout, causal, scale=scale
    )[0],
    "cudnn": lambda q, k, v, dropout, causal, scale: torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, dropout, causal, scale=scale
    )[0],
}


@dataclass(frozen=True)
class Case:
    """A rehearsed case: a manifest by its name, its training settings, and `keys` that override it."""

    variant: str
    precision: str = "bf16"
    scope: str = "block"
    attention: str = "cudnn"
    batch: int = 16  # sequences, in one micro-batch
    scale: str = "gpt2_124m"
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.variant, self.precision, self.scope, self.attention, f"x{self.batch}", *self.keys))

    def manifest(self) -> Manifest:
        how = {"train.batch": self.batch, "train.micro_batch": self.batch, "train.precision": self.precision}
        how |= {"compile.scope": self.scope, "compile.attention": self.attention}
        keys = (*(f"{key}={value}" for key, value in how.items()), *self.keys)
        return manifest_of(self.variant, scale=self.scale, overrides=keys)


@dataclass(frozen=True)
class Rehearsed:
    """Results of the fourth step of a case, after all compilation."""

    case: Case
    graphs: int
    breaks: int
    recompiles: int
    syncs: list[str]
    differing: list[str]
    work: list[Work]
    tokens: int

    @property
    def launches(self) -> int:
        return total(self.work)[0]

    @property
    def bytes(self) -> int:
        return total(self.work)[1]

    @property
    def faults(self) -> list[str]:
        """Faults of the step on a GPU: graph breaks, recompiles, waits of the host, wrong fakes."""
        counts = {"graph breaks": self.breaks, "recompiles": self.recompiles}
        found = [f"{count} {name}" for name, count in counts.items() if count]
        found += [f"the host waits for the device at {place}" for place in sorted(set(self.syncs))]
        return found + sorted(set(self.differing))

    def record(self) -> dict[str, Any]:
        """Returns the fields of the JSON form."""
        found = {"launches": self.launches, "bytes": self.bytes, "faults": self.faults}
        return {**asdict(self), **found, "case": str(self.case)}


class Rehearsal:
    """The one rehearsal of a process, on one card."""

    def __init__(self, card: Card):
        self.card, self.recorder = card, Recorder()
        self.mode = fake_gpu.install(card, launched=self.recorder.launched, synced=self.recorder.synced)
        listen(self.recorder, self.mode)

    def step(self, case: Case) -> Rehearsed:
        """Compiles the case and counts its fourth step."""
        torch._dynamo.reset()
        counters.clear()
        fake_gpu.SOURCES.clear()
        manifest = case.manifest()
        shape = manifest.train.batch, manifest.model.block_size + 1
        with self.mode, chosen(case, self.card):
            _, step = assembly.train_step(manifest, lr=1e-4, device="cuda")
            for owner, name in (
                (step, "_clip"),
                (step.optimizer, "step"),
                (step.precision, "collect"),
                (step.precision, "publish"),
            ):
                self._note_phase(owner, name)

            def once() -> None:
                tokens = torch.empty(shape, dtype=torch.int64, device="cuda")
                step(tokens[:, :-1], tokens[:, 1:])

            once()
            graphs = counters["stats"]["unique_graphs"]
            once()
            for _ in range(2):  # ratrain's operations run only while counted, and cache objects in their first call
                with self.recorder.recording():
                    once()
        return Rehearsed(
            case=case,
            graphs=graphs,
            breaks=sum(counters["graph_break"].values()),
            recompiles=counters["stats"]["unique_graphs"] - graphs,
            syncs=list(self.recorder.syncs),
            differing=list(self.recorder.differing),
            work=list(self.recorder.work.values()),
            tokens=shape[0] * (shape[1] - 1),
        )

    def _note_phase(self, owner: Any, name: str) -> None:
        """Counts the GPU work of owner.name() in the optimizer's phase."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def noted(*args, **options):
            with self.recorder.within(OPTIMIZER):
                return method(*args, **options)

        setattr(owner, name, noted)


@contextlib.contextmanager
def chosen(case: Case, card: Card) -> Iterator[None]:
    """The case's attention in place of a measured choice, and a model that is not initialised: it has no numbers."""
    order = (case.attention, "math")
    choice = Choice(case.attention, "asked", card.name, "rehearsed", order)

    def pin(model: GPT2, choice: Choice, *, strict: bool = False) -> None:
        for part in model.modules():
            if isinstance(part, Core):
                part.backends = choice.order

    changes: Sequence[tuple[Any, str, Any]] = (
        (assembly, "build", built),
        (assembly, "choose", lambda *args, **options: choice),
        (assembly, "pin", pin),
        # which of its kernels serves is decided below Python, by code that a build without CUDA does not have
        (F, "scaled_dot_product_attention", _attention(case.attention)),
    )
    with contextlib.ExitStack() as stack:
        for where, name, other in changes:
            stack.enter_context(patch.object(where, name, other))
        yield


def _attention(name: str) -> Any:
    chosen = _SDPA.get(name, _SDPA["flash"])

    def sdpa(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> Tensor:
        if chosen is _SDPA["flash"] and v.shape[-1] != k.shape[-1]:
            message = f"flash attention takes values as wide as keys, got {v.shape[-1]} and {k.shape[-1]} channels"
            raise ValueError(message)
        return chosen(q, k, v, dropout_p, is_causal, scale)

    return sdpa


def built(manifest: Manifest, device: object = "cuda") -> GPT2:
    model = build(manifest, device=torch.device("meta"))
    made: dict[int, Tensor] = {}

    def fresh(x: Tensor) -> Tensor:
        if id(x) not in made:
            empty = torch.empty(x.shape, dtype=x.dtype, device="cuda")
            made[id(x)] = nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty
        return made[id(x)]

    for module in model.modules():
        for table in cast("tuple[dict[str, Any], ...]", (module._parameters, module._buffers)):
            table.update({name: fresh(x) for name, x in table.items() if x is not None})
    return model
