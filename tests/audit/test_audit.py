"""What `ratrain audit` says of other people's models: sound ones, planted faults, and files that cannot be used."""

from __future__ import annotations

import json

import pytest

MODEL = """
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class GPTConfig:
    block_size: int = 512
    vocab_size: int = 5000
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.1


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.dropout
        self.norm = nn.LayerNorm(config.n_embd)
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, h):
        x = self.norm(h)
        q, k, v = (t.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        p = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        return h + self.proj(y.transpose(1, 2).flatten(2)) + self.gate * x


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        print("building")
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, idx, targets=None):
        h = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        if targets is None:
            return self.head(h[:, [-1]]), None
        logits = self.head(h)
        return logits, F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        thick = [p for p in self.parameters() if p.dim() > 1]
        thin = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": thick, "weight_decay": weight_decay}, {"params": thin, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
"""


@pytest.fixture
def audited(ratrain, tmp_path):
    """Audits MODEL with some lines replaced: (code, page, stderr)."""

    def audited(*changes, name="GPT", flags=()):
        text = MODEL
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        (tmp_path / "model.py").write_text(text)
        return ratrain("audit", f"{tmp_path / 'model.py'}:{name}", *flags)

    return audited


def findings(page, verdict):
    return [line.removeprefix(verdict).strip() for line in page.splitlines() if line.startswith(verdict)]


def test_a_sound_model_is_found_sound(audited):
    code, page, err = audited()
    assert code == 0, page
    assert not findings(page, "BROKEN") and not findings(page, "warning")
    assert "GPT(GPTConfig(block_size=64, vocab_size=128, n_layer=2, n_head=2, n_embd=64))" in page
    assert "building" not in page
    assert "building" in err
    held = "\n".join(findings(page, "holds"))
    for claim in (
        "no position sees a later token: training and evaluating, 8, 33, 63, 64 tokens",
        "no gradient comes from a later token",
        "training and evaluating compute the same",
        "a pass leaves nothing behind",
        "compiled it computes the same",
        "its loss is the cross-entropy of its logits: also where targets are -100",
        "no sequence sees another",
        "evaluating twice gives the same",
        "every parameter gets a gradient",
        "tensors that share memory are one parameter: 1 of them tied",
        "loading a checkpoint restores the outputs",
        "every trained parameter is in one group of the optimizer: configure_optimizers(), of 2",
        "weight decay falls on the matrices",
        "a step decays each weight as its group says, once",
    ):
        assert claim in held, page
    assert "cached decoding equals the full forward" in findings(page, "unchecked")[0]
    notes = "\n".join(findings(page, "note"))
    assert "65 tokens, one more than it is made for, fail: IndexError" in notes
    assert "it begins with a loss of 4.8" in notes


BODY = "        h = self.norm(h)\n        if"
EMBED = "        h = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))"
CAUSAL = "no position sees a later token"
BATCH = "no sequence sees another"
GRADIENT = "every parameter gets a gradient"
ONCE = "every trained parameter is in one group of the optimizer"
STEP = "a step decays each weight as its group says, once"
RESTORES = "loading a checkpoint restores the outputs"
RETURN = "        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)"


@pytest.mark.parametrize(
    ("old", "new", "claim", "words"),
    [
        ("is_causal=True", "is_causal=False", CAUSAL, "training, 8 tokens: changing those from 1 on"),
        ("is_causal=True", "is_causal=self.training", CAUSAL, "evaluating, 8 tokens"),
        # closed by the gate's first value, and open a step later
        ("self.gate * x", "self.gate * x.mean(1, keepdim=True)", CAUSAL, "training, weights shaken"),
        # the target of a position is the token after it
        (BODY, f"        h = h if targets is None else h + self.wte(targets)\n{BODY}", CAUSAL, "training"),
        ("self.gate * x", "self.gate * x.mean(0, keepdim=True)", BATCH, "weights shaken"),
        (BODY, f"        h = h - h.mean(0, keepdim=True)\n{BODY}", BATCH, "training: changing one of 2 changes"),
        ("h + self.proj", "F.dropout(h, 0.1) + self.proj", "evaluating twice gives the same", "two calls differ"),
        (BODY, f"        h = h * torch.nan\n{BODY}", "its logits are numbers", "NaN as built"),
        (EMBED, f"        if not hasattr(self, 'drawn'):"
         f"\n            self.drawn = bool(nn.init.normal_(self.wpe.weight).any())\n{EMBED}", RESTORES, "they differ"),
        (EMBED, f"        self.__dict__.setdefault('noise', torch.randn(64))\n{EMBED} + self.noise",
         RESTORES, "they differ"),
        ("self.gate * x", "self.gate.detach() * x", GRADIENT, "blocks.0.gate, blocks.1.gate"),
        ("        self.wte =", "        self.unused = nn.Linear(4, 4)\n        self.wte =", GRADIENT, "unused.weight"),
        ("self.head.weight = self.wte.weight", "self.head.weight.data = self.wte.weight.data",
         "tensors that share memory are one parameter", "wte.weight and head.weight"),
        ("if p.dim() < 2]", "if p.dim() < 2][1:]", ONCE, "in none: blocks.0.gate: it never learns"),
        ("if p.dim() < 2]", "if p.dim() < 2] + thick[:1]", ONCE, "more than one parameter group"),
        ("[p for p in self.parameters() if p.dim() > 1]",
         "[p for _, p in self.named_parameters(remove_duplicate=False) if p.dim() > 1]",
         ONCE, "wte.weight (2 times)"),
        ("thick = [", "thick = [nn.Parameter(torch.zeros(2))] + [", ONCE, "1 tensors of the optimizer are not"),
        (RETURN, RETURN.replace("        return", "        first =") +
         "\n        return [first, torch.optim.SGD([self.wte.weight], lr=0.1)]", ONCE, "wte.weight (2 times)"),
        (RETURN, RETURN.replace("        return", "        made =") +
         "\n        made.register_step_post_hook(lambda *_: [p.data.mul_(1 - 1e-4) for p in thick])"
         "\n        return made", STEP, "by 0.0002 in place of 0.0001"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_told(audited, old, new, claim, words):
    code, page, _ = audited((old, new))
    assert code == 65, page
    (broken,) = [line for line in findings(page, "BROKEN") if line.startswith(claim)]
    assert words in broken, page


THICK, THIN = "if p.dim() > 1]", "if p.dim() < 2]"
TABLE = "self.wte.weight]"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (((THICK, "]"), (THIN, "][:0]")), "biases, gains or gates are decayed: blocks.0.gate"),
        (((THICK, f"if p is {TABLE}"), (THIN, f"if p is not {TABLE}")), "matrices are not: blocks.0.qkv.weight"),
        ((("torch.optim.AdamW", "torch.optim.Adam"),), "Adam adds its decay to the gradient"),
    ],
)
def test_decay_that_is_odd_is_a_warning(audited, changes, words):
    code, page, _ = audited(*changes)
    assert code == 0, page
    assert words in "\n".join(findings(page, "warning")), page


def test_a_weight_that_waits_for_another_to_leave_zero_is_a_note(audited):
    zero = "nn.init.normal_(self.wte.weight, std=0.02)"
    more = "".join(f"\n        nn.init.zeros_(self.blocks[{i}].proj.weight)" for i in (0, 1))
    code, page, _ = audited((zero, zero + more))
    assert code == 0
    assert any("no gradient at the first step" in note and "blocks.0.qkv" in note for note in findings(page, "note"))


def test_the_optimizer_may_be_named(audited, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef groups(model):\n    return [{'params': model.parameters(), 'weight_decay': 0.1}]\n"
        "\n\ndef broken(model):\n    return torch.optim.AdamW(model.parameter())\n"
    )
    code, page, _ = audited(flags=("--optimizer", f"{tmp_path / 'mine.py'}:groups"))
    assert code == 0
    assert "groups(model), of 1" in page
    assert "biases, gains or gates are decayed" in page
    code, _, err = audited(flags=("--optimizer", f"{tmp_path / 'mine.py'}:broken"))
    assert (code, "mine.py:9: AttributeError" in err) == (65, True), err


def test_sizes_may_be_set_and_the_page_had_as_json(audited):
    code, page, _ = audited(flags=("--set", "n_layer=1", "--set", "dropout=0.0", "--length", "10", "--json"))
    assert code == 0
    told = json.loads(page)
    assert "n_layer=1, n_head=2, n_embd=64, dropout=0.0" in told["built"].replace("vocab_size=128, ", "")
    assert "10 of 128 kinds of token, float64" in told["called"]
    assert {"verdict", "claim", "detail"} == set(told["findings"][0])


# -- other faces ------------------------------------------------------------------------------------------------

CACHED = """
import torch
import torch.nn.functional as F
from torch import nn


class Output(dict):
    pass


class Tiny(nn.Module):
    def __init__(self, vocab_size=300, n_positions=100):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, 16)
        self.wpe = nn.Embedding(n_positions, 16)
        self.n_positions = n_positions

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        start = 0 if past_key_values is None else past_key_values.shape[1]
        x = self.wte(input_ids) + self.wpe(torch.arange(START, START + input_ids.shape[1]))
        k = x if past_key_values is None else torch.cat([past_key_values, x], dim=1)
        seen = torch.ones(x.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - x.shape[1])
        y = F.scaled_dot_product_attention(x, k, k, attn_mask=seen)
        return Output(logits=y @ self.wte.weight.T, past_key_values=k)
"""


@pytest.mark.parametrize(("start", "code"), [("start", 0), ("0", 65)])
def test_decoding_with_a_cache_is_compared_with_the_whole(ratrain, tmp_path, start, code):
    (tmp_path / "tiny.py").write_text(CACHED.replace("START", start))
    found, page, _ = ratrain("audit", f"{tmp_path / 'tiny.py'}:Tiny")
    assert found == code, page
    verdict = findings(page, "BROKEN" if code else "holds")
    assert any(line.startswith("cached decoding equals the full forward: one by one") for line in verdict), page


FACES = """
import torch
from torch import nn


class Words(nn.Module):
    def __init__(self, vocab_size, wide=False):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx, targets=None):
        logits = self.table(idx)
        if targets is None:
            return logits
        return logits.flatten(0, 1), nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make():
    return Words(50)


def number():
    return 3


def fails():
    return Words(50).tabel


def leaves():
    raise SystemExit("usage: train.py")


def config_of(config):
    return Words(config.n)


class Last(Words):
    def forward(self, idx):
        return super().forward(idx)[:, -1:]


class Fp32(Words):
    def forward(self, idx):
        return super().forward(idx) @ torch.eye(self.table.num_embeddings)


three = 3
"""


@pytest.fixture
def faces(ratrain, tmp_path):
    (tmp_path / "faces.py").write_text(FACES)
    return lambda name, *flags: ratrain("audit", f"{tmp_path / 'faces.py'}:{name}", *flags)


def test_a_function_without_arguments_will_do(faces):
    code, page, _ = faces("make")
    assert code == 0, page
    assert "make(), 2,500 parameters" in page
    assert "of 50 kinds of token" in page
    assert "the last position does not see the first" in page  # it is a bigram model
    assert "the model has no configure_optimizers" in page


def test_a_model_that_float64_does_not_run_is_looked_at_in_fp32(faces):
    code, page, _ = faces("Fp32")
    assert code == 0, page
    assert "float64 does not run" in page


@pytest.mark.parametrize(
    ("name", "flags", "code", "message"),
    [
        ("number", (), 65, "gives a int; expected a torch.nn.Module"),
        ("fails", (), 65, "faces.py:27: AttributeError"),
        ("leaves", (), 65, "faces.py:31: SystemExit: usage: train.py; while calling leaves()"),
        ("Last", (), 65, "Last gives no logits for each position: for tokens [2, 64] it returns [2, 1, 128]"),
        ("config_of", (), 2, "takes 'config' of an unknown class"),
        ("Wrods", (), 2, "defines no Wrods; did you mean 'Words'?"),
        ("three", (), 2, "is a int; expected a class or a function"),
        ("Words", ("--set", "vocab=3"), 2, "takes vocab_size, wide; did you mean 'vocab_size'?"),
        ("Words", ("--set", "vocab_size"), 2, "expected KEY=VALUE"),
        ("Words", ("--set", "vocab_size=three"), 65, "faces.py:9: TypeError"),
        ("make", ("--vocab", "0"), 2, "expected a whole number from 1 on"),
    ],
)
def test_what_cannot_be_built_is_told_in_a_line(faces, name, flags, code, message):
    found, page, err = faces(name, *flags)
    assert (found, message in err, page) == (code, True, ""), err


@pytest.mark.parametrize(
    ("target", "text", "code", "message"),
    [
        ("absent.py:GPT", None, 66, "absent.py: no such file"),
        ("absent_module:GPT", None, 66, "absent_module: no such file and no such module"),
        ("GPT", None, 2, "expected FILE.py:NAME or MODULE:NAME"),
        ("it.py:GPT", "class GPT(:\n", 65, "it.py:1: SyntaxError"),
        ("it.py:GPT", "import torch\n\nx = torch.zeros(2) @ torch.zeros(3)\n", 65, "it.py:3: RuntimeError"),
        ("it.py:GPT", "import torch\nimport no_such_package\n", 69, "it.py:2: No module named 'no_such_package'"),
    ],
)
def test_what_cannot_be_imported_is_told_in_a_line(ratrain, tmp_path, monkeypatch, target, text, code, message):
    monkeypatch.chdir(tmp_path)
    if text:
        (tmp_path / "it.py").write_text(text)
    found, _, err = ratrain("audit", target)
    assert (found, message in err) == (code, True), err
    assert len(err.splitlines()) == 1


def test_a_file_of_a_package_may_import_its_neighbours(ratrain, tmp_path):
    package = tmp_path / "audited_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "words.py").write_text(FACES)
    (package / "model.py").write_text("from .words import make\n")
    assert ratrain("audit", f"{package / 'model.py'}:make")[0] == 0
