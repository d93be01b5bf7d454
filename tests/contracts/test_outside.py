"""The contracts cover a mechanism in a file beside a manifest, and each breach is told by the contract it breaks."""

import pytest

from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.contracts import SMALL
from ratrain.contracts.verify import verify
from ratrain.registry import optim_kinds, patch_kinds

PATCH = """
import torch
import torch.nn.functional as F
from torch import nn

from ratrain.registry import Patch, register


@register("mine")
class Mine(Patch):
    target: str = "blocks.*.{seam}"
    start: float = 0.8
    unread: int = {unread}

    def build(self, old, spec):
        return Module(spec, self.start)


class Module(nn.Module):
    def __init__(self, spec, start):
        super().__init__()
        self.start, self.dropout = start, 0.0
        self.w = nn.Parameter(torch.empty(spec.n_head))
        self.register_buffer("s", torch.empty(()))

    def reset_parameters(self, generator):
        self.w.fill_(self.start)
        self.s.fill_(1.0)

    def gate(self):
        return (1 + self.s * (self.w - 1))[:, None]
{body}
"""

BLEND = """
    def forward(self, y, v, x):
        return y * self.gate()[:, :, None]
"""
LEAK = """
    def forward(self, y, v, x):
        return y + self.s * (self.w[:, None, None] * v).mean(2, keepdim=True)
"""
BATCH_LEAK = """
    def forward(self, y, v, x):
        return y + self.s * self.w[:, None, None] * v.mean(0, keepdim=True)
"""
DEAD = """
    def forward(self, y, v, x):
        return y * (1 + self.s * (self.gate().detach()[:, :, None] - 1))
"""
OPEN = """
    def forward(self, y, v, x):
        return y * self.w[:, None, None]
"""
BRANCH = """
    def forward(self, y, v, x):
        return y if self.s.item() == 0 else y * self.gate()[:, :, None]
"""
MATMUL = """
    def forward(self, y, v, x):
        return y + self.s * self.w[:, None, None] * (v @ v.new_ones(v.shape[-1], v.shape[-1]) / v.shape[-1])
"""


def broken(tmp_path, body, *, unread=0, without=()):
    """The claims that a mechanism of this body breaks, and how; lines with a word of `without` are left out."""
    (tmp_path / "patches").mkdir()
    text = PATCH.replace("{seam}", "attn.blend").replace("{body}", body)
    lines = [line for line in text.splitlines() if unread or "unread" not in line]
    lines = [line for line in lines if not any(word in line for word in without)]
    (tmp_path / "patches" / "mine.py").write_text("\n".join(lines).replace("{unread}", str(unread)))
    manifest = tmp_path / "mine.toml"
    manifest.write_text('id = "mine"\nextends = "gpt2.toml"\n\n[patch.mine]\n')
    kinds = patch_kinds([tmp_path / "patches"])
    source = read_source(manifest, scale="tiny", overrides=SMALL)
    resolved = resolve(source, patches=kinds, optimizers=optim_kinds())
    return {verdict.claim: verdict.fault for verdict in verify(resolved) if verdict.fault}


def test_a_sound_mechanism_breaks_nothing(tmp_path):
    assert broken(tmp_path, BLEND) == {}


@pytest.mark.parametrize(
    ("body", "claim"),
    [
        (LEAK, "no position sees a later token"),
        (BATCH_LEAK, "no sequence sees another"),
        (DEAD, "every parameter gets a gradient"),
        (OPEN, "closed it is the base model"),
        (BRANCH, "one graph each to train and to evaluate wherever the activation stands"),
        (MATMUL, "its flops are those that are counted"),
    ],
    ids=["leak", "batch leak", "dead", "open", "branch", "matmul"],
)
def test_a_breach_is_told(tmp_path, body, claim):
    assert claim in broken(tmp_path, body)


def test_an_option_that_nothing_reads_is_told(tmp_path):
    assert list(broken(tmp_path, BLEND, unread=3)) == ["every option does something"]


UNSWITCHED = """
    def forward(self, y, v, x):
        return y * self.w[:, None, None]
"""


def test_a_mechanism_without_a_switch_is_told_of_closed(tmp_path):
    fault = broken(tmp_path, UNSWITCHED, without=("register_buffer", "self.s.fill_"))["closed it is the base model"]
    assert "patch mine: no module of it has an activation buffer `s`" in fault
    assert "closed()" in fault


def test_products_that_are_not_stated_are_told_with_their_module_and_method(tmp_path):
    fault = broken(tmp_path, MATMUL)["its flops are those that are counted"]
    assert "blocks.0.attn.blend (mine), blocks.1.attn.blend (mine) has no flops_per_token(spec)" in fault


SHIFT = """
    def forward(self, y, v, x):
        return y + self.s * self.w[:, None, None] * torch.cat([v[:, :, :1] * 0, v[:, :, :-1]], dim=2)
"""


def test_what_needs_earlier_tokens_outside_of_the_core_is_told_where_they_are(tmp_path):
    fault = broken(tmp_path, SHIFT)["cached decoding equals the full forward"]
    assert "attn.local" in fault
    assert "`reach`" in fault
