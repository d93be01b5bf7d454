"""muP and CompleteP: factors by an independent table, the base's bits at the base's shape, refusals by name."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F

from ratrain.config.schema import CompileSection
from ratrain.contracts import contracts
from ratrain.engine.assembly import assemble, train_step
from ratrain.errors import ManifestError
from ratrain.model.build import build
from ratrain.model.generate import decode
from ratrain.registry import optim_kinds

BASE = "model.base={ n_embd = 16, n_head = 2 }"
MUP = ("model.parametrisation=mup", BASE)
COMPLETE = ("model.parametrisation=completep", "model.base={ n_embd = 16, n_head = 2, n_layer = 2 }")
WIDE = ("model.n_embd=64", "model.n_head=8", "model.n_layer=6")  # 4 x the width, 3 x the depth, heads of 8
STATED = ("optim.weight_decay=0.1", "optim.eps=1e-6")
LR, DECAY, EPS, M, DEPTH = 1e-2, 0.1, 1e-6, 4, 3

# initial values, learning rate and decay over the base's, by the last parts of a name; written down from the paper
HIDDEN, VECTOR = (0.5, 1 / 4, 4.0), (1.0, 1.0, 0.0)
TABLE = {
    r"wte|pos|unembed": VECTOR,
    r"(.*\.)?norm(_[12])?": VECTOR,
    r".*\.bias": VECTOR,
    r".*(attn\.qkv|attn\.proj|mlp\.up|mlp\.down)\.weight": HIDDEN,
}
OF_PATCHES = {
    "glu": {r".*mix\.v\.weight": HIDDEN},
    "output_gate": {r".*gate\.weight": HIDDEN},
    "peri_ln": {r".*(proj|down)\.inner\.weight": HIDDEN, r".*(proj|down)\.norm\.weight": VECTOR},
    "v4": {r".*mixer\.0\.weight": (1.0, 1.0, 1.0), r".*(gate|score)\.w_(std|rec)": VECTOR},
    "v5": {r".*token\.u": (1 / 4, 1 / 4, 0.0), r".*token\.c": VECTOR, r".*(gate|score)\.w_(std|rec)": VECTOR},
    "v9": {r".*score\.w_(std|rec)": VECTOR},
    "tied_ra_low_rank": {r".*core\.u\.weight": (1.0, 1.0, 1.0), r".*core\.w_[sr]": VECTOR},
    "kv_shift": {r".*core\.[kv]_(own|before)": VECTOR},
    "value_residual": {r".*value\.[ab]": VECTOR},
}


def expected(name: str, own: dict) -> tuple[float, float, float]:
    for pattern, factors in {**own, **TABLE}.items():
        if re.fullmatch(rf"({pattern})(\.weight)?", name):
            return factors
    raise KeyError(name)


def by_name(step):
    """Learning rate, decay and eps that the optimizer applies to each parameter."""
    names = {id(p): name for name, p in step.precision.masters.items()}
    return {
        names[id(p)]: (float(group["lr"]), group["weight_decay"], group["eps"])
        for group in step.optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("name", ["v0", *OF_PATCHES])
@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_every_parameter_has_the_factors_of_the_table(tiny, name, kind):
    keys = MUP if kind == "mup" else COMPLETE
    rank = ("patch.tied_ra.rank=2",) if name == "tied_ra_low_rank" else ()
    narrow = ("patch.reciprocal_mlp.width=16",) if name in ("v4", "v5") else ()
    rank += ("patch.unified_ra.rank=2",) if name in ("v4", "v5", "v9") else ()
    keys = (*WIDE, *keys, *STATED, *rank, *narrow)
    standard = build(tiny(name, *(key for key in keys if "parametrisation" not in key and "base" not in key)))
    made = assemble(tiny(name, *keys))
    made.step.set_lr(LR)
    applied = by_name(made.step)
    assert applied.keys() == dict(made.model.named_parameters()).keys()
    for key, parameter in made.model.named_parameters():
        init, lr, decay = expected(key, OF_PATCHES.get(name, {}))
        deep = kind == "completep" and key.startswith("blocks.")
        residual = re.search(r"(attn\.proj|mlp\.down)(\.inner)?\.weight", key)
        if deep and residual:  # root(2 n_layer) is that of the base
            init *= math.sqrt(DEPTH)
        torch.testing.assert_close(parameter, init * standard.get_parameter(key), rtol=1e-6, atol=0)
        eps = EPS / M / (DEPTH if deep else 1)
        assert applied[key] == pytest.approx((LR * lr, DECAY * decay, eps), rel=1e-6)


def test_a_matrix_to_a_width_that_stays_is_divided_by_the_growth_not_by_its_root(tiny):
    """Eight gates at both widths: heads of 8 channels against heads of 2."""
    keys = ("model.n_embd=64", "model.n_head=8", "patch.output_gate.per=head")
    base = ("model.parametrisation=mup", "model.base={ n_embd = 16, n_head = 8 }")
    wide, standard = build(tiny("output_gate", *keys, *base)), build(tiny("output_gate", *keys))
    name = "blocks.0.attn.blend.gate.weight"
    torch.testing.assert_close(wide.get_parameter(name), standard.get_parameter(name) / 4)
    assert (wide.factors[name].lr, wide.factors[name].decay) == (1 / 4, 4)


def test_a_deviation_that_follows_the_width_counts_as_it_is_at_the_base(tiny):
    """A mixer between half of the hidden channels has Xavier's deviation; at the base's width it is twice as large."""
    keys = ("patch.reciprocal_mlp.width=0.5", "patch.reciprocal_mlp.mixer=true")
    wide = build(tiny("v4", *WIDE, *MUP, *keys, "model.n_embd=128", "model.n_head=16", "patch.unified_ra.rank=2"))
    weight = wide.get_parameter("blocks.0.mlp.mix.mixer.0.weight")
    at_base = math.sqrt(2 / (32 + 32))
    assert weight.std().item() == pytest.approx(at_base / math.sqrt(8), rel=0.02)


def by_hand(model, tokens, *, score, branch, read):
    """The logits of plain GPT-2 with factors on scores, branches and logits."""
    spec, w = model.spec, dict(model.named_parameters())

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (spec.n_embd,), w[f"{name}.weight"], w[f"{name}.bias"])

    h = w["wte.weight"][tokens] + w["pos.weight"][: tokens.shape[1]]
    later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
    for at in (f"blocks.{layer}" for layer in range(spec.n_layer)):
        q, k, v = linear(norm(h, f"{at}.norm_1"), f"{at}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (x.unflatten(-1, (spec.n_head, -1)).transpose(1, 2) for x in (q, k, v))
        p = (score * q @ k.mT).masked_fill(later, float("-inf")).softmax(-1)
        h = h + branch * linear((p @ v).transpose(1, 2).flatten(2), f"{at}.attn.proj")
        h = h + branch * linear(F.gelu(linear(norm(h, f"{at}.norm_2"), f"{at}.mlp.up")), f"{at}.mlp.down")
    return read * norm(h, "norm") @ w["wte.weight"][: spec.vocab_size].T


@pytest.mark.parametrize(("keys", "branch"), [(MUP, 1), (COMPLETE, 1 / 3)])
@torch.no_grad()
def test_the_forward_pass_has_the_factors_of_the_table(tiny, keys, branch):
    model = build(tiny("v0", *keys, "model.n_embd=64", "model.n_head=4", "model.n_layer=6")).double().eval()
    tokens = torch.arange(24).view(2, 12)
    wanted = by_hand(model, tokens, score=math.sqrt(8) / 16, branch=branch, read=1 / 4)  # heads of 16, the base's of 8
    torch.testing.assert_close(model.logits(tokens), wanted)
    torch.testing.assert_close(model.unembedded(model.states(tokens)), wanted)
    loss = F.cross_entropy(wanted.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(model(tokens, tokens), loss)
    torch.testing.assert_close(decode(model, tokens), wanted)


@pytest.mark.parametrize("name", ["v0", "v5", "v15", "glu", "tied_ra_low_rank", "modern"])
@pytest.mark.parametrize("keys", [MUP, COMPLETE])
def test_at_the_bases_shape_model_and_steps_have_the_bits_of_the_standard_one(tiny, name, keys):
    shape = ("model.n_embd=16", "model.n_head=2", "model.n_layer=2", "patch.reciprocal_mlp.width=16")
    shape += ("patch.unified_ra.rank=2", "patch.tied_ra.rank=2")
    held = {"v5": shape[:5], "v15": shape[:4], "tied_ra_low_rank": (*shape[:3], shape[5])}.get(name, shape[:3])
    results = []
    for extra in ((), keys):
        made = assemble(tiny(name, *held, *extra))
        made.step.set_lr(LR)
        tokens = torch.arange(132).view(4, 33)
        losses = [float(made.step(tokens[:, :-1], tokens[:, 1:]).loss) for _ in range(2)]
        results.append((losses, made.model.state_dict(), len(made.step.groups)))
    assert results[0][0] == results[1][0]
    assert results[0][2] == results[1][2] == 2
    assert all(torch.equal(tensor, results[1][1][key]) for key, tensor in results[0][1].items())


@pytest.mark.parametrize("name", ["v14", "v15", "v19", "tied_ra", "double_attention", "soft_cap", "sinks", "kv_shift"])
@pytest.mark.parametrize("claim", ["closed it is the base model", "cached decoding equals the full forward"])
def test_cores_scale_scores_by_the_specification_however_wide_heads_are(tiny, name, claim):
    base = ("model.parametrisation=mup", "model.base={ n_embd = 16, n_head = 4 }")  # heads of 4, here of 32
    small = ("model.n_embd=64", "model.n_head=2", "model.block_size=256")
    narrow = ("patch.unified_ra.rank=2", "patch.reciprocal_mlp.width=16") if name in ("v14", "v15") else ()
    contracts()[claim](tiny(name, *base, *small, *narrow))


def test_the_eager_and_the_compiled_step_agree(tiny):
    manifest = tiny("v5", *COMPLETE, *WIDE, "patch.reciprocal_mlp.width=16", "patch.unified_ra.rank=2")
    tokens, results = torch.arange(132).view(4, 33), []
    for scope in ("off", "model"):
        torch._dynamo.reset()
        model, step = train_step(manifest, lr=LR, compiler=CompileSection(scope=scope, backend="aot_eager"))
        losses = [float(step(tokens[:, :-1], tokens[:, 1:]).loss) for _ in range(3)]
        results.append((losses, model.get_parameter("blocks.0.attn.qkv.weight").detach()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(*(weight for _, weight in results), rtol=1e-3, atol=1e-5)


REFUSED = [
    ("v0", ("model.base={ n_embd = 16 }",), "model", "'standard' does not read base.n_embd"),
    ("v0", ("model.parametrisation=mup",), "model", "needs the shape it grows from: set base.n_embd, base.n_head"),
    ("v0", ("model.parametrisation=mup", "model.base={ n_embd = 16 }"), "model", "set base.n_head"),
    ("v0", (*MUP, "model.base.n_layer=2"), "model", "'mup' does not read base.n_layer"),
    ("v0", ("model.parametrisation=completep", BASE), "model", "set base.n_layer"),
    ("v0", ("model.parametrisation=mup", "model.base={ n_embd = 16, n_head = 3 }"), "model.base", "not a multiple of"),
]


@pytest.mark.parametrize(("name", "keys", "place", "told"), REFUSED)
def test_keys_that_do_not_belong_together_are_one_fault(tiny, name, keys, place, told):
    with pytest.raises(ManifestError) as caught:
        tiny(name, *keys)
    (fault,) = caught.value.faults
    assert fault.key == place
    assert told in fault.message


UNBUILT = [
    ("torch_attention", (), "patch.module", "a module from elsewhere"),
    ("l3", (), "patch.lens", "runs of the reference"),
    ("recip3", (), "patch.ra_mla", "runs of the reference"),
    ("r1", (), "patch.rwr", "runs of the reference"),
    ("v0", ("optim.kind=muon",), "optim.kind", "muon has other rules"),
    ("v0", ("optim.kind=adam", "optim.weight_decay=0.1"), "optim.kind", "adam has other rules"),
    ("v0", ("init.weights=gpt2", f"init.sha256='{'0' * 64}'"), "init.weights", "drawn by another rule"),
    ("tied_ra_low_rank", ("model.n_head=2",), "patch.tied_ra", "must be that of model.base"),
    ("differential_attention", ("model.n_head=2",), "patch.differential_attention", "must be that of model.base"),
    ("v3", ("model.base={ n_embd = 8, n_head = 1 }",), "patch.reciprocal_mlp", "at the base's n_embd = 8, n_head = 1"),
]


@pytest.mark.parametrize(("name", "keys", "place", "told"), UNBUILT)
def test_whatever_does_not_transfer_is_refused_by_name(tiny, name, keys, place, told):
    wide = ("model.n_embd=64", "model.n_head=8")
    with pytest.raises(ManifestError) as caught:
        build(tiny(name, *wide, *MUP, *keys), device="meta")
    assert [fault.key for fault in caught.value.faults] == [place]
    assert told in caught.value.faults[0].message


@pytest.mark.parametrize("body", ["torch.empty(4, spec.n_embd)", "torch.empty(spec.n_head, 2, 2)"])
def test_a_parameter_that_grows_without_a_declared_fan_in_refuses_its_patch(tmp_path, ratrain, body):
    (tmp_path / "patches").mkdir()
    (tmp_path / "mine.toml").write_text('id = "mine"\nextends = "gpt2.toml"\n\n[patch.mine]\n')
    code = f"""
import torch
from torch import nn
from ratrain import Mechanism, Patch, register


@register("mine")
class Mine(Patch):
    target: str = "blocks.*.mlp.mix"

    def build(self, old, spec):
        return Taps(spec)


class Taps(Mechanism):
    FAN_IN

    def __init__(self, spec):
        super().__init__()
        self.taps = nn.Parameter({body})

    def reset_parameters(self, generator):
        super().reset_parameters(generator)
        nn.init.ones_(self.taps)

    def forward(self, h, x):
        return h + self.s * self.taps.mean()
"""
    words = ("check", tmp_path / "mine.toml", "--scale", "tiny", "--set", MUP[0], "--set", BASE)
    words += ("--set", "model.n_embd=64", "--set", "model.n_head=8")
    file = tmp_path / "patches" / "mine.py"
    file.write_text(code.replace("FAN_IN", "pass"))
    exit_code, _, err = ratrain(*words)
    assert exit_code == 78
    assert re.search(r"mine\.toml:4: patch\.mine: .*blocks\.0\.mlp\.mix\.taps \[.*Taps\.fan_in does not say", err)
    file.write_text(code.replace("FAN_IN", 'fan_in = {"taps": None}'))
    assert ratrain(*words)[0] == 0


def test_each_optimizer_says_whether_the_rules_are_its_own():
    own = {kind for kind, section in optim_kinds().items() if section().transfers}
    assert own == {"adam", "adamw", "adamw_amsgrad", "adamwadv", "adamwprune", "adamwspam"}
    assert not optim_kinds()["adamwprune"](base="adam", weight_decay=0.1).transfers


@pytest.mark.parametrize("kind", ["adam", "adamw", "adamw_amsgrad", "adamwspam"])
def test_a_step_of_every_such_optimizer_moves_by_its_groups_rate(tiny, kind):
    made = assemble(tiny("v0", *WIDE, *MUP, f"optim.kind={kind}", "optim.weight_decay=0", "train.precision=bf16"))
    before = {name: p.detach().clone() for name, p in made.step.precision.masters.items()}
    made.step.set_lr(LR)
    tokens = torch.arange(132).view(4, 33)
    made.step(tokens[:, :-1], tokens[:, 1:])
    for name, rate in (("blocks.0.mlp.up.weight", LR / 4), ("wte.weight", LR)):  # Adam's first step is its rate
        moved = (made.step.precision.masters[name].detach() - before[name]).abs().max()
        assert float(moved) == pytest.approx(rate, rel=1e-3)
    assert made.step.lr == pytest.approx(LR)


def test_the_standard_parametrisation_has_two_groups_with_one_rate(tiny):
    made = assemble(tiny("v9"))
    first, second = made.step.optimizer.param_groups
    assert first["lr"] is second["lr"]
    assert first["eps"] == second["eps"]
    assert not made.model.factors
    assert [group.matrices for group in made.step.groups] == [True, False]
