"""Environment variables of the old tools, also set by `make NAME=value`: limits, trackers, a baseline."""

from __future__ import annotations

from collections.abc import Mapping

from ratrain.config.find import find_manifest, own_id
from ratrain.errors import MissingError, UsageError
from ratrain.legacy.readers.options import Said, read_said

_OPTIONS = {  # variable: option; the first variable of an option counts
    "GPT2_MAX_ITERS": "override-iters",
    "MAX_ITERS": "override-iters",
    "GPT2_MAX_TIME": "override-time",
    "TRACKER": "tracker",
    "TRACKER_PROJECT": "tracker-project",
    "TRACKER_RUN_NAME": "tracker-run-name",
}
_OFF = ("", "0", "n", "no", "false")


def overrides(environment: Mapping[str, str]) -> dict[str, Said]:
    """Returns the options set by the environment. Raises ManifestError for a limit that is not a number."""
    found: dict[str, Said] = {}
    for name, option in _OPTIONS.items():
        if text := environment.get(name, "").strip():
            said = read_said(option, text, by=f"{name} of the environment", where="")
            if said.value:
                found.setdefault(option, said)
    return found


def notices(environment: Mapping[str, str]) -> list[str]:
    """Returns notes on variables that have no effect."""
    told = []
    if environment.get("EPOCHS", "").strip():
        told.append("EPOCHS applies only to the image models; GPT2_MAX_ITERS limits this run")
    if environment.get("CONTINUE", "").strip() not in _OFF:
        told.append("CONTINUE: the same command always resumes its run")
    return told


def is_dry(environment: Mapping[str, str]) -> bool:
    return environment.get("DRY_RUN", "").strip().lower() not in _OFF


def baseline(environment: Mapping[str, str]) -> str | None:
    """Returns the id of the manifest to compare runs with, None for the first run. Raises UsageError."""
    name = environment.get("BASELINE", "").strip()
    if not name:
        return None
    try:
        return own_id(find_manifest(name)) or name
    except MissingError:
        hint = "expected a manifest such as BASELINE=v0, which is trained once and then reused by every study"
        what = "a run of wandb, with other data and code" if name.count("/") == 2 else "not a manifest"
        raise UsageError(f"BASELINE={name}: this is {what}; {hint}") from None
