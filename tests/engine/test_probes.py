"""Probes say what is there: gates, clipped gradients, shares of variance; and looking changes nothing."""

import copy

import pytest
import torch

from ratrain.config.identity import run_hash
from ratrain.engine.engine import Engine
from ratrain.engine.parts.probes import Probes
from ratrain.engine.step import Precision, TrainStep
from ratrain.events import Probed, Window
from ratrain.model.build import build
from ratrain.recipe.groups import group_parameters

KEYS = ("train.budget.steps=6", "log.every=2", "eval.every=3", "eval.windows=2")


@pytest.fixture
def probed(tiny):
    """A model with drawn gates, its step and its probes."""

    def probed(name, *overrides):
        manifest = tiny(name, *overrides)
        model = build(manifest)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        step = TrainStep(
            model,
            manifest.optim,
            groups=group_parameters(model, 0.1),
            precision=Precision("fp32", model),
            micro_batch=2,
        )
        step.set_lr(1e-3)
        return model, step, Probes(model, step, on=True)

    return probed


@pytest.fixture
def trained(tiny, tmp_path):
    """What an engine stated over a few steps."""

    def trained(name, *overrides):
        torch._dynamo.reset()
        heard = []
        manifest = tiny(name, *KEYS, *overrides)
        folder = tmp_path / run_hash(manifest) / str(manifest.log.probes)
        Engine(manifest, checkpoints=folder, device=torch.device("cpu"), emit=heard.append).run()
        return heard

    return trained


def test_gates_are_those_of_each_layer_and_head(probed):
    model, _, probes = probed("v8")
    for _, buffer in model.named_buffers():
        if buffer.dim() == 0:
            buffer.fill_(0.25)
    values = probes.read()
    for layer, block in enumerate(model.blocks):
        score, restart = block.attn.score, block.attn.blend
        near = {"rel": 5e-6 + 2**-22}  # told in six digits, after a few roundings to fp32
        told = {"w_rec": score.w_rec, "effective w_rec": 1 + 0.25 * (score.w_rec - 1)}
        for probe, expected in told.items():
            assert values["unified_ra"][probe][layer] == pytest.approx(expected.tolist(), **near)
        alpha = 0.5 * restart.w.sigmoid()
        assert values["self_restart"]["effective alpha"][layer] == pytest.approx((0.25 * alpha).tolist(), **near)


def test_gradients_are_those_that_the_optimizer_took(probed):
    model, step, probes = probed("v6", "optim.clip=0.01")
    tokens = torch.randint(2048, (2, 17), generator=torch.Generator().manual_seed(2))
    twin = copy.deepcopy(model)
    twin(tokens[:, :-1], tokens[:, 1:]).backward()
    norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    assert norm > 0.01
    step(tokens[:, :-1], tokens[:, 1:])
    values = probes.read()
    for layer, block in enumerate(twin.blocks):
        expected = {
            ("unified_ra", "w_std"): block.attn.score.w_std.grad.abs(),
            ("reciprocal_mlp", "w_rec"): block.mlp.gate.w_rec.grad.abs(),
            ("reciprocal_mlp", "token.u"): block.mlp.mix.token.u.grad.norm()[None],  # one value for all its channels
        }
        for (patch, name), gradient in expected.items():
            told = values[patch][f"gradient of {name}"][layer]
            assert told == pytest.approx((gradient * 0.01 / norm).tolist(), rel=1e-3)


def test_the_share_of_scores_is_counted_out(probed):
    model, step, probes = probed("v1")
    windows = torch.randint(2048, (3, 9), generator=torch.Generator().manual_seed(2))
    values = probes.observe(windows[:, :-1], step.precision)["unified_ra"]["share of score variance"]
    attn, rank = model.blocks[0].attn, 4
    x = model.blocks[0].norm_1(model.embed(windows[:2, :-1]))
    q, k, _ = attn.qkv(x, attn.score())
    for head in range(2):
        part = whole = 0.0
        for row in range(2):
            for i in range(8):
                scores = [(q[row, head, i] * k[row, head, j]).tolist() for j in range(i + 1)]
                low, all_ = [sum(s[-rank:]) for s in scores], [sum(s) for s in scores]
                part += sum((s - sum(low) / len(low)) ** 2 for s in low)
                whole += sum((s - sum(all_) / len(all_)) ** 2 for s in all_)
        assert values[0][head] == pytest.approx(part / whole, rel=1e-3)


def test_the_share_of_the_mlp_is_the_output_without_the_other_channels(probed):
    model, step, probes = probed("v3")
    windows = torch.randint(2048, (2, 9), generator=torch.Generator().manual_seed(2))
    values = probes.observe(windows[:, :-1], step.precision)["reciprocal_mlp"]["share of MLP output variance"]
    block = model.blocks[0]
    with torch.no_grad():
        h = model.embed(windows[:, :-1])
        h = h + block.attn(block.norm_1(h), None)[0]
        hidden = block.mlp.act(block.mlp.up(block.norm_2(h)))
        columns = block.mlp.down.weight * block.mlp.gate()
        part, whole = hidden[..., -64:] @ columns[:, -64:].T, hidden @ columns.T
        share = part.flatten(0, 1).var(0).sum() / whole.flatten(0, 1).var(0).sum()
    assert values[0] == pytest.approx([share.item()], rel=1e-3)


def test_a_layer_without_the_patch_has_no_values(probed):
    _, _, probes = probed("v1", 'patch.unified_ra.target="blocks.1.attn.score"')
    values = probes.read()
    assert [len(row) for row in values["unified_ra"]["w_std"]] == [0, 2]


def test_they_come_with_windows_and_evaluations(trained):
    heard = trained("v3")
    steps = [e.step for e in heard if isinstance(e, Probed) and "w_std" in e.values["unified_ra"]]
    assert steps == [e.step for e in heard if isinstance(e, Window)]
    shares = [e.step for e in heard if isinstance(e, Probed) and "share of score variance" in e.values["unified_ra"]]
    assert shares == [3, 6]


def test_looking_changes_no_loss_and_no_graph(trained):
    keys = ("compile.scope=block", "compile.backend=aot_eager")
    runs = [[e for e in trained("v3", *keys, f"log.probes={on}") if isinstance(e, Window)] for on in ("true", "false")]
    looked, not_looked = ([(e.losses, e.graphs) for e in windows] for windows in runs)
    assert looked == not_looked
    assert not any(e.recompiles for e in runs[0])


def test_switched_off_or_without_patches_nothing_is_told(trained):
    assert not [e for e in trained("v1", "log.probes=false") if isinstance(e, Probed)]
    assert not [e for e in trained("v0") if isinstance(e, Probed)]


def test_two_seams_of_a_layer_keep_their_names_apart_and_the_bases_parameters_are_no_gates(probed):
    _, step, probes = probed("peri_ln")  # norms around attn.proj and mlp.down, which it keeps
    tokens = torch.randint(2048, (2, 17), generator=torch.Generator().manual_seed(2))
    step(tokens[:, :-1], tokens[:, 1:])
    values = probes.read()
    names = [f"gradient of {seam}norm.{leaf}" for seam in ("", "down.") for leaf in ("weight", "bias")]
    assert sorted(values["peri_ln"]) == sorted(names)
