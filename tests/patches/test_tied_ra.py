"""Tied RA against its scores written out, S = q k^T in both directions."""

import pytest
import torch

from ratrain.errors import ManifestError


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_full_rank_is_softmax_of_both_directions(block, x, heads, weights, merged, equal, s):
    attn = block("tied_ra").attn
    attn.core.s.fill_(s)
    q, k, v = heads(attn, x)
    one_way = q @ k.mT
    w_s, w_r = (w[:, None, None] for w in (1 + s * (attn.core.w_s - 1), s * attn.core.w_r))
    oracle = merged(attn, weights(w_s * one_way + w_r * one_way.mT, q.shape[-1]) @ v)
    equal(attn, attn(x, None)[0], oracle)


def test_even_gates_make_the_scores_symmetric(block, x, heads):
    attn = block("tied_ra").attn
    with torch.no_grad():
        attn.core.w_s.fill_(0.5**0.5)
        attn.core.w_r.fill_(0.5**0.5)
    q, k, _ = heads(attn, x)
    wide_q, wide_k = attn.core.fold(q, k)
    scores = wide_q @ wide_k.mT
    torch.testing.assert_close(scores, scores.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_low_rank_scores_folded_keys_against_folded_queries(block, x, heads, weights, merged, equal, rank):
    attn = block("tied_ra", rank=rank).attn
    core = attn.core
    q, k, v = heads(attn, x)
    n_std = q.shape[-1] - rank
    there = q[..., :n_std] @ k[..., :n_std].mT
    back = (k @ core.u.weight) @ (q @ core.u.weight).mT  # at i, j: U^T k_i . U^T q_j
    scores = core.w_s[:, None, None] * there + core.w_r[:, None, None] * back
    equal(attn, attn(x, None)[0], merged(attn, weights(scores, q.shape[-1]) @ v))


def test_its_share_of_the_scores_is_the_way_back(block, x, heads):
    attn = block("tied_ra").attn
    q, k, v = heads(attn, x)
    all_q, all_k = attn.core.fold(q, k)
    part, whole = all_q[..., q.shape[-1] :] @ all_k[..., q.shape[-1] :].mT, all_q @ all_k.mT
    share = attn.core.observe_attention(q, k, v)["share of score variance"]
    past = torch.ones(whole.shape[-2:], dtype=torch.bool).tril()
    part_variance, variance = (
        sum(
            (row[seen] - row[seen].mean()).square().sum()
            for batch in scores
            for row, seen in zip(batch, past, strict=True)
        )
        for scores in (part[:, 0], whole[:, 0])
    )
    torch.testing.assert_close(share[0].double(), part_variance / variance, rtol=1e-5, atol=0)
    back = attn.core.w_r[:, None, None] * (k @ q.mT)
    torch.testing.assert_close(part, back, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole, attn.core.w_s[:, None, None] * (q @ k.mT) + back, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 8}, "rank must be below head_dim = 8, got 8"), ({"rank": 2, "init": "even"}, "is for full rank")],
)
def test_options_that_do_not_fit_are_refused(block, options, message):
    with pytest.raises(ManifestError, match=message):
        block("tied_ra", **options)


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_long_contexts_by_one_wide_call_are_the_short_ones_written_out(block, x, equal, monkeypatch, s):
    attn = block("tied_ra").attn
    attn.core.s.fill_(s)
    written_out = attn(x, None)[0]
    monkeypatch.setattr("ratrain.patches.tied_ra._SHORT", 0)
    equal(attn, attn(x, None)[0], written_out)
