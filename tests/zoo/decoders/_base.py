"""A sound decoder in the manner of nanoGPT, and one with a cache as transformers has it; plants override a part."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class GPTConfig:
    block_size: int = 64
    vocab_size: int = 128
    n_layer: int = 2
    n_head: int = 2
    n_embd: int = 64
    dropout: float = 0.1


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)

    def attend(self, q, k, v, x):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=causal(q, k), dropout_p=self.p)

    @property
    def p(self):
        return self.dropout if self.training else 0.0

    def forward(self, x, past=None):
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        y = self.attend(q, k, v, x)
        return self.proj(y.transpose(1, 2).flatten(2)), (k, v)


def causal(q, k):
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])


class Block(nn.Module):
    attention = Attention

    def __init__(self, config):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attn = self.attention(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd), nn.GELU(), nn.Linear(4 * config.n_embd, config.n_embd)
        )

    def forward(self, h, past=None):
        y, past = self.attn(self.norm_1(h), past)
        h = h + y
        return h + self.mlp(self.norm_2(h)), past


class GPT(nn.Module):
    block = Block

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(self.block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.wte.weight
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def embed(self, idx, start=0):
        return self.wte(idx) + self.wpe(torch.arange(start, start + idx.shape[1], device=idx.device))

    def loss(self, logits, targets):
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def last(self, h):
        return self.head(self.norm(h))

    def forward(self, idx, targets=None):
        h = self.embed(idx)
        for block in self.blocks:
            h, _ = block(h)
        logits = self.last(h)
        return logits, None if targets is None else self.loss(logits, targets)


class CachedGPT(GPT):
    def loss(self, logits, labels):
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def start(self, past):
        return 0 if past is None else past[0][0].shape[2]

    def forward(self, input_ids, labels=None, past_key_values=None, use_cache=False):
        h, kept = self.embed(input_ids, self.start(past_key_values)), []
        for layer, block in enumerate(self.blocks):
            h, past = block(h, None if past_key_values is None else past_key_values[layer])
            kept.append(self.keep(past))
        logits = self.last(h)
        loss = None if labels is None else self.loss(logits, labels)
        return {"logits": logits, "loss": loss, "past_key_values": kept if use_cache else None}

    def keep(self, past):
        return past
