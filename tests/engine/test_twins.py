"""A/A arms are the same variant and seeds, but for the one thing that they name."""

import pytest
import torch

from ratrain.config.identity import recipe_hash, run_folder, run_hash
from ratrain.engine.engine import Engine
from ratrain.events import Window
from ratrain.model.build import build
from ratrain.run.check import check, twins

ARMS = ("aa_ulp", "aa_init", "aa_order")


@pytest.fixture
def batches(tiny, tmp_path):
    def batches(name, *overrides):
        engine = Engine(tiny(name, *overrides), checkpoints=tmp_path, device=torch.device("cpu"), emit=print)
        return torch.stack([engine.setup.sampler.batch(step)[0] for step in range(3)])

    return batches


def weights(manifest):
    return dict(build(manifest).named_parameters())


def test_ulp_moves_one_weight_by_one_unit_in_the_last_place(tiny):
    plain, nudged = weights(tiny("v0")), weights(tiny("aa_ulp"))
    changed = {name: (plain[name] != nudged[name]).sum().item() for name in plain}
    assert changed.pop("wte.weight") == 1
    assert not any(changed.values())
    a, b = (w["wte.weight"].detach().view(torch.int32).flatten() for w in (plain, nudged))
    assert (a - b).abs().max() == 1


def test_init_draws_other_weights_and_the_same_batches(tiny, batches):
    plain, other = weights(tiny("v0")), weights(tiny("aa_init"))
    assert not torch.equal(plain["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])
    assert torch.equal(batches("v0"), batches("aa_init"))


def test_order_draws_the_same_weights_and_other_batches(tiny, batches):
    plain, other = weights(tiny("v0")), weights(tiny("aa_order"))
    assert all(torch.equal(plain[name], other[name]) for name in plain)
    assert not torch.equal(batches("v0"), batches("aa_order"))


def test_each_seed_has_its_own_twins(tiny, batches):
    assert not torch.equal(batches("aa_order"), batches("aa_order", "seed.data=2"))
    one, two = (weights(tiny("aa_init", f"seed.init={seed}")) for seed in (1, 2))
    assert not torch.equal(one["wte.weight"], two["wte.weight"])


def test_they_are_runs_of_their_own_of_the_baselines_recipe(tiny):
    manifests = [tiny(name) for name in ("v0", *ARMS)]
    assert len({recipe_hash(manifest) for manifest in manifests}) == 1
    assert len({run_hash(manifest) for manifest in manifests}) == 4
    assert run_folder(tiny("aa_ulp", "seed.init=3", "seed.data=3")).endswith("/s3-ulp")
    assert twins([check(manifest) for manifest in manifests]) == []


def test_an_ulp_parts_two_runs_in_the_end(tiny, tmp_path):
    def losses(name):
        heard = []
        Engine(tiny(name), checkpoints=tmp_path / name, device=torch.device("cpu"), emit=heard.append).run()
        return [loss for event in heard if isinstance(event, Window) for loss in event.losses]

    plain, nudged = losses("v0"), losses("aa_ulp")
    assert plain != nudged
    assert plain == pytest.approx(nudged, abs=1e-2)
