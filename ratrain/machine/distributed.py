"""The processes of one run: data parallel over the rows of a batch; only rank 0 writes.

All communication goes through `World`, so that other forms of parallelism can replace it: wrapping the model, sums,
and the choice of the process that writes.
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
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from ratrain.errors import Exit, Fault, ManifestError, RatrainError, UnavailableError
from ratrain.machine.heartbeat import Heartbeat
from ratrain.machine.sharding import Sharding

T = TypeVar("T")

# destroyed groups stay referenced: otherwise a wrapped model freed last would free its group while it holds the GIL,
# and deadlock with a gloo thread that needs the GIL (seen in torch 2.13)
_left: list[object] = []
_PATIENCE = timedelta(minutes=30)  # rank 0 may be writing a large checkpoint, or tokenising the corpus


class FollowedError(RatrainError):
    """Rank 0 has reported an error or a stop: the other processes exit with its code and print nothing."""

    def __init__(self, code: int):
        super().__init__("")
        self.exit = Exit(code)


@dataclass(frozen=True)
class World:
    """Rank `rank` of `size` processes. A single process has no process group, and every method is free of cost.

    With a `sharding` the large parameters of the model are divided among the processes, else each holds all of it.
    """

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None  # [replicas, shards], or [shards]; of processes that may divide a model
    sharding: Sharding | None = None
    heartbeat: Heartbeat | None = None  # of several processes

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, the process that writes and prints."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """Wraps `model` so that its backward pass averages gradients over the processes. Compile it in place before."""
        if self.size == 1 or self.sharding:  # a divided model averages by itself
            return model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the argument's new name came after torch 2.11
            return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def keep_local(self, model: nn.Module) -> AbstractContextManager:
        """Returns a context in which the gradients of a `parallel` model accumulate locally, without a reduction."""
        if self.sharding:
            return self.sharding.without_exchange()
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def gathered(self) -> AbstractContextManager:
        """Returns a context in which every process holds the whole model; all must enter it together."""
        return self.sharding.gathered() if self.sharding else nullcontext()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its mean over the processes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(flat)
            parts = flat.div_(self.size).split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(list(tensors), [p.view_as(t) for p, t in zip(parts, tensors, strict=True)])

    def sum(self, tensor: Tensor) -> Tensor:
        """Replaces `tensor` by its sum over the processes, and returns it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, value: T) -> T:
        """Returns the value of rank 0 on all processes."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Returns the values of all processes, by rank, on all processes."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, value)
        return boxes

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Runs the block on rank 0 before the others; if it fails there, the others raise FollowedError.

        The block must not communicate between processes.
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
        """Calls `act` on rank 0; returns its result there, None elsewhere. If it fails, others raise FollowedError."""
        with self.leader_first():
            return act() if self.leads else None


def local_rows(world: World, *, batch: int, micro_batch: int) -> int:
    """Returns the sequences per forward pass of one process.

    Raises ManifestError if the micro-batch does not divide the rows of a process.
    """
    assert batch % world.size == 0, "the sampler has refused it"
    rows = batch // world.size
    micro = min(micro_batch, rows)
    if rows % micro:
        what = f"{micro} does not divide the {rows} sequences that each of {world.size} processes has of a step"
        raise ManifestError([Fault("", "train.micro_batch", what)])
    return micro


def launched_rank() -> tuple[int, int]:
    """Returns (rank, size) from the environment variables of torchrun or another launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Joins the process group, gloo between CPUs and NCCL between GPUs; a single process gets no group.

    Raises UnavailableError if the processes cannot connect, or if another process is lost during the run.
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
    store: Any = dist.distributed_c10d._get_default_store()  # its type stub lacks `clone`
    heartbeat = Heartbeat(store.clone(), rank, size)
    clean = False
    try:
        yield World(rank, size, heartbeat=heartbeat)
        clean = True
    except FollowedError:  # rank 0 has said why, and leaves as well
        clean = True
        raise
    except RuntimeError as error:
        if not _lost_a_fellow(error):
            raise
        raise UnavailableError(f"process {rank} of {size} lost the others; the first to fail says why") from error
    finally:
        heartbeat.stop(clean=clean)
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


def _lost_a_fellow(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("Connection closed by peer", "Connection reset", "Broken pipe", "Timed out waiting")
    )
