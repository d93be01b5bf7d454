"""Steps with something wrong, and a worker of each for the tests to start."""

from __future__ import annotations

import os
import sys

import torch


def step_that(does: str, after: int = 0):
    """A small step that, once it was taken `after` times, does what is planted: nothing, reads, breaks, keeps, exits,
    raises or prints."""
    weight = torch.ones(64, 64, requires_grad=True)
    taken = 0

    def loss(x):
        y = x @ weight
        if does == "breaks":
            torch._dynamo.graph_break()
        return y.square().mean()

    compiled = torch.compile(loss, backend="eager", fullgraph=does != "breaks")

    def step():
        nonlocal taken
        taken += 1
        found = compiled(torch.ones(8, 64))
        found.backward()
        weight.grad = None
        if taken > after:
            _plant(does, found)

    return step


def _plant(does: str, loss: torch.Tensor) -> None:
    if does == "reads":
        loss.item()
    elif does == "keeps":
        torch.empty(1 << 20)
    elif does == "exits":
        print("these are its last words", file=sys.stderr, flush=True)
        os._exit(3)
    elif does == "raises":
        raise ValueError("a step that fails")
    elif does == "prints":
        print("not an answer", flush=True)
