"""RA+MLA against its text, written out token by token; and what its pieces must keep true."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from ratrain.errors import ManifestError
from ratrain.legacy._reciprocal_core import CrossTokenGate
from ratrain.legacy._sections import CrossTokenSection
from ratrain.model.build import build
from ratrain.model.generate import decode
from ratrain.registry import patch_kinds

old_forward = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("old_forward.py"))))
GATE, CROSS = {"alpha": 0.1, "width": 5}, {"alpha": 0.3, "k": 3}
OPTIONS = {
    "band": {"alpha": 0.3, "window": 4},
    "latents": {"alpha": 0.0, "latent": 6},
    "latents, shared queries": {"alpha": 0.3, "latent": 6, "per_head_q": False},
    "latents, shared values": {"alpha": 0.3, "latent": 6, "per_head_v": False},
    "latents and band": {"latent": 6, "alpha": 0.3, "window": 4},
    "RA-CT topk": {"alpha": 0.0, "cross_token": {"stat": "topk", "k": 3}},
    "RA-CT max": {"alpha": 0.0, "cross_token": {"stat": "max"}},
    "RA-CT entropy": {"alpha": 0.0, "cross_token": {"stat": "entropy", "alpha": 0.7}},
    "RA-CT rms": {"alpha": 0.0, "cross_token": {"stat": "rms", "head_average": True}},
    "mechanism 1": {"alpha": 0.0, "gate": GATE},
    "mechanism 2": {"alpha": 0.0, "cross": CROSS},
    "mechanism 2, all weights": {"alpha": 0.0, "gate": GATE, "cross": {"sparse": "none", "width": 7}},
    "mechanism 2, above the mean": {"alpha": 0.0, "cross": {"sparse": "rms", "tau": 0.9, "normalize": False}},
    "mechanism 3, tied": {"alpha": 0.0, "latent": 6, "latent_mlp": {}},
    "mechanism 3, untied": {"alpha": 0.0, "latent": 6, "latent_mlp": {"tying": "untied"}},
    "mechanism 3, per head": {"alpha": 0.0, "latent": 6, "latent_mlp": {"tying": "per_head_scalar"}},
    "everything": {
        "latent": 6,
        "alpha": 0.3,
        "window": 4,
        "gate": GATE,
        "cross": CROSS,
        "latent_mlp": {},
        "cross_token": {"stat": "topk", "k": 3},
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_computes_what_its_text_says(old_model, tokens, options):
    model, patch = old_model("ra_mla", **options)
    state = dict(model.named_parameters())
    oracle = old_forward.logits(state, tokens, *old_forward.ra_mla(patch, n_head=2), n_layer=3)[
        ..., : model.spec.vocab_size
    ]
    torch.testing.assert_close(model.logits(tokens), oracle, rtol=0, atol=1e-11)
    pull = torch.randn(oracle.shape, dtype=oracle.dtype, generator=torch.Generator().manual_seed(5))
    live = [p for p in state.values() if p.requires_grad]
    got, want = (torch.autograd.grad((y * pull).sum(), live) for y in (model.logits(tokens), oracle))
    for name, a, b in zip(state, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_decoding_remembers_no_more_than_it_needs_and_no_less(old_model, tokens, options):
    model, _ = old_model("ra_mla", **options)
    torch.testing.assert_close(decode(model, tokens), model.logits(tokens), rtol=0, atol=1e-11)


def test_what_decoding_keeps_of_queries_does_not_grow(old_model, tokens):
    model, _ = old_model("ra_mla", alpha=0.3, window=4)
    caches = model.new_caches()
    for at in range(tokens.shape[1]):
        model.logits(tokens[:, at : at + 1], caches, start=at)
        assert caches[0].recent.shape[2] == min(at + 1, 4)


def test_nothing_is_left_from_one_forward_pass_to_the_next(old_model, tokens):
    model, _ = old_model("ra_mla", **OPTIONS["everything"])
    first = model.logits(tokens)
    model.logits(tokens.flip(0)[:1, :7])  # another batch, length and content
    assert torch.equal(model.logits(tokens), first)


@pytest.mark.parametrize("step", [3, 4, 7, 10, 12, 16])
def test_two_micro_batches_go_backward(tiny, step):
    model = build(tiny(f"ratio{step}"))
    tokens = torch.randint(50, (2, 2, 9), generator=torch.Generator().manual_seed(1))
    for batch in tokens:
        model(batch[:, :-1], batch[:, 1:]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("on", ["output", "weights"])
def test_a_gate_without_weight_is_the_identity(tiny, on):
    options = CrossTokenSection.model_construct(stat="max", apply=on, alpha=0.0, k=8, head_average=False, detach=False)
    gate = CrossTokenGate(tiny("gpt2").model, options, as_run=on == "weights")
    with torch.no_grad():
        gate.reset_parameters(torch.Generator())
    probs = torch.rand(1, 2, 5, 5)
    assert torch.equal(gate(probs, torch.ones(5, 5, dtype=torch.bool), torch.ones(())), torch.ones(1, 2, 5, 1))


def test_one_matrix_takes_latents_to_the_mlp_and_back(old_model, tokens):
    """Its gradient is the sum of those of two matrices of the same values."""
    tied, _ = old_model("ra_mla", alpha=0.0, latent=6, latent_mlp={})
    untied, _ = old_model("ra_mla", alpha=0.0, latent=6, latent_mlp={"tying": "untied"})
    state = {name: value.clone() for name, value in tied.state_dict().items()}
    for name in [name for name in untied.state_dict() if name.endswith("to_latent")]:
        state[name] = state[name.replace("to_latent", "to_hidden")].T.contiguous()
    untied.load_state_dict(state)
    for model in (tied, untied):
        model(tokens[:, :-1], tokens[:, 1:]).backward()
    for one, two in zip(tied.blocks[:-1], untied.blocks[:-1], strict=True):
        both = two.mlp.coupler.to_hidden.grad + two.mlp.coupler.to_latent.grad.T
        torch.testing.assert_close(one.mlp.coupler.to_hidden.grad, both)


def test_latent_attention_in_one_call_is_latent_attention_written_out(old_model, tokens):
    fused, _ = old_model("ra_mla", alpha=0.0, latent=6)
    written, _ = old_model("ra_mla", alpha=0.3, latent=6)
    written.load_state_dict(fused.state_dict(), strict=False)
    with torch.no_grad():
        for block in written.blocks:
            block.attn.core.alpha.zero_()
    torch.testing.assert_close(fused.logits(tokens), written.logits(tokens), rtol=0, atol=1e-12)


def test_as_run_nothing_but_latents_and_the_gate_of_rows_acts(old_model, tokens):
    """The coupling is 0: whatever the parameters of band and mechanisms, the outputs are those without them."""
    options = {**OPTIONS["everything"], "profile": "as_run"}
    full, _ = old_model("ra_mla", **options)
    plain, _ = old_model("ra_mla", profile="as_run", latent=6, alpha=0.0, cross_token=options["cross_token"])
    state = full.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    assert torch.equal(full.logits(tokens), plain.logits(tokens))
    full(tokens[:, :-1], tokens[:, 1:]).backward()
    assert all((p.grad is None) == (".idle." in name) for name, p in full.named_parameters())


def test_as_run_the_band_was_of_rank_one(old_model, tokens):
    model, _ = old_model("ra_mla", profile="as_run", latent=6, alpha=0.3, window=4, coupling=1)
    core = model.blocks[0].attn.core
    q, k = torch.randn(2, 1, 2, 9, 6, dtype=torch.float64)
    got = core._band(core.reverse(q, q, k[:, :1], q @ k.mT))
    for head in range(2):
        whole = torch.outer(q[0, head].sum(-1), k[0, 0].sum(-1)) / 6**0.5
        near = torch.ones(9, 9).tril() - torch.ones(9, 9).tril(-5)
        torch.testing.assert_close(got[0, head], whole * near.double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "nothing is on"),
        ({"latent_mlp": {}}, "needs latents to share"),
        ({"per_head_q": False}, "need latent attention; give latent"),
        ({"profile": "as_run"}, "always latent attention"),
        ({"profile": "as_run_2025_11_03", "latent": 4}, "cannot be trained here for now"),
        ({"coupling": 1}, "coupling needs profile = 'as_run'"),
        ({"cross_token": {"apply": "weights"}}, "equals 'output'"),
        ({"cross": {"sparse": "none", "k": 4}}, "does not read k"),
        ({"cross": {"sparse": "topk", "tau": 0.4}}, "does not read tau"),
        ({"cross_token": {"stat": "max", "k": 4}}, "does not read k"),
        ({"alpha": 0.0, "window": 5, "latent": 4}, "no band"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        patch_kinds()["ra_mla"].model_validate(options)


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ((), {"latent": 17}, "at most n_embd = 16"),
        (("model.pos=rope",), {"latent": 4}, "belong to no head"),
        ((), {"latent": 5, "latent_mlp": {"tying": "per_head_scalar"}}, "it must divide both"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(old_model, overrides, options, message):
    with pytest.raises(ManifestError, match=message):
        old_model("ra_mla", *overrides, **options)
