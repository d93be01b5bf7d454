"""Converts an old run's mechanism to a manifest to extend and sections over it: a step, or RA+MLA, lens, walk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ratrain.config.find import find_manifest
from ratrain.config.read import read_source
from ratrain.legacy.readers.options import Asked
from ratrain.legacy.readers.recipe import SCALES
from ratrain.legacy.readers.tree import Entry, Section, Tree

_APART = (  # options that build another model than the step's
    "use-lens", "use-rwr", "lens-kv-compression", "lens-ctx-conductor", "mlp-attn-gate", "mlp-cross-token",
    "mlp-latent-recip", "kvsplice-enable", "double-attention",
)  # fmt: skip
_RAMP = Entry({"kind": "ramp", "over": {"fraction": 0.1}}, "the coupling's warm-up: documented, but it never ran")
_FAMILIES = {"V": ("v", 0, 19), "C": ("c", 1, 3), "L": ("l", 0, 7), "S": ("s", 0, 3), "R": ("r", 0, 3)}
_NUMBERED = {"ratio": 18, "recip": 5}
_STEPS = "0 to 18, V0 to V19, C1 to C3, L0 to L7, S0 to S3, R0 to R3"


def base_of(asked: Asked, *, study: str, profile: str) -> str:
    """Returns the id of the manifest that the run extends."""
    step = asked.value("ra-mla-ablation-step")
    if step is None:
        return "double_attention" if asked.value("double-attention") else "v0"
    try:
        return manifest_of(step, study=study, profile=profile)
    except ValueError as error:
        raise asked.fault("ra-mla-ablation-step", str(error)) from None


def manifest_of(step: str, *, study: str = "ratio", profile: str = "intended") -> str:
    """Returns the manifest id of `step`; bare numbers are of `study` (ratio or recip). Raises ValueError.

    The V and C series have no `as_run` manifests: docs/series.md lists how their runs differed from the intention.
    """
    match = re.fullmatch(r"([A-Z]?)(\d{1,2})", step.strip().upper(), re.ASCII)
    if not match:
        raise ValueError(f"no such step: {step.strip()[:20]!r}; expected some of {_STEPS}")
    letter, number = match[1], int(match[2])
    prefix, first, last = _FAMILIES.get(letter, ("", 1, 0)) if letter else (study, 0, _NUMBERED[study])
    if not first <= number <= last:
        raise ValueError(f"no such step: {step.strip()!r}; expected some of {_STEPS}")
    as_run = profile == "as_run" and letter not in ("V", "C")
    return f"{prefix}{number}{'_as_run' if as_run else ''}"


def mechanism(asked: Asked, base: str, *, profile: str) -> Tree:
    """Returns the sections in which the run differs from the manifest `base`."""
    if asked.value("ra-mla-ablation-step") is not None:
        return _over_step(asked, base, profile=profile)
    if asked.trainer == "train.py":
        return {}
    if asked.value("double-attention"):
        raise asked.fault("double-attention", "ENABLE_RA_MLA selects the attention as well; leave one of the two out")
    if asked.value("use-lens"):
        return {"patch.lens": _lens(asked, profile)}
    if asked.value("use-rwr"):
        return {"patch.rwr": _walk(asked, profile)}
    if asked.value("kvsplice-enable"):
        head = _width(asked) // {768: 12, 1024: 16, 1280: 20, 1600: 25}[_width(asked)]
        return {"patch.kv_splice": {"channels": _part(asked, "kvsplice-k", head)}}
    return _ra_mla(asked, profile)


def own_optim(base: str) -> dict[str, Any] | None:
    """Returns the optimizer of the manifest itself, if it is not AdamW: S steps overrode the configured one."""
    optim = _tree_of(base, Path.cwd()).get("optim", {})
    return dict(optim) if optim.get("kind", "adamw") != "adamw" else None


@cache
def _tree_of(base: str, here: Path) -> Mapping[str, Any]:
    """Returns the keys of the manifest `base`, as found from the folder `here`."""
    return read_source(find_manifest(base)).tree


def _over_step(asked: Asked, base: str, *, profile: str) -> Tree:
    """Returns the options beside a step that the step does not determine."""
    for name in _APART:
        if asked.given(name) and asked.value(name):
            step = asked.value("ra-mla-ablation-step")
            raise asked.fault(name, f"step {step} determines the model; leave this out, or the step")
    patches = _tree_of(base, Path.cwd()).get("patch", {})
    tree: Tree = {}
    if "unified_ra" in patches and asked.value("per-head-gates") is False:
        tree["patch.unified_ra"] = {"gates": Entry("layer", asked["per-head-gates"].by)}
    latent = patches.get("ra_mla", {}).get("latent")
    if latent and profile != "as_run" and asked.given("latent-dim"):
        part = _part(asked, "latent-dim", _width(asked))
        if part.value != latent:
            tree["patch.ra_mla"] = {"latent": part}
    return tree


def _ra_mla(asked: Asked, profile: str) -> Tree:
    """Returns latent attention, with the band and the MLP's mechanisms that are on."""
    alpha = asked.value("ra-alpha")
    patch: Section = _profiled(profile)
    patch["latent"] = _part(asked, "latent-dim", _width(asked))
    patch["alpha"] = Entry(alpha, asked["ra-alpha"].by)
    if alpha and asked.value("ra-window"):
        patch["window"] = Entry(asked.value("ra-window"), asked["ra-window"].by)
    for key, option in (("per_head_q", "per-head-q-latent"), ("per_head_v", "per-head-v-up")):
        if asked.value(option) is False:
            patch[key] = Entry(False, asked[option].by)
    tree: Tree = {"patch.ra_mla": patch}
    if asked.value("mlp-attn-gate"):
        tree["patch.ra_mla.gate"] = _entries(asked, alpha="mlp-gate-alpha", width="mlp-gate-dim")
    if asked.value("mlp-cross-token"):
        tree["patch.ra_mla.cross"] = _cross(asked)
    if asked.value("mlp-latent-recip"):
        tying = Entry(asked.value("mlp-tying-mode"), asked["mlp-tying-mode"].by)
        back = _entries(asked, alpha="mlp-recip-alpha", back="mlp-recip-alpha")
        tree["patch.ra_mla.latent_mlp"] = {**back, "tying": tying}
    if profile != "as_run" and (alpha or len(tree) > 1):
        patch["activation"] = _RAMP
    return tree


def _cross(asked: Asked) -> Section:
    mode = asked.value("mlp-sparse-mode")
    section = _entries(asked, alpha="mlp-cross-alpha", sparse="mlp-sparse-mode")
    if mode == "topk":
        section |= _entries(asked, k="mlp-sparse-k")
    if mode == "rms":
        section |= _entries(asked, tau="mlp-sparse-tau")
    if asked.value("mlp-sparse-normalize") is False:
        section |= _entries(asked, normalize="mlp-sparse-normalize")
    return section


def _lens(asked: Asked, profile: str) -> Section:
    """Returns the lens model without a step: all parts of the study except compression, unless that is on."""
    section = _profiled(profile)
    section["reciprocity"] = Entry(asked.value("ra-alpha") > 0, f"whether {asked['ra-alpha'].by} is above 0")
    if asked.value("lens-kv-compression"):
        section["compress"] = _part(asked, "lens-kv-latent-dim", _width(asked))
    rank = _part(asked, "lens-ctx-rank", _width(asked))
    conductor = {"conductor": True} if asked.value("lens-ctx-conductor") else {}
    section["context"] = Entry({"rank": rank.value, **conductor}, rank.why)
    section["route"] = Entry({"start": 2.2})
    return section


def _walk(asked: Asked, profile: str) -> Section:
    names = {"alpha": "alpha", "steps": "steps", "topk": "topk", "window": "window", "threshold": "threshold"}
    section = _profiled(profile) | _entries(asked, **{key: f"rwr-{name}" for key, name in names.items()})
    section |= _entries(asked, gamma="rwr-lens-strength", reversible="rwr-reversible")
    beta = asked["rwr-reciprocal-beta"]
    if beta.value != 0.5:  # 0.5 meant off
        section["reciprocal"] = Entry(beta.value, beta.by)
    if asked.value("rwr-use-discoverability"):
        section |= _entries(asked, discoverability="rwr-use-discoverability")
    return section


def _profiled(profile: str) -> Section:
    return {"profile": Entry("as_run")} if profile == "as_run" else {}


def _entries(asked: Asked, **options: str) -> Section:
    return {key: Entry(asked.value(name), asked[name].by) for key, name in options.items()}


def _width(asked: Asked) -> int:
    return SCALES[asked.value("model-name")][1]


def _part(asked: Asked, name: str, whole: int) -> Entry:
    """Returns a number of channels as a fraction of `whole`, so that other scales keep the proportion."""
    count = asked.value(name)
    if not 0 < count <= whole:
        raise asked.fault(name, f"must be from 1 to {whole}, the number of channels; got {count}")
    value = count / whole if count < whole else whole
    return Entry(value, f"{count} of {whole}: {asked[name].by}")
