"""Random walks against walks taken token by token, and what must hold of any of them."""

import pytest
import torch

from ratrain.model.generate import decode

OPTIONS = {
    "plain": {"window": 4, "topk": 3},
    "reversible": {"window": 4, "topk": 3, "reversible": True},
    "reciprocal": {"window": 4, "topk": 3, "reversible": True, "reciprocal": 0.7, "discoverability": True},
    "no walk": {"window": 4, "topk": 3, "steps": 0},
    "choosy": {"window": 2, "topk": 2, "threshold": 0.3},
}


@pytest.fixture
def qkv():
    return torch.randn(3, 2, 2, 11, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def walked(o, q, k):
    """A [T, T] of one head's q, k [T, D], a token and a step at a time."""
    n = len(q)
    unit_q, unit_k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)

    def walk(alike):
        jumps = torch.zeros(n, n, dtype=q.dtype)
        for i in range(n):
            best = sorted(range(i + 1), key=lambda j: -alike(i, j))[: o.topk]
            edges = {j for j in range(i + 1) if i - j <= o.window or j in best}
            edges = {j for j in edges if alike(i, j) >= o.threshold}
            total = sum(alike(i, j) for j in edges)
            for j in edges:
                jumps[i, j] = alike(i, j) / total
            if not edges:
                jumps[i, i] = 1.0
        visits = torch.zeros(n, n, dtype=q.dtype)
        for i in range(n):
            at = torch.zeros(n, dtype=q.dtype)
            at[i] = 1.0
            for t in range(o.steps + 1):
                visits[i] += o.alpha * (1 - o.alpha) ** t * at
                at = at @ jumps
        return visits

    def both(i, j):
        forward = float(unit_q[i] @ unit_k[j])
        return (forward + float(unit_q[j] @ unit_k[i])) / 2 if o.reversible else forward

    visits = walk(both)
    if o.reciprocal < 1:
        visits = o.reciprocal * visits + (1 - o.reciprocal) * walk(lambda i, j: float(unit_q[j] @ unit_k[i]))
    for i in range(n):
        for j in sorted(range(n), key=lambda j: -float(visits[i, j]))[o.topk :]:
            visits[i, j] = 0.0
    return visits


def local(o, q, k, v, seeker):
    """[T, D] of one head: a softmax over the window."""
    rows = []
    for i in range(len(q)):
        near = slice(max(0, i - o.window), i + 1)
        scores = k[near] @ q[i] / q.shape[-1] ** 0.5
        if seeker is not None:
            scores = scores + k[near] @ seeker
        rows.append(scores.softmax(0) @ v[near])
    return torch.stack(rows)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_walks_as_its_text_says(old_model, qkv, options):
    model, o = old_model("rwr", **options)
    core, (q, k, v) = model.blocks[1].attn.core, qkv
    got = core(q, k, v)
    for b in range(2):
        for head in range(2):
            seeker = None if core.seeker is None else core.seeker[head]
            want = local(o, q[b, head], k[b, head], v[b, head], seeker)
            want = want + o.gamma * walked(o, q[b, head], k[b, head]) @ v[b, head]
            torch.testing.assert_close(got[b, head], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_decoding_is_the_full_forward(old_model, tokens, options):
    model, _ = old_model("rwr", **options)
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens), rtol=0, atol=1e-11)


def test_the_walk_stays_among_earlier_tokens_and_its_mass_is_that_of_five_terms(old_model, qkv):
    core = old_model("rwr", window=4, topk=20)[0].blocks[0].attn.core
    walk = core.walk(qkv[0], qkv[1], 11)
    assert not walk.triu(1).any()
    torch.testing.assert_close(walk.sum(-1), torch.full_like(walk[..., 0], 1 - 0.8**5))


def test_without_weight_it_is_window_attention_and_with_a_wide_window_attention(old_model, qkv):
    q, k, v = qkv
    near = old_model("rwr", window=4, gamma=0.0)[0].blocks[0].attn.core
    wide = old_model("rwr", window=11, gamma=0.0)[0].blocks[0].attn.core
    i, j = torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij")
    window = (j <= i) & (i - j <= 4)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(near(q, k, v), sdpa(q, k, v, attn_mask=window), rtol=0, atol=1e-12)
    torch.testing.assert_close(wide(q, k, v), sdpa(q, k, v, is_causal=True), rtol=0, atol=1e-12)


def test_without_steps_it_reads_each_token_itself(old_model, qkv):
    q, k, v = qkv
    still = old_model("rwr", window=4, steps=0)[0].blocks[0].attn.core
    near = old_model("rwr", window=4, gamma=0.0)[0].blocks[0].attn.core
    torch.testing.assert_close(still(q, k, v), near(q, k, v) + 0.2 * 0.3 * v, rtol=0, atol=1e-12)


def test_a_direction_that_starts_at_nothing_changes_nothing(tiny):
    from ratrain.model.build import build

    assert not build(tiny("r3")).blocks[0].attn.core.seeker.any()


def test_as_run_the_walk_was_among_all_tokens(old_model, qkv):
    """Transition rows of the reference: cosines over both sides of the window and the most similar of all tokens."""
    q, k, _ = qkv
    core = old_model("rwr", profile="as_run", window=2, topk=3, reversible=True)[0].blocks[0].attn.core
    for b in range(2):
        for head in range(2):
            c = torch.nn.functional.normalize(q[b, head], dim=-1) @ torch.nn.functional.normalize(k[b, head], dim=-1).T
            w = torch.zeros_like(c)
            for i in range(11):
                best = c[i].argsort(descending=True)[:3].tolist()
                for j in range(11):
                    if (abs(i - j) <= 2 or j in best) and c[i, j] >= 0:
                        w[i, j] = c[i, j]
            d = w.sum(-1, keepdim=True).clamp(min=1e-8)
            want = (w / d + w.T / (d + 1e-8)) / 2
            got = core.transitions(c[None, None])[0, 0]
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
