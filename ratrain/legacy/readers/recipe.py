"""How an old run was trained, as sections of a manifest: data, optimizer, schedule, budget, evaluation, pruning."""

from __future__ import annotations

from ratrain.legacy.readers.options import Asked
from ratrain.legacy.readers.tree import Entry, Section, Tree

SCALES = {"gpt2": ("gpt2_124m", 768), "gpt2-medium": ("gpt2_350m", 1024), "gpt2-large": ("gpt2_774m", 1280),
          "gpt2-xl": ("gpt2_1558m", 1600)}  # by --model-name: the scale, and n_embd  # fmt: skip
# train.py raised exactly 10 000 iterations to these; bitter0, 1 and 7 kept them
_LONGER = {
    "bitter2": 12_100,
    **dict.fromkeys(("bitter3", "bitter4", "bitter5", "bitter6", "bitter8", "bitter9"), 13_000),
}
_PRECISIONS = {"bfloat16": "amp_bf16", "float32": "fp32", "float16": "amp_bf16"}
_NEVER = 1e12  # a theta that cuts nothing


def recipe(asked: Asked, *, profile: str) -> Tree:
    """Returns all sections that do not belong to a mechanism."""
    tree: Tree = {
        "model": _model(asked),
        "data": _data(asked),
        "optim": optim(asked, profile=profile),
        "schedule": _schedule(asked),
        "train": _train(asked),
        "eval": _eval(asked),
    }
    if every := asked.value("checkpoint-every"):
        tree["checkpoint"] = {"every": Entry(every, asked["checkpoint-every"].by)}
    if not asked.value("compile"):
        tree["compile"] = {"scope": Entry("off", f"{asked['compile'].by}; the same losses, more slowly")}
    tree["log"] = _log(asked)
    if prunes(asked):
        tree["prune"] = _prune(asked, profile=profile)
    return tree


def prunes(asked: Asked) -> bool:
    return asked.value("pruning-method") != "none"


def iterations(asked: Asked) -> int:
    """Returns the iterations that warm-up and ramps are fractions of, also for a run limited by time."""
    count = asked.value("max-iters")
    if not count:
        raise asked.fault("max-iters", "must be at least 1")
    longer = _LONGER.get(asked.value("adamwprune-variant")) if asked.value("pruning-method") == "state" else None
    return longer if longer and count == 10_000 else count


def _model(asked: Asked) -> Section:
    section = {"block_size": _entry(asked, "block-size"), "dropout": _entry(asked, "dropout")}
    if asked.value("bias") is False:
        section["bias"] = _entry(asked, "bias")
    if asked.value("weight-tying") is False:
        section["head"] = Entry("untied", asked["weight-tying"].by)
    if asked.value("rope"):
        section["pos"] = Entry("rope", asked["rope"].by)
    if asked.value("mlp-expansion-ratio") != 4:
        section["mlp_ratio"] = _entry(asked, "mlp-expansion-ratio")
    return section


def _data(asked: Asked) -> Section:
    name, folder = asked.value("dataset"), asked.value("data-dir")
    if name == "shakespeare" and not asked.given("data-dir"):
        where = Entry("shakespeare", f"{asked['dataset'].by}; embedded: all of the works; the old set had 1 MB")
    elif "/" in name:
        where = _entry(asked, "dataset")
    else:
        path = f"{folder.removeprefix('./').rstrip('/') or '.'}/{name}"
        where = Entry(path, f"{asked['dataset'].by}; `ratrain prepare {name} --out {path}` makes it")
    return {"source": where, "tokenizer": Entry("gpt2")}


def optim(asked: Asked, *, profile: str) -> Section:
    """Returns the optimizer's section. AdamWPrune becomes its base optimizer; [prune] uses that one's moments."""
    name = asked.value("optimizer")
    decay, clip = asked["weight-decay"], _entry(asked, "clip")
    if profile == "as_run":
        return _optim_as_run(asked, name)
    if name == "adamwprune":
        base = asked.value("adamwprune-base-optimizer-name")
        kind = base if base in ("adam", "adamw", "adamwadv", "adamwspam") else "adamw"
        why = f"the base of AdamWPrune: {asked['adamwprune-base-optimizer-name'].by}"
        if kind == "adamw" and asked.value("adamwprune-amsgrad") in ("true", "y"):
            kind, why = "adamwadv", f"{why}, with AMSGrad: {asked['adamwprune-amsgrad'].by}"
        betas, decay = _betas(asked, "adamwprune-beta1", "adamwprune-beta2"), asked["adamwprune-weight-decay"]
    else:
        kind, why, betas = name, asked["optimizer"].by, _betas(asked, "beta1", "beta2")
    section = {"kind": Entry(kind, why), "weight_decay": Entry(decay.value, decay.by), "clip": clip}
    if kind != "sgd":
        section["betas"] = betas
    if kind not in ("sgd", "sinkgd") and asked.given("epsilon"):
        section["eps"] = _entry(asked, "epsilon")
    if kind == "sinkgd":
        section["iterations"] = _entry(asked, "sinkgd-iters")
    if kind == "adamwspam":
        section |= _spam(asked)
    return section


def _betas(asked: Asked, first: str, second: str) -> Entry:
    why = asked[second].by if asked.given(second) else f"{asked[second].by}; the default here is [0.9, 0.95]"
    return Entry([asked.value(first), asked.value(second)], why)


def _spam(asked: Asked) -> Section:
    theta, interval, warmup = asked["spam-theta"], asked["spam-interval"], asked["spam-warmup-steps"]
    every = interval.value if asked.value("spam-periodic-reset") else 0
    steps = warmup.value if every and asked.value("spam-warmup") else 0
    told = warmup.by
    if every and steps > every:
        steps, told = every, f"{warmup.by} is {steps}; a longer warm-up than the interval would never end"
    elif every and steps == every:
        told = f"{warmup.by}; as long as the interval: the learning rate is always in a warm-up"
    cuts = asked.value("spam-enable-clip")
    return {
        "theta": Entry(theta.value, f"{theta.by}; the paper has 5000")
        if cuts
        else Entry(_NEVER, "no spike is cut off"),
        "interval": Entry(every, interval.by if every else "no resets"),
        "warmup": Entry(steps, told),
        "spike_z": _entry(asked, "spam-threshold"),
    }


def _optim_as_run(asked: Asked, name: str) -> Section:
    """Returns the optimizer as the trainer computed it: for example decay only with AdamWPrune or under DDP."""
    steps_alone = asked.trainer == "train_ra_mla.py"
    betas = _betas(asked, "beta1", "beta2")
    decay = Entry(0.0, "on one GPU the reference applied no decay")
    clip = Entry(0.0, "its second trainer did not clip here") if steps_alone else _entry(asked, "clip")
    if asked.value("gpus") > 1:
        decay = Entry(asked.value("weight-decay"), f"{asked['weight-decay'].by}, under DDP, on embeddings too")
    if name == "adamwprune":
        base = asked.value("adamwprune-base-optimizer-name")
        kind = "spam_legacy" if base == "adamwspam" and not steps_alone else "adamwadv"
        betas = _betas(asked, "adamwprune-beta1", "adamwprune-beta2")
        decay = Entry(asked.value("adamwprune-weight-decay"), "on every tensor, as it ran")
    elif name == "adamwspam":
        kind = "adamw_amsgrad" if steps_alone else "spam_legacy"
        clip = _entry(asked, "clip")
    else:
        kind = "sinkgd_legacy" if name == "sinkgd" else name
    section = {"kind": Entry(kind, f"{name} as it ran"), "weight_decay": decay, "clip": clip}
    if kind in ("sgd", "adamwadv"):
        section["clip"] = Entry(0.0, "SGD was not clipped") if kind == "sgd" else _entry(asked, "clip")
    if kind not in ("sgd", "sinkgd_legacy"):
        section["betas"] = betas
    if kind == "spam_legacy":
        spam = {"theta": "spam-theta", "interval": "spam-interval", "warmup": "spam-warmup-steps"}
        section |= {key: _entry(asked, option) for key, option in spam.items()}
        section["clip_spikes"] = _entry(asked, "spam-enable-clip")
    if kind == "sinkgd_legacy":
        section |= {"tau": _entry(asked, "sinkgd-tau"), "iterations": _entry(asked, "sinkgd-iters")}
    return section


def _schedule(asked: Asked) -> Section:
    lr, low, warmup, total = asked["learning-rate"], asked["min-lr"], asked["warmup-steps"], iterations(asked)
    if not lr.value:
        raise asked.fault("learning-rate", "must be above 0")
    if low.value > lr.value:
        raise asked.fault("min-lr", f"must be at most the peak, {lr.value:g} ({lr.by}), got {low.value:g}")
    section = {"kind": Entry("cosine" if asked.value("decay-lr") else "constant", asked["decay-lr"].by)}
    section["lr"] = Entry(lr.value, lr.by)
    if asked.value("decay-lr"):
        section["final"] = Entry(round(low.value / lr.value, 12), f"{low.value:g} of {lr.value:g}: {low.by}")
    section["warmup"] = _fraction(asked, "warmup-steps", warmup.value, total)
    return section


def _fraction(asked: Asked, name: str, steps: int, total: int) -> Entry:
    """Returns a number of steps as a fraction, so that another budget or scale keeps the proportions."""
    if steps >= total:
        raise asked.fault(name, f"must be below the {total} iterations of {asked['max-iters'].by}, got {steps}")
    return Entry({"fraction": steps / total}, f"{steps} of {total} steps: {asked[name].by}")


def _train(asked: Asked) -> Section:
    micro, accumulation, gpus = (asked.value(name) for name in ("batch-size", "gradient-accumulation", "gpus"))
    for name in ("batch-size", "gradient-accumulation", "gpus", "block-size"):
        if not asked.value(name):
            raise asked.fault(name, "must be at least 1")
    factors = [("batch-size", micro), ("gradient-accumulation", accumulation), ("gpus", gpus)]
    why = " x ".join(f"{count} ({asked[name].by})" for name, count in factors if count > 1 or name == "batch-size")
    dtype = asked["dtype"]
    note = "; float16 needs a scaler, so bfloat16" if dtype.value == "float16" else ""
    return {
        "batch": Entry(micro * accumulation * gpus, why),
        "micro_batch": Entry(micro, asked["batch-size"].by),
        "budget": _budget(asked),
        "precision": Entry(_PRECISIONS[dtype.value], dtype.by + note),
    }


def _budget(asked: Asked) -> Entry:
    """Returns the limit: the environment's, else the file's time, shared by all its runs, else its steps."""
    for name, unit in (("override-iters", "steps"), ("override-time", "seconds")):
        if limit := asked.value(name):
            return Entry({unit: limit}, f"{asked[name].by}, in place of the file's limit")
    seconds, steps, total = asked["max-time"], asked["max-iters"], iterations(asked)
    if seconds.value:
        why = f"the reference stopped at {total} steps if those came first; its rate fell over steps, not over time"
        return Entry({"seconds": float(seconds.value)}, f"{seconds.by}; {why}")
    longer = f" is {steps.value}; train.py raised it for this variant" if total != steps.value else ""
    return Entry({"steps": total}, f"{steps.by}{longer}")


def _eval(asked: Asked) -> Section:
    batches, micro = asked["eval-samples"], asked.value("batch-size")
    return {
        "every": _entry(asked, "eval-interval"),
        "windows": Entry(max(1, batches.value * micro), f"{batches.value} batches of {micro}: {batches.by}"),
    }


def _log(asked: Asked) -> Section:
    section = {"every": _entry(asked, "log-interval")}
    if asked.value("log-metrics") is False:
        section["probes"] = _entry(asked, "log-metrics")
    if names := trackers(asked):
        section["trackers"] = Entry(names, asked["tracker"].by)
        if project := asked.value("tracker-project"):
            section["project"] = Entry(project, asked["tracker-project"].by)
        if name := asked.value("tracker-run-name"):
            section["run_name"] = Entry(name, asked["tracker-run-name"].by)
    return section


def trackers(asked: Asked) -> list[str]:
    words = [word.strip() for word in str(asked.value("tracker") or "none").lower().split(",") if word.strip()]
    names = [name for word in words for name in (("wandb", "trackio") if word == "both" else (word,))]
    if unknown := [name for name in names if name not in ("none", "wandb", "trackio")]:
        raise asked.fault("tracker", f"{unknown[0]!r} is not one of 'none', 'trackio', 'wandb', 'both'")
    return [name for name in dict.fromkeys(names) if name != "none"]


def _prune(asked: Asked, *, profile: str) -> Section:
    method, target, total = asked["pruning-method"], asked["target-sparsity"], iterations(asked)
    if not 0 < target.value < 1:
        raise asked.fault("target-sparsity", f"must be between 0 and 1, got {target.value:g}")
    section = {"kind": Entry(method.value, method.by), "target": Entry(target.value, target.by)}
    if method.value == "state":
        section["score"] = _entry(asked, "adamwprune-variant")
    linear = profile == "as_run" and method.value == "movement"
    section["schedule"] = Entry("linear" if linear else "cubic_late", "the reference's")
    section["start"] = _fraction(asked, "pruning-warmup", asked.value("pruning-warmup"), total)
    section["end"] = _prune_end(asked, total, section["start"].value["fraction"], profile)
    section["every"] = _entry(asked, "prune-every")
    if profile == "as_run":
        section["embedding"] = Entry(True, "tied to the head, and pruned with it")
        if method.value != "state":
            section["every"] = Entry(1, f"{method.value} pruned at every step")
    return section


def _prune_end(asked: Asked, total: int, start: float, profile: str) -> Entry:
    end = asked["prune-end"]
    if profile == "as_run":
        count = asked.value("max-iters")
        if count < total:
            return Entry({"fraction": count / total}, f"the ramp ended at {count}, before the run was made longer")
        return Entry({"fraction": 0.9999}, "the ramp ended with the run")
    if end.value and start < end.value / total < 1:
        return Entry({"fraction": end.value / total}, f"{end.value} of {total} steps: {end.by}")
    told = "the reference's ramp ended with the run, and so missed its target"
    return Entry({"fraction": max(0.8, (1 + start) / 2)}, told)


def _entry(asked: Asked, name: str) -> Entry:
    return Entry(asked.value(name), asked[name].by)
