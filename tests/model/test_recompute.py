"""Activation checkpointing changes the memory of a step and no number of it."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ratrain.config.schema import CompileSection
from ratrain.engine.assembly import train_step
from ratrain.errors import ManifestError
from ratrain.model.recompute import _EXPENSIVE

KINDS = ("none", "block", "selective")


class Products(TorchDispatchMode):
    """Counts matrix products and attentions."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in _EXPENSIVE
        return func(*args, **(kwargs or {}))


def stepped(tiny, kind, name="v9", compiler=None):
    """Losses and gradient norms of two steps, the weights after them, and of a third pass the bytes that its forward
    part keeps for autograd, and the products of its backward part."""
    manifest = tiny(name, f"parallel.activation_checkpointing={kind}", "model.dropout=0.1")
    model, step = train_step(manifest, lr=1e-3, compiler=compiler or CompileSection(scope="off"))
    tokens = torch.randint(manifest.model.vocab_size, (2, manifest.train.micro_batch, manifest.model.block_size))
    torch.manual_seed(0)
    numbers = [float(x) for batch in tokens for x in step(batch, batch.roll(-1, 1))]
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens[0], tokens[1])
    with Products() as products:
        loss.backward()
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return numbers, weights, sum(kept.values()), products.count


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.mark.parametrize("name", ["v0", "v9", "tied_ra", "modern"])
def test_every_kind_takes_the_same_steps_and_keeps_less(tiny, name):
    found = []
    for kind in KINDS:
        torch.manual_seed(1)
        found.append(stepped(tiny, kind, name))
    assert found[0][0] == found[1][0] == found[2][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][1], found[2][1])
    (none, by_none), (block, by_block), (_, by_selective) = (counts for _, _, *counts in found)
    assert block < none / 2  # autograd does not see what selective checkpointing keeps
    assert by_none == by_selective < by_block


def test_it_compiles_without_a_break_to_the_same_step(tiny):
    found = []
    for kind in KINDS:
        torch.manual_seed(1)
        torch._dynamo.reset()
        manifest = tiny("v9", f"parallel.activation_checkpointing={kind}")
        model, step = train_step(manifest, lr=1e-3, compiler=CompileSection(scope="block", backend="aot_eager"))
        tokens = torch.randint(manifest.model.vocab_size, (manifest.train.micro_batch, manifest.model.block_size))
        step(tokens, tokens.roll(-1, 1))
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_mechanism_that_counts_its_passes_is_refused(tiny):
    with pytest.raises(ManifestError, match="counted twice"):
        stepped(tiny, "block", "v19")
