"""The identity of a run: hashes of its recipe and seeds, and the name of its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ratrain.config.schema import INIT_STD, Manifest, Span

# names, seeds, and sections that observe a run without changing it
_NOT_TRAINED = ("id", "title", "scale", "same_as", "origin", "seed", "log", "checkpoint", "parallel")


@dataclass(frozen=True)
class Parent:
    """The run and the step that a branch begins from."""

    run_hash: str
    step: int


def plain(manifest: Manifest) -> dict[str, Any]:
    """Returns the manifest as plain TOML values in canonical order, with explicit kinds and without unset keys."""
    sections = manifest.model_dump(mode="json", exclude_none=True, exclude={"optim", "patch"})
    sections["optim"] = _with_kind(manifest.optim)
    sections["patch"] = {name: _with_kind(patch) for name, patch in sorted(manifest.patch.items())}
    return {name: sections[name] for name in type(manifest).model_fields if name in sections}


def recipe_hash(manifest: Manifest) -> str:
    """Returns the SHA-256 of the recipe: equal for all seeds of an arm, and for all spellings of the manifest."""
    return _sha256(_recipe(manifest))


def run_hash(manifest: Manifest, parent: Parent | None = None) -> str:
    """Returns the SHA-256 of the recipe, the seeds and, for a branch, the parent run and step; identifies one run."""
    identity = {**_recipe(manifest), "seed": plain(manifest)["seed"]}
    return _sha256(identity if parent is None else {**identity, "parent": asdict(parent)})


def run_folder(manifest: Manifest, parent: Parent | None = None) -> str:
    """Returns the folder `<id>-<scale>-<recipe8>/s<seed>`, with `s<init>-<data>` if the two seeds differ.

    An A/A arm adds `-<twin>`, a branch `-from-<run8>-<step>`. The name holds no time and no absolute path.
    """
    seed = manifest.seed
    seeds = f"s{seed.init}" if seed.init == seed.data else f"s{seed.init}-{seed.data}"
    seeds += "" if seed.twin == "none" else f"-{seed.twin}"
    start = "" if parent is None else f"-from-{parent.run_hash[:8]}-{parent.step}"
    return f"{manifest.id}-{manifest.scale}-{recipe_hash(manifest)[:8]}/{seeds}{start}"


def _with_kind(options: Any) -> dict[str, Any]:
    return {"kind": type(options).kind, **options.model_dump(mode="json", exclude_none=True)}


def _recipe(manifest: Manifest) -> dict[str, Any]:
    recipe = {name: value for name, value in plain(manifest).items() if name not in _NOT_TRAINED}
    # weights count by their content, not by their path
    init = {name: value for name, value in recipe.pop("init").items() if name != "weights"}
    if manifest.init.weights is not None:
        assert "sha256" in init, "resolve() looks it up"
        recipe["init"] = init
    recipe["eval"] = {name: value for name, value in recipe["eval"].items() if name != "every"}
    # whether a run is refused changes no bits
    recipe["data"] = {name: value for name, value in recipe["data"].items() if name != "most_overlap"}
    # these keys were added after the hash was fixed
    late = {"init_std"} if manifest.model.init_std == INIT_STD else set()
    late |= {"parametrisation"} if manifest.model.parametrisation == "standard" else set()
    recipe["model"] = {name: value for name, value in recipe["model"].items() if name not in late}
    # strict only decides whether a run is refused and changes no bits; autotune was added after the hash was fixed
    idle = {"strict"} if manifest.compile.autotune else {"strict", "autotune"}
    recipe["compile"] = {name: value for name, value in recipe["compile"].items() if name not in idle}
    if manifest.schedule.kind == "constant" and all(span.unit == "steps" for span in _spans(manifest)):
        # no step depends on the number of steps: a longer budget continues the same run
        recipe["train"] = {name: value for name, value in recipe["train"].items() if name != "budget"}
    return recipe


def _spans(manifest: Manifest) -> Iterator[Span]:
    """Yields the spans of the run that affect a step."""
    yield manifest.schedule.warmup
    if manifest.prune:
        yield from (manifest.prune.start, manifest.prune.end)
    own = [patch.activation or manifest.activation for patch in manifest.patch.values()]
    for section in own:
        yield from (getattr(section, name) for name in section.model_dump() if name in ("after", "over", "deadline"))


def _sha256(value: Any) -> str:
    text = json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Converts 3.0 to 3, so that a number's hash does not depend on its spelling or the type of its field."""
    if isinstance(value, dict):
        return {name: _canonical(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_canonical(child) for child in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
