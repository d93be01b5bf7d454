"""Masks through training steps: exact, monotone, and zero in weights and moments for good."""

from __future__ import annotations

import itertools

import pytest
import torch

from ratrain.config.find import shipped
from ratrain.config.schema import PruneSection
from ratrain.engine.assembly import assemble
from ratrain.model.build import build
from ratrain.recipe.prune.schedule import shares

KINDS = {
    "magnitude": {"kind": "magnitude"},
    "movement": {"kind": "movement"},
    "uniform": {"kind": "magnitude", "layers": "uniform"},
    "with the table": {"kind": "magnitude", "embedding": True},
    "regrow": {"kind": "magnitude", "regrow": 0.2},
} | {f"bitter{n}": {"kind": "state", "score": f"bitter{n}"} for n in range(10)}


def batch(seed):
    tokens = torch.randint(2048, (4, 17), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def step_of(manifest, *, dtype=torch.float32, **options):
    section = PruneSection.model_validate({"target": 0.8, **options})
    manifest = manifest.model_copy(update={"prune": section})
    step = assemble(manifest, model=build(manifest).to(dtype), micro_batch=4).step
    step.set_lr(1e-2)
    return step


def pruner_of(step):
    return step.hooks[0]


def masks(step):
    return dict(pruner_of(step).masks())


def ramp(step, looks=8, apart=3):
    """Trains, with a look at every third step up to the target; yields after each step whether there was one."""
    for number in range(1, looks * apart + 1):
        if number % apart == 0:
            pruner_of(step).expect(0.8 * number / (looks * apart), last=number == looks * apart)
        step(*batch(number))
        yield number % apart == 0


@pytest.mark.parametrize("kind", KINDS)
def test_each_look_prunes_exactly_what_was_asked_for(tiny, kind):
    step, looks = step_of(tiny(), **KINDS[kind]), 0
    for looked in ramp(step):
        looks += looked
        asked = int(0.1 * looks * pruner_of(step).weights + 1e-6)
        gone = sum(int((~mask).sum()) for mask in masks(step).values())
        assert gone == pruner_of(step).pruned == asked
    assert pruner_of(step).reached


@pytest.mark.parametrize("file", shipped(), ids=lambda file: file.stem)
def test_every_variant_can_be_pruned(tiny, file):
    step = step_of(tiny(str(file)), kind="movement", layers="uniform", embedding=True, regrow=0.1)
    for _ in ramp(step, looks=2, apart=1):
        gone = sum(int((~mask).sum()) for mask in masks(step).values())
        assert gone == pruner_of(step).pruned
        assert all(not weight[~mask].any() for weight, mask in zip(weights_of(step), masks(step).values(), strict=True))
    assert pruner_of(step).pruned == int(0.8 * pruner_of(step).weights + 1e-6)


def weights_of(step):
    return [step.precision.masters[name] for name in pruner_of(step).names]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pruned_is_zero_with_all_its_moments_and_stays_so(tiny, kind):
    step = step_of(tiny(), **KINDS[kind])
    before = masks(step)
    for _ in ramp(step):
        now = masks(step)
        for name, weight in step.precision.masters.items():
            if name not in now:
                continue
            gone = ~now[name]
            state = step.optimizer.state[weight]
            for tensor in (weight, *(t for t in state.values() if t.shape == weight.shape)):
                assert not tensor[gone].any()
            if kind != "regrow":
                assert not (now[name] & ~before[name]).any(), f"{name}: a weight came back"
        before = now
    assert any((~mask).any() for mask in before.values())


@pytest.mark.parametrize("kind", ["magnitude", "movement", "bitter0"])
def test_with_a_target_of_zero_it_is_the_same_training_to_the_bit(tiny, kind):
    plain, pruned = step_of(tiny(), kind="magnitude"), step_of(tiny(), **{**KINDS[kind], "target": 0.0})
    for number in range(20):
        pruner_of(pruned).expect(0.0)
        assert torch.equal(plain(*batch(number)).loss, pruned(*batch(number)).loss)
    for a, b in zip(plain.parameters, pruned.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_global_threshold_prunes_the_smallest_of_all(tiny):
    step = step_of(tiny(), kind="magnitude")
    step.set_lr(0.0)
    pruner_of(step).expect(0.5)
    weights = {name: step.precision.masters[name].detach().clone() for name in pruner_of(step).names}
    step(*batch(0))
    now = masks(step)
    stays = torch.cat([weights[name][now[name]].abs() for name in now])
    gone = torch.cat([weights[name][~now[name]].abs() for name in now])
    assert gone.max() <= stays.min()


@pytest.mark.parametrize(("kind", "policy"), [("uniform", "uniform"), ("bitter4", "depth")])
def test_each_matrix_loses_its_share_to_within_a_weight(tiny, kind, policy):
    step = step_of(tiny(), **KINDS[kind])
    list(ramp(step))
    now = masks(step)
    sizes = [mask.numel() for mask in now.values()]
    for mask, share in zip(now.values(), shares(policy, sizes, 0.8), strict=True):
        assert abs(int((~mask).sum()) - share * mask.numel()) <= 1


def test_movement_is_what_the_gradients_said(tiny):
    step = step_of(tiny("gpt2", "optim.clip=0.05"), dtype=torch.float64, kind="movement")
    name = pruner_of(step).names[0]
    weight, expected, size = step.precision.masters[name], 0.0, 0.0
    for number in range(3):
        step.backward(*batch(number))
        norm = torch.stack([p.grad.square().sum() for p in step.parameters if p.grad is not None]).sum().sqrt()
        moved = weight.detach() * weight.grad / max(1.0, float(norm) / 0.05)
        expected, size = expected - moved, size + moved.abs()
        step.forget()
        step(*batch(number))
    found = pruner_of(step).tensors()[f"movement|{name}"]
    # the norm, the clip and their ratio are rounded to fp32
    assert ((found - expected).abs() <= 3 * 2**-24 * size + 1e-15).all()


def test_a_step_that_is_skipped_moves_no_score_and_no_mask(tiny):
    step = step_of(tiny(), kind="movement")
    list(itertools.islice(ramp(step), 6))
    before = {name: tensor.clone() for name, tensor in pruner_of(step).tensors().items()}
    with torch.no_grad():
        kept = step.parameters[-1].clone()
        step.parameters[-1].fill_(torch.nan)
    assert not step(*batch(0)).norm.isfinite()
    with torch.no_grad():
        step.parameters[-1].copy_(kept)
    assert all(torch.equal(before[name], tensor) for name, tensor in pruner_of(step).tensors().items())
    assert step(*batch(0)).norm.isfinite()


@pytest.mark.parametrize("score", [f"bitter{n}" for n in range(10)])
def test_a_look_beside_a_reset_of_the_moments_sees_them(tiny, score):
    """SPAM forgets them between two steps: a look after the first of these prunes as it does without SPAM."""
    found = []
    for interval in (6, 0):
        spam = ("optim.kind=adamwspam", f"optim.interval={interval}", "optim.warmup=2")
        step = step_of(tiny("gpt2", *spam), kind="state", score=score)
        for number in range(1, 7):
            if number == 6:
                pruner_of(step).expect(0.5)
            step(*batch(number))
        found.append(masks(step))
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


def test_regrown_weights_are_those_of_the_largest_gradient_and_begin_at_zero(tiny):
    step = step_of(tiny(), kind="magnitude", regrow=0.2, layers="uniform")
    list(ramp(step, looks=4))
    before = masks(step)
    pruner_of(step).expect(0.8)
    step.backward(*batch(99))
    dense = {name: step.precision.masters[name].grad.abs().clone() for name in before}
    step.forget()
    step(*batch(99))
    for name, now in masks(step).items():
        back, out = now & ~before[name], ~now
        assert back.any()
        assert dense[name][back].min() >= dense[name][out].max()
        assert not step.precision.masters[name][back].any()


def test_what_is_exchanged_for_itself_begins_at_zero_too(tiny):
    step = step_of(tiny(), kind="magnitude", regrow=0.3, layers="uniform")
    list(ramp(step, looks=4))
    step.set_lr(0.0)  # so that the look sees these weights
    before = {name: (mask, step.precision.masters[name].detach().clone()) for name, mask in masks(step).items()}
    pruner_of(step).expect(0.8)
    step(*batch(99))
    again = 0
    for name, now in masks(step).items():
        mask, weight = before[name]
        least = weight.abs().masked_fill(~mask, torch.inf).flatten().argsort()[: int(0.3 * mask.sum())]
        chosen = now.flatten()[least]
        again += int(chosen.sum())
        assert not step.precision.masters[name].flatten()[least][chosen].any()
    assert again


def test_the_token_table_is_pruned_where_that_is_asked_for_and_comes_last(tiny):
    assert "wte.weight" not in pruner_of(step_of(tiny(), kind="magnitude")).names
    with_table = pruner_of(step_of(tiny(), kind="magnitude", embedding=True))
    assert with_table.names[-1] == "wte.weight"
    assert len(with_table.names) == 4 * 2 + 1


def test_masks_take_a_bit_per_weight_and_movement_a_number(tiny):
    def taken(**options):
        pruner = pruner_of(step_of(tiny(), **options))
        return sum(tensor.nbytes for tensor in pruner.tensors().values()) / pruner.weights

    assert taken(kind="magnitude") == taken(kind="state", score="bitter0") == 1 / 8
    assert taken(kind="movement") == 4 + 1 / 8


@pytest.mark.parametrize("precision", ["bf16", "amp_bf16"])
def test_in_other_precisions_the_copies_are_zero_as_well(tiny, precision):
    step = step_of(tiny("gpt2", f"train.precision={precision}"), kind="magnitude")
    list(ramp(step, looks=2, apart=1))
    for name, mask in masks(step).items():
        used = dict(step.model.named_parameters())[name]
        assert not used[~mask].any()
        assert used[mask].any()
