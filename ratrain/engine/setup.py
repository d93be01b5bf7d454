"""Builds all objects of a run before its first step: data, model, optimizer step, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ratrain.config.identity import Parent
from ratrain.config.schema import Manifest
from ratrain.data.overlap import Overlap
from ratrain.data.recall.source import Recall
from ratrain.data.sampling import Clusters
from ratrain.data.source import Batches, Data, open_data, require_separate
from ratrain.engine.assembly import assemble
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.phases import Phases
from ratrain.engine.step import Precision, TrainStep
from ratrain.engine.strategy import divide
from ratrain.events import Emit
from ratrain.machine.attention import Choice, require
from ratrain.machine.device import keep_freed_memory, peak_flops, set_determinism
from ratrain.machine.distributed import World, local_rows
from ratrain.model.build import build, seed_of
from ratrain.model.count import Cost, count
from ratrain.model.digests import digest_of, weight_digests
from ratrain.model.gpt2 import GPT2
from ratrain.model.pretrained import Loaded, load_pretrained
from ratrain.storage.branch import Branch
from ratrain.storage.checkpoint import listed


@dataclass
class Setup:
    """The objects of a run. Only tensors change, and `attention`, which is chosen at the start of the run."""

    manifest: Manifest
    device: torch.device
    world: World
    checkpoints: Path
    branch: Branch | None
    phases: Phases
    data: Data
    windows: str  # digest of the validation windows
    overlap: Overlap | None  # of training and validation text, on rank 0 of a new run
    sampler: Batches
    clusters: Clusters  # groups of validation targets that share a document: the unit of bootstraps
    model: GPT2
    pretrained: Loaded | None
    cost: Cost
    digests: dict[str, str]  # of the initial weights of the base, on rank 0 of a new run
    precision: Precision
    step: TrainStep
    evaluator: Evaluator
    peak: dict[str, float | None]  # FLOP/s of the device
    attention: Choice | None = None

    @property
    def parent(self) -> Parent | None:
        return self.branch.parent if self.branch else None


def set_up(
    manifest: Manifest,
    *,
    checkpoints: Path,
    device: torch.device,
    emit: Emit,
    world: World = World(),  # noqa: B008 - frozen
    branch: Branch | None = None,
    attention: Choice | None = None,
) -> Setup:
    """Builds the objects of a run on `device`. Raises ManifestError, MissingError, DataError, ... of their builders."""
    keep_freed_memory()
    set_determinism(manifest.train.deterministic, device)
    spec, train = manifest.model, manifest.train
    begins = branch is None and not listed(checkpoints)  # otherwise the weights come from a checkpoint
    data = open_data(manifest.data, vocab_size=spec.vocab_size, block_size=spec.block_size)
    drawn = isinstance(data, Recall)
    overlap = None if drawn or not begins else require_separate(data, manifest.data.most_overlap)
    order = {"seed": manifest.seed.order, "batch": train.batch, "block_size": spec.block_size}
    sampler = data.sampler(**order, rank=world.rank, world=world.size)
    windows = data.validation(block_size=spec.block_size, count=manifest.eval.windows)
    torch.manual_seed(seed_of(manifest.seed.order, "dropout", world.rank))
    model = build(manifest, device=device)
    pretrained = load_pretrained(model, manifest) if begins and manifest.init.weights else None
    cost = count(model)
    digests = weight_digests(dict(model.named_parameters()), model.base_names) if begins and world.leads else {}
    world = divide(world, manifest, model, device)
    rows = local_rows(world, batch=train.batch, micro_batch=train.micro_batch)
    made = assemble(manifest, device, world=world, model=model, micro_batch=rows)
    require(manifest, rows=rows, device=device)
    return Setup(
        manifest=manifest,
        device=device,
        world=world,
        checkpoints=checkpoints,
        branch=branch,
        phases=Phases(emit, device),
        data=data,
        windows=digest_of(windows.tokens),
        overlap=overlap,
        sampler=sampler,
        clusters=data.clusters(windows),
        model=model,
        pretrained=pretrained,
        cost=cost,
        digests=digests,
        precision=made.precision,
        step=made.step,
        evaluator=Evaluator(model, windows, precision=made.precision, batch=rows, world=world),
        peak=peak_flops(device, train.precision),
        attention=attention,
    )
