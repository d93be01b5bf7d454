"""One model divided among processes by FSDP2 (torch's `fully_shard`; Zhao et al., arXiv:2304.11277).

The decayed matrices of the blocks, the tables and the head are divided by rows; everything else (norms, biases, gates)
is small and stays whole on every process. Each process optimises its own rows as ordinary fp32 tensors, so that an
optimizer that works element by element needs no change.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ratrain.model.gpt2 import GPT2


@dataclass(frozen=True)
class Sharding:
    """A model whose large parameters are divided. `full`: whole copies exist only while a block runs.

    Without `full` they stay until the backward pass of the step has used them: the optimizer's state and the gradients
    are divided, and one exchange per block is saved.
    """

    model: GPT2
    mesh: DeviceMesh  # [replicas, shards], or [shards]
    parameters: Mapping[str, nn.Parameter]  # the divided ones by name
    full: bool

    @classmethod
    def of(cls, model: GPT2, names: Collection[str], *, mesh: DeviceMesh, full: bool, bf16: bool) -> Sharding:
        """Divides the parameters `names` of `model` in place; they stay fp32, and are gathered as bf16 if `bf16`."""
        divided = {name: parameter for name, parameter in model.named_parameters() if name in names}
        whole = set(model.parameters()) - set(divided.values())
        # the state between layers may be a view; nothing is changed in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None,
            reduce_dtype=torch.float32 if bf16 else None,
            cast_forward_inputs=False,
        )
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=full, mp_policy=policy, ignored_params=whole)
        # the tables are used first and last in a step
        fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy, ignored_params=whole)
        return cls(model, mesh, {n: p for n, p in model.named_parameters() if n in divided}, full)

    def masters(self) -> dict[str, nn.Parameter]:
        """Returns this process's rows of each divided parameter; they share memory with the model."""
        return {name: nn.Parameter(_own(parameter).detach()) for name, parameter in self.parameters.items()}

    def move_gradients(self, masters: Mapping[str, nn.Parameter]) -> None:
        """Moves the gradients, averaged over the processes, to the masters."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                masters[name].grad, parameter.grad = _own(parameter.grad), None

    def drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    @contextmanager
    def without_exchange(self) -> Iterator[None]:
        """Lets backward passes add up their gradients on this process, without an exchange."""
        cast("FSDPModule", self.model).set_requires_gradient_sync(False)
        try:
            yield
        finally:
            cast("FSDPModule", self.model).set_requires_gradient_sync(True)

    # -- whole and divided tensors ---------------------------------------------------------------------------------

    def rows(self, name: str) -> slice:
        """Returns the rows of parameter `name` that this process holds."""
        return self.layout(name)[self.mesh.get_local_rank("shard")]

    def layout(self, name: str) -> list[slice]:
        """Returns the rows of parameter `name` by process of a shard group; later ones may be empty."""
        count, shards = self.parameters[name].shape[0], self.mesh["shard"].size()
        each = -(-count // shards)
        return [slice(min(count, k * each), min(count, (k + 1) * each)) for k in range(shards)]

    def shape(self, name: str) -> torch.Size:
        """Returns the shape of the whole parameter."""
        return self.parameters[name].shape

    def whole(self, name: str, own: Tensor) -> Tensor:
        """Returns the whole tensor of which each process passes its rows, `own`; divided as parameter `name`."""
        like = cast("DTensor", self.parameters[name])
        shape = torch.Size([like.shape[0], *own.shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        given = DTensor.from_local(own, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)
        return given.full_tensor()

    @property
    def is_first_replica(self) -> bool:
        """Whether this process is of the first group that holds the whole model, which writes the checkpoints."""
        return self.mesh.ndim == 1 or self.mesh.get_local_rank("replica") == 0

    @property
    def place(self) -> tuple[int, int]:
        """The number of this process among those that divide a model, from 1, and their number."""
        return self.mesh.get_local_rank("shard") + 1, self.mesh["shard"].size()

    def elsewhere_bytes(self) -> int:
        """Returns the bytes of the divided parameters that other processes hold."""
        own = sum(_own(parameter).nbytes for parameter in self.parameters.values())
        return sum(4 * parameter.numel() for parameter in self.parameters.values()) - own

    def told(self) -> str:
        """Returns the layout in a few characters, as checkpoints record it."""
        return f"{'full' if self.full else 'optimizer'} {'x'.join(map(str, self.mesh.shape))}"

    def own_rows(self, key: str, whole: Tensor) -> Tensor:
        """Returns this process's rows of a tensor of a checkpoint, or all of one that is not divided here."""
        names = (name for name in key.split("|") if name in self.parameters)
        name = next((name for name in names if whole.shape == self.shape(name)), None)
        return whole if name is None else whole[self.rows(name)].clone()

    def owner(self, key: str, tensor: Tensor) -> str | None:
        """Returns the parameter like which a tensor of a checkpoint is divided; `key` has names between bars."""
        names = (name for name in key.split("|") if name in self.parameters)
        return next((name for name in names if tensor.shape == self._own_shape(name)), None)

    def _own_shape(self, name: str) -> torch.Size:
        rows, whole = self.rows(name), self.shape(name)
        return torch.Size([rows.stop - rows.start, *whole[1:]])

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of `tensor` over the shards of one model."""
        dist.all_reduce(tensor, group=self.mesh.get_group("shard"))
        return tensor

    def divided(self, masters: Mapping[str, nn.Parameter]) -> dict[Tensor, Divided]:
        """Returns by master how its parameter is divided."""
        return {masters[name]: Divided(self, name) for name in self.parameters}

    # -- the model outside of a step -------------------------------------------------------------------------------

    def divide(self) -> None:
        """Frees all whole copies; the next pass gathers the current values."""
        for module in self._modules():
            module.reshard()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Holds the whole model on every process: passes of single processes need no other one in the block."""
        modules = list(self._modules())
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in modules:
                module.set_reshard_after_forward(self.full and module is not self.model, recurse=False)
            self.divide()

    def _modules(self) -> Iterator[FSDPModule]:
        return (module for module in self.model.modules() if isinstance(module, FSDPModule))


@dataclass(frozen=True)
class Divided:
    """One divided parameter, as an optimizer that works on whole matrices sees it."""

    sharding: Sharding
    name: str

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole parameter."""
        return self.sharding.shape(self.name)

    def whole(self, own: Tensor, dim: int = 0) -> Tensor:
        """Gathers a tensor whose dimension `dim` is divided like the parameter's rows; all processes must call it."""
        return self.sharding.whole(self.name, own.movedim(dim, 0).contiguous()).movedim(0, dim)

    def own(self, whole: Tensor, dim: int = 0) -> Tensor:
        """Returns this process's part of a whole tensor."""
        rows = self.sharding.rows(self.name)
        return whole.narrow(dim, rows.start, rows.stop - rows.start)

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of `tensor` over the processes that divide the parameter."""
        return self.sharding.sum(tensor)


def _own(tensor: Tensor) -> Tensor:
    return cast("DTensor", tensor).to_local()


def mesh_of(replicas: int, device: torch.device) -> DeviceMesh:
    """Arranges all processes as [replicas, shards], or [shards] of one replica; all must call it together."""
    size = dist.get_world_size()
    shape, axes = ((size,), ("shard",)) if replicas == 1 else ((replicas, size // replicas), ("replica", "shard"))
    return init_device_mesh(device.type, shape, mesh_dim_names=axes)


def divisible(model: nn.Module, decayed: set[str]) -> tuple[str, ...]:
    """Returns the names of the parameters that are divided: the decayed matrices, the tables and the head."""
    tables = {"wte.weight", "pos.weight", "unembed.weight"}
    return tuple(n for n, p in model.named_parameters() if p.dim() > 1 and (n in decayed or n in tables))
