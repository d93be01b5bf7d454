"""Layers for the manifests beside this file: plain torch, from x [B, T, C] to [B, T, C]."""

import torch
import torch.nn.functional as F
from torch import nn


class LinearRecurrence(nn.Module):
    """h_t = a_t h_{t-1} + (1 - a_t) v_t with a gate a_t per channel, by a scan of log2(T) steps.

    Source: Qin et al. 2023, "Hierarchically Gated Recurrent Neural Network", arXiv:2311.04823, without its hierarchy.
    """

    def __init__(self, width):
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        keep = torch.sigmoid(self.gate(x) + 2)  # [B, T, C], a_t
        state = self.value(x) * (1 - keep)
        span = 1
        while span < x.shape[1]:  # both cover `span` tokens, and twice as many after a step
            state = state + keep * _earlier(state, span)
            keep = keep * _earlier(keep, span)
            span *= 2
        return self.out(state)


def _earlier(x, count):
    """Returns x [B, T, C] moved `count` tokens later, zeros before the first."""
    return F.pad(x, (0, 0, count, 0))[:, : x.shape[1]]


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x). Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, width, hidden, dropout=0.0):
        super().__init__()
        hidden = 2 * hidden // 3
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))
