"""Every pair of patches: it composes, causally and closed to the base model, or is refused with both names."""

import itertools

import pytest
import torch

from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.config.toml import toml
from ratrain.contracts import SMALL, contracts
from ratrain.engine.parts.fitting import fit_briefly
from ratrain.errors import ManifestError
from ratrain.model.build import build, claim_sites
from ratrain.model.gpt2 import GPT2
from ratrain.registry import optim_kinds, patch_kinds

LENGTH = 24
TOGETHER = ("unified_ra", "reciprocal_mlp", "output_gate")


def with_patches(*kinds):
    asked = [f"patch.{kind}.enabled=true" for kind in kinds]
    asked += [f"patch.{k}.{key}={toml(value)}" for k in kinds for key, value in patch_kinds()[k].example.items()]
    source = read_source(find_manifest("gpt2"), scale="tiny", overrides=[*SMALL, *asked])
    return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())


def sites_of(kind):
    manifest = with_patches(kind)
    with torch.device("meta"):
        return set(claim_sites(GPT2(manifest.model), manifest.patch)[0])


def meet(a, b):
    return any(f"{s}.".startswith(f"{t}.") or f"{t}.".startswith(f"{s}.") for s in sites_of(a) for t in sites_of(b))


@pytest.mark.parametrize("pair", list(itertools.combinations(patch_kinds(), 2)), ids=" ".join)
def test_pair(pair):
    manifest = with_patches(*pair)
    if meet(*pair):
        with pytest.raises(ManifestError) as refused:
            build(manifest)
        assert all(f"patch.{kind}" in str(refused.value) for kind in pair)
        return
    tokens = torch.randint(manifest.model.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    model = fit_briefly(build(manifest), tokens.expand(2, -1)).double()
    assert set(model.claimed.values()) == set(pair)
    whole = model.logits(tokens)
    edited = tokens.clone()
    edited[:, LENGTH // 2 :] += 1
    assert torch.equal(model.logits(edited)[:, : LENGTH // 2], whole[:, : LENGTH // 2])
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] == "s":
            buffer.zero_()
    closed = {name: patch.closed() for name, patch in manifest.patch.items()}
    base = build(manifest.model_copy(update={"patch": {n: left for n, left in closed.items() if left}})).double()
    torch.testing.assert_close(model.logits(tokens), base.logits(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("claim", contracts())
def test_three_together(claim):
    contracts()[claim](with_patches(*TOGETHER))
