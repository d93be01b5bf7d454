"""Old checkpoints as runs: logits and optimizer steps as the old models make them, and files that may not be read."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import runpy
from collections import Counter, OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.errors import CannotCreateError, DataError, Exit, MissingError
from ratrain.legacy.checkpoints import to_run as converting
from ratrain.legacy.checkpoints.read import is_checkpoint, read_checkpoint
from ratrain.legacy.checkpoints.to_run import convert
from ratrain.model.build import build
from ratrain.recipe.groups import group_parameters
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.run.sample import load_run
from ratrain.storage.checkpoint import load, load_newest, restore_optimizer

old = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("old_models.py"))))
rounding = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "rounding.py")))

BASE = {"n_head": old.HEADS, "batch_size": 4, "gradient_accumulation": 2, "optimizer": "adamwspam", "dropout": 0.1}
CT = {"ra_ct_k": 4, "ra_ct_alpha": 0.25}
BAND = {"ra_alpha": 0.3, "ra_window": 3, "mlp_sparse_k": 4}


def latent(**options):
    return lambda: old.LatentBlock(old.Latent(**options), old.MLP())


def mechanisms(*, coupling=None, tying="tied_transpose", sparse="topk", alpha=0.3):
    def block():
        attn = old.Latent(coupling=coupling, alpha=alpha, mechanisms=True)
        return old.LatentBlock(attn, old.MechanismMLP(coupling=coupling, tying=tying, sparse=sparse))

    return block


def series(*, mlp=None, **options):
    return lambda: old.Block(old.Attention(**options), old.MLP() if mlp is None else old.ReciprocalMLP(**mlp))


def lens(**options):
    return lambda: old.LensBlock(**options)


CASES = {  # the block, what its config says, its generation
    "plain": (series(), {}, "plain"),
    "V0": (series(), {"ra_mla_ablation_step": "V0"}, "plain"),
    "V1, per layer": (series(rank=4), {"ra_v5_R": 4, "ra_mla_ablation_step": "V1"}, "V"),
    "V9, per head": (series(rank=2, per_head=True), {"ra_mla_ablation_step": "V9"}, "V"),
    "V2": (series(rank=4, restart=True), {"ra_mla_ablation_step": "V2"}, "V"),
    "V6": (series(rank=4, mlp={"mixer": True, "gated": True}), {"ra_mla_ablation_step": "V6"}, "V"),
    "V11": (series(mlp={}), {"ra_mla_ablation_step": "V11"}, "V"),
    "D, step 2": (latent(coupling=0, alpha=0), {"ra_alpha": 0.0, "ra_mla_ablation_step": "2"}, "D"),
    "D, step 5": (latent(coupling=0), BAND, "D"),
    "D, coupled": (latent(coupling=1), BAND, "D"),
    "D, step 16": (mechanisms(coupling=0), BAND, "D"),
    "D, coupled mechanisms": (mechanisms(coupling=1, sparse="rms"), BAND | {"mlp_sparse_mode": "rms"}, "D"),
    "C, step 5": (latent(), BAND, "C"),
    "C, one for all heads": (latent(shared=True), BAND, "C"),
    "C, step 13": (
        latent(alpha=0, ct={"ra_ct_mode": "topk", "ra_ct_apply": "output"}),
        CT | {"ra_alpha": 0.0, "ra_ct_mode": "topk", "ra_ct_apply": "output"},
        "C",
    ),
    "C, step 17": (
        latent(alpha=0, ct={"ra_ct_mode": "topk", "ra_ct_apply": "weights"}),
        CT | {"ra_alpha": 0.0, "ra_ct_mode": "topk", "ra_ct_apply": "weights"},
        "C",
    ),
    "C, step 18": (
        latent(ct={"ra_ct_mode": "entropy", "ra_ct_apply": "output"}),
        BAND | CT | {"ra_ct_mode": "entropy", "ra_ct_apply": "output"},
        "C",
    ),
    "C, mechanisms": (mechanisms(), BAND, "C"),
    "C, untied": (mechanisms(tying="untied", sparse="none"), BAND | {"mlp_sparse_mode": "none"}, "C"),
    "C, scaled": (mechanisms(tying="per_head_scalar"), BAND, "C"),
    "L0": (lens(rec=False, disc=False), {"use_lens": True, "ra_alpha": 0.0, "ra_mla_ablation_step": "L0"}, "lens"),
    "L4": (lens(), {"use_lens": True, "ra_alpha": 0.3, "ra_mla_ablation_step": "L4"}, "lens"),
    "L5": (lens(route=True), {"use_lens": True, "ra_alpha": 0.3, "ra_mla_ablation_step": "L5"}, "lens"),
    "L6": (
        lens(route=True, rank=6, context=5),
        {"use_lens": True, "ra_alpha": 0.3, "ra_mla_ablation_step": "L6"},
        "lens",
    ),
    "L7": (
        lens(route=True, rank=6, context=5, conductor=True),
        {"use_lens": True, "ra_alpha": 0.3, "lens_ctx_conductor": True, "ra_mla_ablation_step": "L7"},
        "lens",
    ),
}
TOKENS = torch.randint(old.VOCAB, (3, old.BLOCK), generator=torch.Generator().manual_seed(5))


def loss_of(logits):
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())


def trained(case, seed=0):
    """An old model with weights of all kinds, and its optimizer, after three steps."""
    torch.manual_seed(seed)
    model = old.GPT(CASES[case][0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            if name.endswith(("attn.w_std", "attn.w_rec")):
                parameter.abs_()  # a gate below its floor was stuck there, and is not here
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, amsgrad=True)
    for _ in range(3):
        take_step(model, optimizer)
    return model, optimizer


def take_step(model, optimizer):
    optimizer.zero_grad()
    loss_of(model(TOKENS)).backward()
    optimizer.step()


@torch.no_grad()
def widened(model, ours):
    """Both in float64, the old model with the two numbers that ours does not have to the last bit of fp32."""
    model.double()
    ours.double()
    for theirs, block in zip(model.transformer.h, ours.blocks, strict=True):
        if hasattr(theirs.mlp, "route_bias_add"):
            theirs.mlp.route_bias_add.fill_(-0.8)  # a number of the code here, that fp32 does not hold
        if hasattr(theirs.attn, "rwr_alpha"):
            w, alpha = block.attn.blend.w, theirs.attn.rwr_alpha
            share = w.sigmoid() / 2
            # w is rounded to fp32; a share of 0 or 0.5, which no w gives, is 5e-8 away
            rounding.check(share, alpha.clamp(0, 0.5), share * (1 - 2 * share) * w.abs() * 2**-24 + 5.1e-8, "alpha")
            alpha.copy_(share)
    return model, ours


def saved(path, model, kept=None, prefix="", **config):
    state = OrderedDict((prefix + name, tensor) for name, tensor in model.state_dict().items())
    torch.save(
        {
            "iteration": 3,
            "model_state_dict": state,
            "optimizer_state_dict": kept.state_dict() if kept else {},
            "val_loss": 4.5,
            "config": {**BASE, **config},
        },
        path,
    )
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_converted_model_has_the_logits_of_the_old_one(case, tmp_path):
    _, config, made = CASES[case]
    model, optimizer = trained(case)
    done = convert(saved(tmp_path / "best_model.pt", model, optimizer, **config), tmp_path / "run")
    restarts = ", ".join(f"blocks.{layer}.attn.blend.w" for layer in range(old.LAYERS))
    notes = (f"the moments of {restarts} begin anew: it is another number here",) if case == "V2" else ()
    assert (done.generation, done.step, done.notes) == (made, 3, notes)
    _, ours = load_run(tmp_path / "run", device=torch.device("cpu"), warn=pytest.fail)
    model, ours = widened(model, ours)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(TOKENS), model(TOKENS), rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", [case for case in CASES if case != "V2"])
def test_a_step_after_conversion_is_the_step_that_the_old_run_would_have_taken(case, tmp_path):
    model, optimizer = trained(case)
    convert(saved(tmp_path / "best_model.pt", model, optimizer, **CASES[case][1]), tmp_path / "run")
    manifest = resolve(read_source(tmp_path / "run" / "resolved.toml"), patches=patch_kinds(), optimizers=optim_kinds())
    checkpoint, _, _ = load_newest(tmp_path / "run" / "checkpoints")
    ours = build(manifest)
    ours.load_state_dict(dict(checkpoint.model))
    ours.eval()  # without dropout, which would fall elsewhere
    model, ours = widened(model, ours)
    optimizer.load_state_dict(optimizer.state_dict())  # moments become what the weights are now
    frozen = [p for name, p in ours.named_parameters() if name.endswith(".bias") and not checkpoint.model[name].any()]
    for parameter in frozen:  # biases that the old layers did not have
        parameter.requires_grad_(False)
    groups = group_parameters(ours, manifest.optim.weight_decay)
    stepper = manifest.optim.build(groups)
    names = [name for group in groups for name in group.names]
    restore_optimizer(stepper, names, checkpoint.optimizer, {})
    for group in stepper.param_groups:
        group["lr"].fill_(2**-10)  # exact in fp32
    optimizer.param_groups[0]["lr"] = 2**-10
    loss_of(ours.logits(TOKENS)).backward()
    stepper.step()
    take_step(model, optimizer)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(TOKENS), model(TOKENS), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("case", "number", "value"),
    [
        ("V1, per layer", "w_rec", -0.3),
        ("V2", "rwr_alpha", 0.7),
        ("V2", "rwr_alpha", -0.1),
        ("C, step 5", "ra_alpha", -0.2),
    ],
)
def test_numbers_outside_of_their_range_are_what_the_old_model_took_them_for(case, number, value, tmp_path):
    model, _ = trained(case)
    with torch.no_grad():
        getattr(model.transformer.h[1].attn, number).fill_(value)
    convert(saved(tmp_path / "x.pt", model, **CASES[case][1]), tmp_path / "run")
    _, ours = load_run(tmp_path / "run", device=torch.device("cpu"), warn=pytest.fail)
    model, ours = widened(model, ours)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(TOKENS), model(TOKENS), rtol=0, atol=1e-11)


def test_the_manifest_is_what_the_old_run_was_started_with(tmp_path):
    model, optimizer = trained("V9, per head")
    config = {"ra_mla_ablation_step": "V9", "dataset": "finewebedu", "max_iters": 10400, "learning_rate": 5e-4}
    convert(saved(tmp_path / "x.pt", model, optimizer, **config), tmp_path / "run")
    manifest = resolve(read_source(tmp_path / "run" / "resolved.toml"), patches=patch_kinds(), optimizers=optim_kinds())
    assert manifest.id == "v9_old"
    assert manifest.data.source == "data/finewebedu"
    assert (manifest.train.batch, manifest.train.micro_batch, manifest.train.budget.steps) == (8, 4, 10400)
    assert (manifest.schedule.lr, manifest.schedule.final) == (5e-4, pytest.approx(0.12))
    assert type(manifest.optim).kind == "adamw_amsgrad"
    assert (manifest.optim.betas, manifest.optim.weight_decay, manifest.optim.clip) == ((0.9, 0.999), 0.0, 1.0)
    assert manifest.origin == {"generation": "V", "checkpoint": "x.pt", "step": "V9"}


@pytest.mark.parametrize(("case", "name"), [("V1, per layer", "adamwspam"), ("L6", "sinkgd")])
def test_a_converted_run_is_exported_and_gone_on_from(case, name, tmp_path, ratrain):
    _, config, made = CASES[case]
    model, optimizer = trained(case)
    if name == "sinkgd":  # which keeps nothing
        optimizer.state.clear()
    path = saved(tmp_path / "x.pt", model, optimizer, **config | {"optimizer": name})
    done = convert(path, root=tmp_path / "runs")
    assert done.lines()[0].startswith(f"{done.folder}: generation {made}, 3 iterations; logits agree to ")
    assert ratrain("export", done.folder)[0] == Exit.DONE
    manifest = done.folder / "resolved.toml"
    keys = ["train.budget.steps=5", "train.precision=fp32", "eval.windows=2"]
    words = [word for key in [*keys, "compile.scope=off", "schedule.warmup.steps=0"] for word in ("--set", key)]
    out = ["--out", tmp_path / "runs", "--device", "cpu"]
    code, _, err = ratrain(manifest, "--branch", done.folder, *words, *out)
    assert code == Exit.DONE, err
    (gone_on,) = (tmp_path / "runs").glob("*/s1-from-*")
    assert load(next((gone_on / "checkpoints").glob("step-*5"))).step == 5


# what cannot be taken along


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_taken_off_names(prefix, tmp_path):
    model, optimizer = trained("plain")
    done = convert(saved(tmp_path / "x.pt", model, optimizer, prefix), tmp_path / "run")
    lost = "its optimizer numbers parameters as DDP did, twice some: training goes on from its weights alone"
    assert done.notes == ((lost,) if "module" in prefix else ())


def test_a_checkpoint_without_an_optimizer_has_its_weights(tmp_path):
    model, _ = trained("plain")
    done = convert(saved(tmp_path / "x.pt", model), tmp_path / "run")
    assert done.notes == ("the checkpoint holds no optimizer: training goes on from its weights alone",)
    checkpoint, _, _ = load_newest(tmp_path / "run" / "checkpoints")
    assert checkpoint.optimizer
    assert not any(tensor.any() for tensor in checkpoint.optimizer.values())


def test_pruned_weights_are_zero(tmp_path):
    model, _ = trained("plain")
    mask = torch.rand(4 * old.WIDTH, old.WIDTH) < 0.5
    model.transformer.h[0].mlp.c_fc.register_buffer("adamprune_mask", mask)
    convert(saved(tmp_path / "x.pt", model), tmp_path / "run")
    checkpoint, _, _ = load_newest(tmp_path / "run" / "checkpoints")
    assert not checkpoint.model["blocks.0.mlp.up.weight"][~mask].any()


def renamed(change):
    model, _ = trained("D, step 5")
    state = {change(name): tensor for name, tensor in model.state_dict().items() if change(name)}
    return {"iteration": 1, "model_state_dict": state, "config": dict(BASE)}


REFUSED = {
    "A1": (lambda n: n.replace(".attn.", ".attn.core."), r"generation A1 .*not connected.* are read"),
    "A2": (
        lambda n: n.replace(".attn.", ".attn.core.").replace("mlp.c_fc.bias", "mlp.coupler.eps"),
        r"generation A2 .*not connected.* are read",
    ),
    "B": (lambda n: "" if "ra_alpha" in n or "coupling" in n else n, r"generation B .*constants in its configuration"),
    "first lens": (lambda n: n.replace("mlp.c_fc", "mlp.fc_gate"), "first lens version"),
    "foreign": (lambda n: n.replace("attn", "attention"), "expected a GPT-2 of the reference"),
    "a tensor more": (lambda n: n.replace("mlp.c_fc.bias", "mlp.c_fc.more"), "mlp.c_fc.more .*has no place"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_generations_that_are_not_read_are_named(case, tmp_path):
    change, message = REFUSED[case]
    torch.save(renamed(change), tmp_path / "x.pt")
    with pytest.raises(DataError, match=message):
        convert(tmp_path / "x.pt", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_that_saw_the_future_are_named(tmp_path):
    model, _ = trained("plain")
    with pytest.raises(DataError, match="random-walk model: it saw later tokens"):
        convert(saved(tmp_path / "x.pt", model, use_rwr=True), tmp_path / "run")
    model, _ = trained("V6")
    for block in model.transformer.h:
        del block.attn.w_std, block.attn.w_rec
    with pytest.raises(DataError, match=r"pruned attention .*\(steps V14, V15, V17, V18\)"):
        convert(saved(tmp_path / "x.pt", model), tmp_path / "run")


@pytest.mark.parametrize(
    ("case", "config", "message"),
    [
        ("plain", {"n_head": None}, "the number of heads is unknown; expected n_head"),
        ("V1, per layer", {}, "the channels of its second gate are unknown; expected ra_v5_R"),
        ("L5", {"ra_alpha": 0.3}, "its lens step is unknown; expected ra_mla_ablation_step"),
    ],
)
def test_what_the_config_has_to_tell_is_named(case, config, message, tmp_path):
    model, _ = trained(case)
    with pytest.raises(DataError, match=message):
        convert(saved(tmp_path / "x.pt", model, **config), tmp_path / "run")


def test_a_model_that_does_not_come_out_the_same_is_refused(tmp_path, monkeypatch):
    model, _ = trained("plain")
    path = saved(tmp_path / "x.pt", model)

    def fill(ours, *_, real=converting._fill):
        real(ours, *_)
        ours.blocks[1].mlp.up.weight.data.mul_(1.01)

    monkeypatch.setattr(converting, "_fill", fill)
    with pytest.raises(DataError, match=r"logits differ by up to .*; nothing was written"):
        convert(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    model, _ = trained("plain")
    path = saved(tmp_path / "x.pt", model)
    convert(path, tmp_path / "run")
    with pytest.raises(CannotCreateError, match="is there already"):
        convert(path, tmp_path / "run")


# safe loading


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("place", ["alone", "in the config", "among weights"])
def test_a_malicious_pickle_is_refused_and_not_executed(place, old_format, tmp_path):
    evil, ran = Evil(tmp_path / "ran"), tmp_path / "ran"
    model, _ = trained("plain")
    whole = {"iteration": 1, "model_state_dict": model.state_dict(), "config": dict(BASE)}
    data = {
        "alone": evil,
        "in the config": {**whole, "config": {**BASE, "x": evil}},
        "among weights": {**whole, "model_state_dict": {**model.state_dict(), "x": evil}},
    }[place]
    torch.save(data, tmp_path / "x.pt", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(DataError, match=r"x\.pt: asks to run (os|posix|nt)\.system; only tensors"):
        convert(tmp_path / "x.pt", tmp_path / "run")
    assert not ran.exists()
    pickle.loads(pickle.dumps(evil))  # it does run where it is let
    assert ran.exists()


def test_a_bare_pickle_is_refused_and_not_executed(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"model": Evil(tmp_path / "ran")}, protocol=2))
    assert is_checkpoint(tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"x\.pt: "):
        convert(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_objects_of_the_other_trainer_are_named(tmp_path):
    torch.save({"model": {"x": torch.zeros(1)}, "args": argparse.Namespace(a=1)}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"asks to run argparse\.Namespace.*save its model_state_dict and its config"):
        read_checkpoint(tmp_path / "x.pt")


def test_what_torch_allows_beyond_plain_containers_is_refused(tmp_path):
    torch.save({"model_state_dict": {"x": torch.zeros(1)}, "config": Counter("ab")}, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"Counter"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("cut", [10, 1000, -30])
def test_a_truncated_file_is_one_message(cut, tmp_path):
    model, _ = trained("plain")
    path = saved(tmp_path / "x.pt", model)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"x\.pt: is not a whole checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("data", [[1, 2], {"a": 1}, {"model_state_dict": {"x": "y"}}, {"model_state_dict": {}}])
def test_other_contents_are_one_message(data, tmp_path):
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(DataError, match=r"x\.pt: (is a list|has no model_state_dict)"):
        read_checkpoint(tmp_path / "x.pt")


MEANT = [None, "x", -1, 0, 3.5, [], {}, torch.zeros(()), torch.zeros(0), torch.zeros(2, 2), {"a": torch.zeros(1)}]


@pytest.mark.parametrize("case", ["plain", "V6", "D, step 16", "L6"])
def test_a_file_that_holds_anything_anywhere_is_one_message_or_a_model(case, tmp_path):
    model, optimizer = trained(case)
    path = saved(tmp_path / "x.pt", model, optimizer, **CASES[case][1])
    draw, messages = random.Random(0), []
    for number in range(12):
        data = torch.load(path, weights_only=True)
        for _ in range(draw.choice([1, 2])):
            spoil(data, draw)
        torch.save(data, tmp_path / "y.pt")
        try:
            convert(tmp_path / "y.pt", tmp_path / f"run-{number}")
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 2
    assert not [message for message in messages if "\n" in message]
    assert len(list(tmp_path.glob("run-*"))) == 12 - len(messages)  # none is half written


def spoil(data, draw):
    """Puts something else in the place of one value, somewhere."""
    place = data
    while True:
        key = draw.choice(list(place))
        if isinstance(place[key], dict) and place[key] and draw.random() < 0.9:
            place = place[key]
            continue
        place[key] = draw.choice(MEANT)
        return


def test_a_head_of_its_own_is_refused(tmp_path):
    model, _ = trained("plain")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    with pytest.raises(DataError, match="its head differs from its token table; expected tied weights"):
        read_checkpoint(saved(tmp_path / "x.pt", model))


def test_weights_that_are_not_finite_are_named(tmp_path):
    model, _ = trained("plain")
    model.transformer.wpe.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"transformer\.wpe\.weight is not finite; expected"):
        read_checkpoint(saved(tmp_path / "x.pt", model))


def test_a_file_that_is_not_there(tmp_path):
    assert not is_checkpoint(tmp_path / "none.pt")
    with pytest.raises(MissingError, match="no such file"):
        read_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("case", ["D, step 16", "L6"])
def test_the_command_makes_a_run_that_draws_text_and_that_another_goes_on_from(ratrain, tmp_path, case):
    model, optimizer = trained(case)
    file, run = saved(tmp_path / "x.pt", model, optimizer, **CASES[case][1]), tmp_path / "run"
    code, out, _ = ratrain("convert", file, "-o", run)
    assert code == 0
    assert f"generation {CASES[case][2]}, 3 iterations; logits agree" in out
    assert ratrain("sample", run, "--tokens", "5")[0] == 0
    sets = ("train.budget.steps=5", "schedule.warmup={ steps = 0 }", "eval.windows=2", "compile.scope=off")
    keys = [word for key in sets for word in ("--set", key)]
    code, _, err = ratrain(run / "resolved.toml", "--branch", run, "--out", tmp_path / "on", *keys)
    assert code == 0, err


def test_the_command_refuses_what_would_run_with_one_message(ratrain, tmp_path):
    torch.save({"model": Evil(tmp_path / "ran")}, tmp_path / "x.pt")
    code, out, err = ratrain("convert", tmp_path / "x.pt")
    assert (code, out, len(err.splitlines())) == (65, "", 1)
    assert not (tmp_path / "ran").exists()
