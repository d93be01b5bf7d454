"""Self-restart against its attention probabilities, (1 - a) P + a I."""

import pytest
import torch


@pytest.mark.parametrize("s", [1.0, 0.4])
def test_every_position_keeps_a_share_of_its_own_value(block, x, heads, weights, merged, equal, s):
    attn = block("self_restart").attn
    attn.blend.s.fill_(s)
    q, k, v = heads(attn, x)
    share = (s * 0.5 * attn.blend.w.sigmoid())[:, None, None]
    loops = (1 - share) * weights(q @ k.mT, 8) + share * torch.eye(x.shape[1], dtype=x.dtype)
    equal(attn, attn(x, None)[0], merged(attn, loops @ v))


def test_it_starts_at_init_and_cannot_leave_its_range(block):
    restart = block("self_restart", init=0.2).attn.blend
    restart.reset_parameters(torch.Generator())
    torch.testing.assert_close(restart.alpha(), torch.full_like(restart.w, 0.2))
    for far in (-1e3, 1e3):
        with torch.no_grad():
            restart.w.fill_(far)
        assert ((restart.alpha() >= 0) & (restart.alpha() <= 0.5)).all()
