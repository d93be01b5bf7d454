"""The train step: runs micro-batches, updates the parameters and returns the mean loss, without a device sync."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from ratrain.kernels.fp8_linear import fp8_linear
from ratrain.machine.device import check_fp8
from ratrain.machine.distributed import World
from ratrain.machine.sharding import Sharding
from ratrain.model.gpt2 import GPT2, Linear
from ratrain.model.mechanism import own_modules, that_offer
from ratrain.recipe.groups import Group


class StepResult(NamedTuple):
    """0-d tensors on the device: mean loss, and gradient norm before clipping (inf or nan: the step was skipped)."""

    loss: Tensor
    norm: Tensor


class Precision:
    """The number formats of the forward pass.

    fp32: fp32 throughout. amp_bf16: fp32 weights under autocast. bf16: bf16 copies of every matrix and of its bias;
    their fp32 masters are optimised and saved, and gates and norms stay fp32. fp8: as bf16, with 8-bit factors in the
    matrix products of the MLPs and the head. Raises UnavailableError on a GPU without fp8 matrix products.
    """

    def __init__(self, kind: str, model: GPT2, sharding: Sharding | None = None):
        """With a `sharding` the masters of divided parameters are this process's rows, and have no copies here."""
        self.kind, self.device, self._sharding = kind, model.wte.weight.device.type, sharding
        self._divided = frozenset(sharding.parameters if sharding else ())
        self.masters: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.masters.update(sharding.masters() if sharding else {})
        self.copies: dict[str, nn.Parameter] = {}
        if kind in ("bf16", "fp8"):
            self._split(model)
        if kind == "fp8":
            check_fp8(model.wte.weight.device, (model.spec.n_embd, model.spec.n_hidden))
            model.fp8 = True
            mlps = [cast("Any", block).mlp for block in model.blocks if hasattr(block, "mlp")]
            for part in (part for mlp in mlps for _, part in own_modules(mlp) if isinstance(part, Linear)):
                part.product = fp8_linear

    def _split(self, model: GPT2) -> None:
        narrow = [
            f"{name}.{key}" if name else key
            for name, module in own_modules(model)  # a foreign one keeps fp32 weights, under autocast
            if any(p.dim() > 1 for p in module.parameters(recurse=False))
            for key, _ in module.named_parameters(recurse=False)
        ]
        narrow = [name for name in narrow if name not in self._divided]
        for name in narrow:
            copy = self.masters[name]
            self.masters[name] = nn.Parameter(copy.detach().clone())
            copy.data = copy.data.to(torch.bfloat16)
            self.copies[name] = copy

    def forward(self) -> AbstractContextManager:
        """Returns the context manager of the forward pass: autocast for amp_bf16, else a null context."""
        return torch.autocast(self.device, torch.bfloat16) if self.kind == "amp_bf16" else nullcontext()

    def collect(self) -> None:
        """Moves gradients of copies and of divided parameters to their masters, where they accumulate in fp32."""
        for name, copy in self.copies.items():
            if copy.grad is None:
                continue
            master = self.masters[name]
            grad, copy.grad = copy.grad.float(), None
            master.grad = grad if master.grad is None else master.grad.add_(grad)
        if self._sharding:
            self._sharding.move_gradients(self.masters)

    def drop(self) -> None:
        """Frees the copies' gradients."""
        for copy in self.copies.values():
            copy.grad = None
        if self._sharding:
            self._sharding.drop_gradients()

    def publish(self) -> None:
        """Casts the masters' values into the copies."""
        if self.copies:
            torch._foreach_copy_(
                [c.data for c in self.copies.values()], [self.masters[n].detach() for n in self.copies]
            )


class StepHook(Protocol):
    """Callbacks inside each optimizer step, as weight pruning needs. They must not read the device."""

    def gradients_ready(self) -> None:
        """Called once the gradients of the whole batch are in the parameters, before their norm is computed."""

    def before_update(self) -> None:
        """Called once the optimizer holds the clipping factor, before it updates the weights."""

    def after_update(self) -> None:
        """Called after the optimizer has updated the weights."""


class TrainStep:
    """Averages the gradient over micro-batches and over the processes of `world`, clips, updates."""

    def __init__(
        self,
        model: GPT2,
        optim,
        *,
        groups: list[Group],
        precision: Precision,
        micro_batch: int,
        world: World = World(),  # noqa: B008 - frozen
    ):
        self.model: nn.Module = model
        self.precision, self.micro_batch, self.clip, self.world = precision, micro_batch, optim.clip, world
        self.groups = [replace(g, parameters=tuple(precision.masters[n] for n in g.names)) for g in groups if g.names]
        self.parameters = [p for g in self.groups for p in g.parameters]
        self.names = [name for g in self.groups for name in g.names]  # in the order of the optimizer's parameters
        divided = world.sharding.parameters if world.sharding else ()
        self._whole = [p for n, p in zip(self.names, self.parameters, strict=True) if n not in divided]
        self._rows = [p for n, p in zip(self.names, self.parameters, strict=True) if n in divided]
        self.hooks: list[StepHook] = []
        self.watched: list[nn.Parameter] = []  # small parameters; their gradients are kept until the next step
        self.watched_gradients: list[Tensor | None] = []  # as the optimizer leaves them: clipped
        self.optimizer: Any = optim.build(self.groups)
        self.optimizer.copies = {precision.masters[name]: copy for name, copy in precision.copies.items()}
        if world.sharding:
            self.optimizer.divided = world.sharding.divided(precision.masters)
        parts = (part for _, part in own_modules(model))
        self._settling = that_offer(parts, "settle")  # modules with state that is updated once a step

    @property
    def _direct(self) -> bool:
        """Whether the optimizer itself reads the copies' gradients and writes the copies, without casts in between."""
        return self.optimizer.publishes and not self.hooks and self.world.size == 1

    def share_gradients(self) -> None:
        """Averages gradients over the processes from now on; called once the model is compiled."""
        # with bf16 copies, gradients are collected in the fp32 masters at each micro-step; `backward` averages those
        if not self.precision.copies:
            self.model = self.world.parallel(self.model)

    def forget(self) -> None:
        """Clears the gradients and per-step module state of a pass that is not part of a step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.drop()
        for part in self._settling:
            part.forget()

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next step; it is a tensor, so there is no sync and no recompile."""
        for group, own in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"].fill_(lr * own.lr_factor)

    @property
    def lr(self) -> float:
        """The learning rate of the schedule, before factors of groups; reads the device."""
        # tables and vectors have no factor
        pairs = zip(self.optimizer.param_groups, self.groups, strict=True)
        return next(float(group["lr"]) for group, own in pairs if own.lr_factor == 1)

    def __call__(self, tokens: Tensor, targets: Tensor) -> StepResult:
        """Takes one optimizer step on tokens and targets [B, T]."""
        loss = self.backward(tokens, targets)
        for hook in self.hooks:
            hook.gradients_ready()
        norm = self._clip()
        for hook in self.hooks:
            hook.before_update()
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_update()
        self.watched_gradients = [parameter.grad for parameter in self.watched]
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.drop()
        if not self.optimizer.publishes or self.hooks:  # hooks may have changed weights after the update
            self.precision.publish()
        for part in self._settling:
            part.settle(self.world.sum)
        return StepResult(loss, norm)

    def backward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Accumulates the gradients of the mean loss in the parameters; returns the loss."""
        micro = list(zip(tokens.split(self.micro_batch), targets.split(self.micro_batch), strict=True))
        total = torch.zeros((), device=tokens.device)
        for index, (x, y) in enumerate(micro, start=1):
            local = self.world.keep_local(self.model) if index < len(micro) else nullcontext()
            with local:  # gradients are reduced once, in the last micro-step
                with self.precision.forward():
                    loss = self.model(x, y) / len(micro)
                loss.backward()
            if not self._direct or len(micro) > 1:
                self.precision.collect()
            total += loss.detach()
        if self.world.sharding or (self.precision.copies and not self._direct):
            self.world.average([p.grad for p in self._whole if p.grad is not None])
        return total

    def _clip(self) -> Tensor:
        """Computes the gradient norm and sets the clipping factor of the fused optimizer, which divides by it.

        The norm is summed in float64, so that parameters without a gradient cannot change its rounding. A non-finite
        norm sets found_inf: the device skips the step, without a sync.
        """
        square = self._square(self._whole)
        if self.world.sharding:
            square = square + self.world.sharding.sum(self._square(self._rows))
        norm = square.sqrt().float()
        scale = (norm / self.clip).clamp(min=1) if self.clip else torch.ones_like(norm)
        self.optimizer.grad_scale, self.optimizer.found_inf = scale, (~norm.isfinite()).float()
        return norm

    def _square(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Returns the squared norm of the parameters' gradients, float64 []."""
        grads = [grad for p in parameters if (grad := self._gradient(p)) is not None]
        wide = [grad for grad in grads if grad.dtype != torch.bfloat16]
        norms = torch._foreach_norm(wide) if wide else []
        if narrow := [grad for grad in grads if grad.dtype == torch.bfloat16]:
            norms = [*norms, *torch._foreach_norm(narrow, 2, dtype=torch.float32)]
        return torch.stack(norms).double().square().sum()

    def _gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """Returns the gradient of a master, or that of its copy if it has not been collected."""
        copy = self.optimizer.copies.get(parameter)
        return parameter.grad if parameter.grad is not None or copy is None else copy.grad
