"""Observation passes over a model: in eval mode, uncompiled, with temporary hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ratrain.engine.step import Precision
from ratrain.model.gpt2 import GPT2

Hook = Callable[[Any, tuple[Any, ...]], None]  # module and its arguments, before it runs


@contextmanager
def looked_at(
    model: GPT2, hooks: Iterable[tuple[nn.Module, Hook]], precision: Precision | None = None
) -> Iterator[None]:
    """Registers each hook on its module for the duration of the context; restores the model's mode afterwards.

    A hook receives the module and its positional arguments before the module runs. Passes run without gradients.
    """
    training = model.training
    model.eval()
    with ExitStack() as stack, torch.no_grad():
        stack.callback(model.train, training)
        for module, hook in hooks:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        # hooks must not become part of the compiled graphs, nor cost a new one
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(precision.forward() if precision else nullcontext())
        yield
