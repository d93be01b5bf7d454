"""Lenses against their text, written out head by head; compressed keys and values; the route and who listens to it."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from ratrain.engine.engine import Engine
from ratrain.engine.parts.activation import Switchboard
from ratrain.events import Window
from ratrain.model.build import build, switches
from ratrain.model.generate import decode
from ratrain.registry import patch_kinds

LENSES = {"both": {}, "reciprocity": {"discoverability": False}, "discoverability": {"reciprocity": False}}


def seen_through(core, q, k, v):
    """y [B, H, T, D] of q, k, v by the module's own numbers and the text's formula."""
    names = ["std", *core.lenses]
    out = []
    for head in range(q.shape[1]):
        w = dict(zip(names, torch.stack([getattr(core, name)[head] for name in names]).softmax(0), strict=True))
        scores = q[:, head] @ k[:, head].mT / q.shape[-1] ** 0.5
        logits = w["std"] * scores
        if "rec" in w:
            logits = logits + w["rec"] * scores.mT
        if "disc" in w:
            d = k[:, head] @ core.seeker.u[head]  # [B, T]
            logits = logits + w["disc"] * (d + 7.0)[:, None]  # a constant is nothing to a softmax
        later = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        rows = logits.masked_fill(later, float("-inf")).softmax(-1) @ v[:, head]
        out.append(rows)
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("options", LENSES.values(), ids=LENSES)
def test_scores_are_seen_through_the_lenses_that_are_on(old_model, options):
    core = old_model("lens", **options)[0].blocks[1].attn.core
    q, k, v = torch.randn(3, 2, 2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(core(q, k, v), seen_through(core, q, k, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [*LENSES.values(), {"compress": 4, "route": {}, "context": {"conductor": True}}])
def test_decoding_is_the_full_forward(old_model, tokens, options):
    model, _ = old_model("lens", **options)
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("id", "shares"),
    [
        ("l1", {"std": 0.832, "rec": 0.168}),
        ("l2", {"std": 0.891, "disc": 0.109}),
        ("l3", {"std": 0.75509, "rec": 0.15245, "disc": 0.09247}),
        ("l1_as_run", {"std": 0.75509, "rec": 0.15245, "disc": 0.09247}),
    ],
)
def test_a_lens_that_is_off_has_no_share_but_as_run(tiny, id, shares):
    weights = build(tiny(id)).blocks[0].attn.core.weights()
    assert list(weights) == list(shares)
    assert all(weights[name].tolist() == pytest.approx([share] * 2, abs=6e-4) for name, share in shares.items())


def test_compressed_keys_and_values_start_as_the_nearest_of_that_rank(tiny):
    base, compressed = build(tiny("gpt2")), build(tiny("gpt2", "patch.lens.compress=5"))
    whole = base.blocks[1].attn.qkv.weight.detach().chunk(3)
    qkv = compressed.blocks[1].attn.qkv
    assert torch.equal(qkv.q, whole[0])
    for weight, up, down in ((whole[1], qkv.k_up, qkv.k_down), (whole[2], qkv.v_up, qkv.v_down)):
        lost = torch.linalg.svdvals(weight)[5:].square().sum().sqrt()  # Eckart and Young
        torch.testing.assert_close((weight - up @ down).norm(), lost)
        torch.testing.assert_close(up.norm(dim=0), down.norm(dim=1))  # each takes the root of a singular value


def test_without_an_mlp_a_block_adds_attention_and_nothing_else(old_model, tokens):
    model, _ = old_model("lens", mlp=False)
    h = model.embed(tokens)
    for block in model.blocks:
        h = h + block.attn(block.norm_1(h), None)[0]
    assert torch.equal(model.logits(tokens), F.linear(model.norm(h), model.head_weight[: model.spec.vocab_size]))
    assert not any("mlp" in name or "norm_2" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("step", "route"), [(0, 0.9002), (2000, 0.9002), (5000, 0.731), (6700, 0.579), (7500, 0.5),
                                             (8000, 0.450), (10000, 0.269)])  # fmt: skip
def test_the_route_as_run_is_where_the_reference_had_it(tiny, tmp_path, step, route):
    manifest = tiny("l5_as_run", "train.budget.steps=10000")
    engine = Engine(manifest, checkpoints=tmp_path, device=torch.device("cpu"), emit=lambda event: None)
    list(engine.part(Switchboard).set(step, step / 10000))
    part = engine.model.blocks[0].route
    assert float(part().detach()) == pytest.approx(route, abs=6e-4)


@pytest.mark.parametrize(("spent", "route"), [(0.1, 0.9002), (0.6, 1 / (1 + math.exp(-0.6))), (1.0, 0.269)])
def test_the_route_as_intended_goes_with_the_budget(tiny, tmp_path, spent, route):
    engine = Engine(tiny("l5"), checkpoints=tmp_path, device=torch.device("cpu"), emit=lambda event: None)
    list(engine.part(Switchboard).set(int(100 * spent), spent))
    assert float(engine.model.blocks[1].route().detach()) == pytest.approx(route, abs=6e-4)


def test_the_route_moves_while_a_run_trains(tiny, tmp_path):
    seen = []

    def emit(event):
        if isinstance(event, Window):
            seen.append(float(switches(engine.model, "anneal")["lens"][0]))

    manifest = tiny("l5", "train.budget.steps=10", "log.every=5", "eval.windows=2")
    engine = Engine(manifest, checkpoints=tmp_path, device=torch.device("cpu"), emit=emit)
    engine.run()
    assert seen == pytest.approx([(0.4 - 0.2) / 0.8, (0.9 - 0.2) / 0.8])  # as it stood in each window's last step


@pytest.mark.parametrize(("raw", "listens"), [(3.3, False), (3.1, True)])  # -3.2 at the end: one half is at 3.2
def test_the_mlp_listens_where_the_route_is_below_one_half(old_model, tokens, raw, listens):
    model, _ = old_model("lens", route={}, context={"conductor": True})
    with torch.no_grad():
        for block in model.blocks:
            block.route.raw.fill_(raw)
            block.mlp.context.alpha.fill_(0.5)
    before = model.logits(tokens)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.context.up.weight.mul_(2)
    assert torch.equal(model.logits(tokens), before) != listens


def test_a_block_adds_up_as_its_text_says(old_model):
    model, _ = old_model("lens", route={}, context={"rank": 3})
    block = model.blocks[0]
    h = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a = block.attn(block.norm_1(h), None)[0]
    z = block.norm_2(h + a)
    t = F.gelu(z @ block.mlp.up.weight.T + block.mlp.up.bias)
    c = a @ block.mlp.context.down.weight.T @ block.mlp.context.up.weight.T
    beta = block.mlp.context.alpha.clamp(0, 1)
    t = (1 - beta) * t + beta * c
    m = t @ block.mlp.down.weight.T + block.mlp.down.bias
    g = torch.sigmoid(block.route.raw - 3.2)
    torch.testing.assert_close(block(h, None)[0], h + g * a + (1 - g) * m, rtol=0, atol=1e-12)


def test_what_attention_put_out_learns_nothing_from_the_summary(old_model):
    block = old_model("lens", context={"rank": 3})[0].blocks[0]
    a = torch.randn(1, 5, 16, dtype=torch.float64, requires_grad=True)
    block.mlp(torch.randn(1, 5, 16, dtype=torch.float64), a, None).sum().backward()
    assert a.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reciprocity": False, "discoverability": False}, "nothing is on"),
        ({"mlp": False, "route": {}}, "nothing for context and route"),
        ({"context": {"conductor": True}}, "depends on the route; give route"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        patch_kinds()["lens"].model_validate(options)


@pytest.mark.parametrize(("id", "kind", "more"), [
    ("s0", "adamwspam", {}),
    ("s1", "sinkgd", {"iterations": 5}),
    ("s2", "sinkgd", {"iterations": 10}),
    ("s3", "sinkgd", {"iterations": 3}),
    ("s1_as_run", "sinkgd_legacy", {"iterations": 5, "tau": 0.1}),
    ("s2_as_run", "sinkgd_legacy", {"iterations": 10, "tau": 0.05}),
    ("s3_as_run", "sinkgd_legacy", {"iterations": 3, "tau": 0.2}),
])  # fmt: skip
def test_the_steps_of_the_sinkgd_study_are_l6_under_their_optimizer(tiny, id, kind, more):
    manifest, l6 = tiny(id), tiny("l6_as_run" if id.endswith("as_run") else "l6")
    assert manifest.optim.kind == kind
    assert {name: getattr(manifest.optim, name) for name in more} == more
    assert (manifest.model, manifest.patch) == (l6.model, l6.patch)
