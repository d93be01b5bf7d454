"""`ratrain calibrate RUN`: the values of a trained model in fewer channels, fitted to it after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ratrain.config.lines import quoted
from ratrain.config.read import Source, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.engine.branch import Branch, find_branch
from ratrain.engine.engine import Engine
from ratrain.engine.folder import listed
from ratrain.engine.launch import train
from ratrain.engine.start import AlreadyDone, Launch
from ratrain.events import Emit
from ratrain.registry import optim_kinds, patch_kinds

_PATCH = "patch.kv_splice"
_MARK, _TITLE = "spliced-", ", its values spliced after training"


def spliced(word: str, root: Path, overrides: Sequence[str]) -> tuple[Manifest, Source, Branch]:
    """The manifest of the run that RUN or RUN@STEP names, with KV splice as `overrides` set it, and where it begins.

    Raises what `find_branch` and `resolve` raise.
    """
    branch = find_branch(word, root)
    folder = branch.checkpoint.parents[1]
    own = read_source(folder / "resolved.toml").tree
    keys = [f"id={_MARK}{own['id'].removeprefix(_MARK)}", f"title={quoted(own['title'].removesuffix(_TITLE) + _TITLE)}"]
    keys += [f"{_PATCH}.enabled=true", f"{_PATCH}.activation={{ kind = 'at_once' }}", *overrides]
    source = read_source(folder / "resolved.toml", overrides=keys)
    kinds = patch_kinds(beside=source.files)
    return resolve(source, patches=kinds, optimizers=optim_kinds()), source, branch


def calibrate(manifest: Manifest, source: Source, launch: Launch, *, sink: Emit) -> Path:
    """Makes a run, in a folder of its own, of the weights that `launch.branch` names and a fit to them.

    Raises AlreadyDone where it is there, and what `train` raises.
    """
    folder = launch.folder(manifest)
    if listed(folder.checkpoints) and not launch.fresh:
        raise AlreadyDone(folder.path, folder.read_state().get("loss"))
    return train(manifest, source, launch, sink=sink, task=Engine.calibrate)
