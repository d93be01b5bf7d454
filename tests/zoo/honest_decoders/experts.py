"""Experts chosen by each token alone, with a loss that balances them, arXiv:2101.03961."""

import sys
from pathlib import Path

from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "decoders"))

from _base import GPT, Block


class Experts(Block):
    def __init__(self, config):
        super().__init__(config)
        self.route = nn.Linear(config.n_embd, 2, bias=False)
        self.other = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, h, past=None):
        h, past = super().forward(h, past)
        chosen = self.route(h).softmax(-1)
        self.balance = (chosen.flatten(0, 1).mean(0) ** 2).sum()
        return h + chosen[..., :1] * self.other(h), past


class Model(GPT):
    block = Experts

    def loss(self, logits, targets):
        return super().loss(logits, targets) + 0.01 * sum(block.balance for block in self.blocks)
