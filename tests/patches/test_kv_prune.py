"""KV pruning against its algorithm spelt out token by token, and against a cache from which the evicted are gone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ratrain.engine.engine import Engine
from ratrain.errors import ManifestError
from ratrain.model.build import build
from ratrain.model.generate import decode
from ratrain.registry import patch_kinds

MODES = [{"mode": "kv"}, *({"missing": missing} for missing in ("drop", "renormalise", "residual"))]
RULES = [{"exposure": False}, {"sinks": 2, "recency": 3}, {"keep": 6, "sinks": 2, "recency": 4}, {"recency": 0}]


@pytest.fixture
def pruned(tiny):
    """A small model in float64 with options of kv_prune; attention far from uniform."""

    def pruned(*, length=24, dropout=0.0, **options):
        shape = ("model.n_layer=2", "model.n_head=2", "model.n_embd=16", f"model.block_size={length}")
        manifest = tiny("gpt2", *shape, f"model.dropout={dropout}")
        patch = patch_kinds()["kv_prune"].model_validate(options)
        model = build(manifest.model_copy(update={"patch": {"kv_prune": patch}})).double().eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.5, generator=generator)
        return model

    return pruned


def tokens_of(length, *, rows=2, seed=0):
    return torch.randint(2048, (rows, length), generator=torch.Generator().manual_seed(seed))


def spelt_out(q, k, v, core):
    """One head, token by token: q, k, v [T, D] -> y [T, D]."""
    options, block, length = core.options, core.block, core.length
    kept, received, gone, out = [], [0.0] * len(q), [], []
    for t in range(len(q)):
        own = list(range(t - t % block, t + 1))
        visible = kept + own if options.mode == "kv" else list(range(t + 1))
        scores = [float(q[t] @ k[j]) / math.sqrt(q.shape[1]) for j in visible]
        top = max(scores)
        masses = [math.exp(score - top) for score in scores]
        probs = dict(zip(visible, [mass / sum(masses) for mass in masses], strict=True))
        for j, p in probs.items():
            received[j] += p
        here = kept + own
        spent = sum(probs[j] for j in here)
        y = sum(probs[j] * v[j] for j in here)
        if options.mode == "v_only" and options.missing == "renormalise":
            y = y / spent
        if options.mode == "v_only" and options.missing == "residual" and gone:
            y = y + (1 - spent) * sum(v[j] for j in gone) / len(gone)
        out.append(y)
        if (t + 1) % block == 0:
            kept, lost = chosen(here, received, t + 1, core.budget, length, exposure=options.exposure)
            gone += lost
    return torch.stack(out)


def chosen(here, received, seen, budget, length, *, exposure):
    """The kept and the evicted of `here`, each in the order of positions."""

    def size(tokens):
        share = budget.keep if isinstance(budget.keep, int) else max(1, math.ceil(budget.keep * tokens - 1e-9))
        return min(tokens, share)

    recent = math.ceil(budget.recency * size(seen) / size(length))
    importance = {j: received[j] / (seen - j if exposure else 1) for j in here}
    order = [seen - 1]
    order += [j for j in here if j < budget.sinks]
    order += [j for j in reversed(here) if j >= seen - recent]
    order += sorted(here, key=lambda j: -importance[j])
    stay = list(dict.fromkeys(order))[: size(seen)]
    return sorted(stay), [j for j in here if j not in stay]


@pytest.mark.parametrize("options", [*MODES, *RULES], ids=str)
def test_it_is_the_algorithm_spelt_out(pruned, options):
    core = pruned(length=32, block=5, **options).blocks[0].attn.core
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 29, 8, dtype=torch.float64, generator=generator) for _ in range(3))
    q = 2 * q  # far from uniform
    y = core(q, k, v)
    for head in range(2):
        expected = spelt_out(q[0, head], k[0, head], v[0, head], core)
        torch.testing.assert_close(y[0, head], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [*MODES, *RULES, {"rule": "random"}, {"rule": "window"}], ids=str)
def test_decoding_without_the_evicted_is_the_full_forward_pass(pruned, options):
    model = pruned(block=5, **options)
    tokens = tokens_of(24)
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prompt", [1, 4, 5, 13, 24])
def test_a_prompt_in_one_pass_leaves_the_cache_as_its_tokens_one_by_one(pruned, prompt):
    model, tokens = pruned(block=5), tokens_of(24)
    at_once, one_by_one = model.new_caches(), model.new_caches()
    model.logits(tokens[:, :prompt], at_once)
    for t in range(prompt):
        model.logits(tokens[:, t : t + 1], one_by_one, start=t)
    for a, b in zip(at_once, one_by_one, strict=True):
        assert torch.equal(a.places, b.places)
        torch.testing.assert_close(a.values, b.values, rtol=0, atol=1e-12)
        torch.testing.assert_close(a.mass, b.mass, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_query_sees_ahead_whatever_the_shape(data):
    from ratrain.config.schema import ModelSpec

    length = data.draw(st.integers(2, 70), label="length")
    mode = data.draw(st.sampled_from(MODES), label="mode")
    keep = data.draw(st.one_of(st.integers(3, 70), st.floats(0.1, 1)), label="keep")
    options = {"keep": keep, "block": data.draw(st.integers(1, 80), label="block"), "recency": 1, "sinks": 1, **mode}
    spec = ModelSpec(n_layer=1, n_head=2, n_embd=8, block_size=80, vocab_size=10)
    core = patch_kinds()["kv_prune"].model_validate(options).build(torch.nn.Identity(), spec)
    core.reset_parameters(torch.Generator())
    core.train(data.draw(st.booleans(), label="training"))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), label="seed"))
    q, k, v = (torch.randn(1, 2, length, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    at = data.draw(st.integers(1, length - 1), label="at")
    y, other = core(q, k, v), [t.clone() for t in (q, k, v)]
    for tensor in other:
        tensor[:, :, at:] = torch.randn(1, 2, length - at, 4, dtype=torch.float64, generator=generator)
    assert torch.equal(core(*other)[:, :, :at], y[:, :, :at])


@pytest.mark.parametrize("length", [8, 64, 65, 256, 1000])
@pytest.mark.parametrize("options", MODES, ids=str)
def test_changing_what_comes_later_changes_nothing_before(pruned, options, length):
    model, tokens = pruned(length=1000, block=64, **options), tokens_of(length, rows=1)
    with torch.no_grad():
        whole = model.logits(tokens)
        for at in (1, length // 2, length - 1):
            edited = tokens.clone()
            edited[:, at:] = (edited[:, at:] + 1) % 2048
            assert torch.equal(model.logits(edited)[:, :at], whole[:, :at])


@pytest.mark.parametrize("options", MODES, ids=str)
def test_keeping_all_is_dense_attention(pruned, options):
    model, tokens = pruned(keep=1.0, block=5, **options), tokens_of(24)
    logits = model.logits(tokens)
    for block in model.blocks:
        block.attn.core.s.zero_()
    torch.testing.assert_close(logits, model.logits(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("keep", "expected"), [(0.382, [2, 4, 6, 8]), (7, [5, 7, 7, 7]), (0.01, [1, 1, 1, 1])])
def test_as_many_are_kept_as_the_manifest_says(pruned, keep, expected):
    model = pruned(block=5, keep=keep, recency=0)
    caches = model.new_caches()
    for t in range(20):
        model.logits(tokens_of(20)[:, t : t + 1], caches, start=t)
        if (t + 1) % 5 == 0:
            assert {cache.values.shape[2] for cache in caches} == {expected[t // 5]}


@pytest.mark.parametrize("options", MODES, ids=str)
def test_the_cache_is_as_small_as_is_stated(pruned, options):
    model = pruned(length=40, block=5, **options)
    caches = model.new_caches()
    model.logits(tokens_of(39), caches)  # one short of the last block's end
    keys, values = caches[0].core.kv_per_token(model.spec)
    per_element = 8 * 2 * 40  # float64, two sequences, tokens
    held_keys, held_values = caches[0].nbytes
    assert held_values <= per_element * values <= held_values + per_element * 2
    assert held_keys <= per_element * keys <= held_keys + per_element * 2
    dense = per_element * 16
    assert held_values < 0.6 * dense
    assert (held_keys < 0.6 * dense) == (options.get("mode") == "kv")


def test_what_has_left_stays_away(pruned):
    model, tokens = pruned(length=32, block=5), tokens_of(30, rows=1)
    cache, before = model.new_caches()[0], set()
    caches = [cache, *model.new_caches()[1:]]
    for t in range(30):
        model.logits(tokens[:, t : t + 1], caches, start=t)
        held = set(cache.places[0, 0].tolist())
        assert held - {t} <= before
        before = held
    assert len(before) == 12


def test_evaluating_changes_no_state(pruned):
    model = pruned(block=5, rule="random")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.logits(tokens_of(24))
    decode(model, tokens_of(24))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_layers_may_keep_other_shares(pruned):
    first, second = (block.attn.core for block in pruned(keep_by_layer={"0": 0.8, "1": 5}).blocks)
    assert (first.budget.at(20), second.budget.at(20)) == (16, 5)


@pytest.mark.parametrize("s", [0.0, 0.5])
def test_until_it_is_switched_on_nothing_leaves_the_cache(pruned, s):
    model, tokens = pruned(block=5), tokens_of(24)
    for block in model.blocks:
        block.attn.core.s.fill_(s)
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens), rtol=0, atol=1e-12)


def test_switched_off_the_cache_is_the_bases(pruned):
    model, caches = pruned(block=5), []
    for s in (0.0, 0.5):
        for block in model.blocks:
            block.attn.core.s.fill_(s)
        caches.append(model.new_caches()[0])
        model.logits(tokens_of(24), [caches[-1], *model.new_caches()[1:]])
    dense = 8 * 2 * 24 * 16  # float64, two sequences, tokens, channels
    assert caches[0].nbytes == (dense, dense)
    assert caches[1].nbytes == (2 * dense, dense)  # half open it keeps the queries too: who leaves is not decided yet


# -- the learned ratio ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [{"target": 0.3}, {"price": 0.5}])
def test_a_learned_ratio_gets_a_gradient_from_the_loss(pruned, learned):
    model, tokens = pruned(block=5, learned=learned).train(), tokens_of(25)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.core.ratio.copy_(torch.tensor([-0.5, 0.3]))
    model.priced = []  # of the loss alone
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    for block in model.blocks:
        assert (block.attn.core.ratio.grad.abs() > 1e-8).all()


def test_the_penalty_moves_the_gradient_and_not_the_loss_that_is_told(pruned):
    model, tokens = pruned(block=5, learned={"price": 2.0}).train(), tokens_of(25)

    def gradient():
        model.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        return loss.item(), torch.stack([block.attn.core.ratio.grad for block in model.blocks])

    loss, priced = gradient()
    model.priced = []
    plain_loss, plain = gradient()
    share = torch.stack([block.attn.core.ratio.sigmoid() for block in model.blocks])
    assert loss == pytest.approx(plain_loss, abs=1e-12)
    torch.testing.assert_close(priced - plain, 2.0 * share * (1 - share) / (2 * 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("learned", "low", "high"),
    [("{ price = 3.0 }", 0.0, 0.35), ("{ target = 0.7 }", 0.45, 0.75)],
    ids=["price", "target"],
)
def test_the_ratio_goes_where_price_or_target_draw_it(tiny, tmp_path, learned, low, high):
    keys = (f"patch.kv_prune.learned={learned}", "schedule.lr=3e-2", "train.budget.steps=40", "eval.windows=2")
    engine = Engine(tiny("v19", *keys), checkpoints=tmp_path, device=torch.device("cpu"), emit=lambda event: None)
    engine.run()
    share = torch.cat([block.attn.core.ratio.sigmoid() for block in engine.model.blocks]).mean().item()
    assert low < share < high


def test_heads_that_learned_different_shares_decode_as_they_train(pruned):
    model, tokens = pruned(block=5, learned={"target": 0.4}, missing="residual"), tokens_of(24)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.core.ratio.copy_(torch.tensor([-1.5, 1.0]))
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recency": 20, "sinks": 5}, "recency and sinks are 20 and 5 of 24 tokens, but only 10 are kept"),
        ({"keep": 4, "recency": 5}, "recency and sinks are 5 and 0 of 24 tokens, but only 4 are kept"),
    ],
)
def test_what_must_be_kept_has_to_fit(pruned, options, message):
    with pytest.raises(ManifestError, match=message):
        pruned(**options)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["patch.kv_prune.learned={}"], "needs one of target and price"),
        (["patch.kv_prune.learned={target=0.3}", "patch.kv_prune.mode=kv"], "learned needs mode = 'v_only'"),
        (
            ["patch.kv_prune.keep_by_layer={0=9}", "patch.kv_prune.learned={target=0.3}"],
            "learned needs mode = 'v_only'",
        ),
        (["patch.kv_prune.keep_by_layer={1=1.0}", "patch.kv_prune.learned={price=1.0}"], "keep below 1 to start"),
        (["patch.kv_prune.keep_by_layer={'*'=0.5}"], "expected numbers of layers, got '\\*'"),
        (["patch.kv_prune.keep_by_layer={0=0.5}", "patch.kv_prune.target='blocks.1.attn.core'"], "needs a target with"),
        (["patch.kv_prune.keep=9", "patch.kv_prune.learned={target=0.3}"], "learned needs mode = 'v_only'"),
        (["patch.kv_prune.mode=kv", "patch.kv_prune.missing=drop"], "has no missing mass"),
        (["patch.kv_prune.keep=1.5"], "keep"),
        (["patch.kv_prune.keep=0"], "keep"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tiny, keys, message):
    with pytest.raises(ManifestError, match=message):
        tiny("v19", *keys)


# -- the positional prior ---------------------------------------------------------------------------------------


PRIOR = {"weight": 0.7, "momentum": 0.75, "buckets": 4}


def test_the_prior_is_a_running_mean_of_what_each_stretch_received(pruned):
    model, tokens = pruned(block=6, prior=PRIOR, recency=0).train(), tokens_of(24)
    core = model.blocks[0].attn.core
    h = model.blocks[0].norm_1(model.embed(tokens))
    q, k, _ = model.blocks[0].attn.qkv(h, None)
    masses = []
    for head in range(2):
        probs = (
            ((q[:, head] @ k[:, head].mT) / 8**0.5)
            .masked_fill(torch.ones(24, 24).triu(1).bool(), -math.inf)
            .softmax(-1)
        )
        received = probs[:, :18, :18].sum(1) / (
            18 - torch.arange(18)
        )  # at the last boundary; all keys have probabilities
        masses.append(torch.stack([received[:, at : at + 6].mean() for at in (0, 6, 12)]))
    expected = torch.cat([0.25 * torch.stack(masses), torch.zeros(2, 1)], dim=1)
    model(tokens[:, :-1], tokens[:, 1:])
    core.forget()
    model.logits(tokens)
    core.settle(lambda tensor: tensor)
    torch.testing.assert_close(core.prior, expected, rtol=0, atol=1e-12)
    assert not core.received.any()


def test_the_prior_decides_with_the_mass_and_decoding_knows_it(pruned):
    model, tokens = pruned(block=5, prior=PRIOR), tokens_of(24)
    before = model.logits(tokens)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.core.prior.copy_(torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]))
    after = model.logits(tokens)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(decode(model, tokens), after, rtol=0, atol=1e-12)
    assert not model.blocks[0].attn.core.received.any()  # evaluating notes nothing


@pytest.mark.usefixtures("all_in_float64")
def test_halves_of_a_batch_move_the_prior_as_the_whole_does(tiny, tmp_path):
    def prior(name, *keys):
        keys = ("patch.kv_prune.prior={}", "train.budget.steps=3", "eval.windows=2", *keys)
        engine = Engine(
            tiny("v19", *keys), checkpoints=tmp_path / name, device=torch.device("cpu"), emit=lambda e: None
        )
        engine.run()
        return torch.stack([block.attn.core.prior for block in engine.model.blocks])

    whole = prior("whole")
    assert whole.any()
    torch.testing.assert_close(prior("halves", "train.micro_batch=2"), whole, rtol=0, atol=1e-11)


def test_a_prior_without_mass_is_refused(tiny):
    with pytest.raises(ManifestError, match="prior is of the mass"):
        tiny("v19", "patch.kv_prune.prior={}", "patch.kv_prune.rule=random")
