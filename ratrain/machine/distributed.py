"""The processes that train one run together: data parallel over the rows of a batch, one of them writing.

Everything that later forms of parallelism change goes through `World`: who wraps the model, who sums, who speaks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ratrain.errors import Exit, Fault, ManifestError, RatrainError, UnavailableError

T = TypeVar("T")

# groups that were left stay referenced: a wrapped model that goes last would free its group with Python's lock held,
# and wait for ever for a gloo thread that wants it (seen in torch 2.13)
_left: list[object] = []
_PATIENCE = timedelta(minutes=30)  # rank 0 may be writing a large checkpoint, or tokenising the corpus


class FollowedError(RatrainError):
    """Rank 0 has said what is wrong, or that it stops: the others leave with its code and without a word."""

    def __init__(self, code: int):
        super().__init__("")
        self.exit = Exit(code)


@dataclass(frozen=True)
class World:
    """Rank `rank` of `size` processes. One by itself has no process group, and every method costs it nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model` such that its backward pass averages gradients over the processes. Compile in place before."""
        if self.size == 1:
            return model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the argument's new name is younger than torch 2.11
            return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def keep_local(self, model: nn.Module) -> AbstractContextManager:
        """While it is entered, gradients of what `parallel` returned are only added up here."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Puts the mean over the processes in each tensor."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            parts = flat.div_(self.size).split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, written to `tensor`."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, value: T) -> T:
        """What rank 0 gives, on all."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """What each process gives, by rank, on all."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Rank 0 goes through the block before the others; where it fails they leave, for it has said why.

        The block must exchange nothing.
        """
        if not self.leads:
            code = self.share(None)
            if code is not None:
                raise FollowedError(code)
        try:
            yield
        except BaseException as error:
            if self.leads:
                self.share(getattr(error, "exit", Exit.BUG))
            raise
        if self.leads:
            self.share(None)

    def lead(self, act: Callable[[], T]) -> T | None:
        """What `act` returns on rank 0, None on the others, which leave where it fails."""
        with self.leader_first():
            return act() if self.leads else None


def local_rows(world: World, *, batch: int, micro_batch: int) -> int:
    """Sequences per forward pass of one process. Raises ManifestError where the batch does not divide."""
    assert batch % world.size == 0, "the sampler has refused it"
    rows = batch // world.size
    micro = min(micro_batch, rows)
    if rows % micro:
        what = f"{micro} does not divide the {rows} sequences that each of {world.size} processes has of a step"
        raise ManifestError([Fault("", "train.micro_batch", what)])
    return micro


def launched_rank() -> tuple[int, int]:
    """(rank, size) as torchrun, or whoever started this process, says in the environment."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """The processes that were started together, gloo between CPUs and NCCL between GPUs; by itself one without a group.

    Raises UnavailableError where they do not find each other, and for one whose fellows are lost on the way.
    """
    rank, size = launched_rank()
    if size == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UnavailableError(f"process {rank} of {size} cannot reach the others: {error}") from error
    try:
        yield World(rank, size)
    except RuntimeError as error:
        if not _lost_a_fellow(error):
            raise
        raise UnavailableError(f"process {rank} of {size} lost the others; the first to fail says why") from error
    finally:
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


def _lost_a_fellow(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset", "Broken pipe", "Timed out waiting")
    )
