"""nanoGPT's own model loads the checkpoint with the logits of the run. NANOGPT: a clone; else names are checked."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ratrain.run.sample import load_run

SHORT = ("train.budget.steps=6", "activation.kind=at_once", "compile.scope=off", "train.batch=4", "eval.windows=4")
COMPLETE = ("model.parametrisation=completep", "model.base={ n_embd = 16, n_head = 2, n_layer = 1 }")
RUNS = [("v9",), ("v0", "model.bias=false"), ("tied_ra_low_rank",), ("v9", *COMPLETE)]
CLONE = os.environ.get("NANOGPT")


@pytest.fixture(params=RUNS, ids=" ".join)
def exported(request, trained, ratrain, tmp_path):
    run = trained(*request.param, *SHORT)
    code, out, _ = ratrain("export", run, "--to", "nanogpt", "-o", tmp_path / "ckpt.pt")
    assert code == 0
    assert "step 6" in out
    _, model = load_run(run, device=torch.device("cpu"), warn=pytest.fail)
    return model, torch.load(tmp_path / "ckpt.pt", weights_only=True)


def tokens_of(model):
    shape = 2, model.spec.block_size
    return torch.randint(model.spec.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def by_hand(content, tokens):
    """The decoder that `model_args` and the names of nanoGPT's state dict describe."""
    args, state = content["model_args"], {k.removeprefix("transformer."): v for k, v in content["model"].items()}
    width = args["n_embd"]

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state.get(f"{name}.bias"), 1e-5)

    h = state["wte.weight"][tokens] + state["wpe.weight"][: tokens.shape[1]]
    for layer in range(args["n_layer"]):
        at = f"h.{layer}"
        packed = linear(norm(h, f"{at}.ln_1"), f"{at}.attn.c_attn").split(width, dim=2)
        q, k, v = (part.unflatten(2, (args["n_head"], -1)).transpose(1, 2) for part in packed)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h = h + linear(y, f"{at}.attn.c_proj")
        h = h + linear(F.gelu(linear(norm(h, f"{at}.ln_2"), f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj")
    return F.linear(norm(h, "ln_f"), state["lm_head.weight"])


def test_the_file_describes_the_run_by_nanogpts_names(exported):
    model, content = exported
    tokens = tokens_of(model)
    with torch.no_grad():
        torch.testing.assert_close(by_hand(content, tokens), model.logits(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not CLONE, reason="NANOGPT names no clone of nanoGPT")
def test_nanogpts_own_model_loads_it(exported):
    model, content = exported
    theirs = runpy.run_path(str(Path(str(CLONE), "model.py")))
    gpt = theirs["GPT"](theirs["GPTConfig"](**content["model_args"]))
    gpt.load_state_dict(content["model"], strict=True)
    tokens = tokens_of(model)
    with torch.no_grad():
        logits, _ = gpt.eval()(tokens, targets=tokens)  # with targets it returns the logits of every position
        torch.testing.assert_close(logits, model.logits(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("v0", "model.act=relu2"), "nanoGPT has model.act = 'gelu' alone"),
        (("modern",), "nanoGPT has model.norm = 'layer' alone"),
        (("v19",), "computes what no GPT-2 computes"),
    ],
)
def test_what_nanogpt_cannot_compute_is_refused(trained, ratrain, tmp_path, keys, told):
    run = trained(*keys, *SHORT)
    code, _, err = ratrain("export", run, "--to", "nanogpt", "-o", tmp_path / "ckpt.pt")
    assert (code, err.count("\n")) == (2, 1)
    assert told in err
    assert not (tmp_path / "ckpt.pt").exists()
