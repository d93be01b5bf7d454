"""The Python interface: the commands as functions. Every name in `__all__` is also an attribute of `ratrain`.

    import ratrain

    run = ratrain.train("v9", scale="tiny")          # trains, or returns the run that is done already
    print(run.evaluated[-1].loss)                     # nats per token
    model = ratrain.load(run.path).model              # in eval mode, with its newest weights

The command line runs the same code. The functions raise RatrainError; its message names the place, the fault and the
remedy, and `error.exit` is the exit code of the command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ratrain.config.read import Source, find_manifest, located, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.contracts import SMALL
from ratrain.contracts.verify import Verdict
from ratrain.contracts.verify import verify as check_contracts
from ratrain.data.tokenizer import load_tokenizer
from ratrain.errors import ManifestError
from ratrain.events import Emit, Event, Window
from ratrain.machine.device import pick_device
from ratrain.model.build import build
from ratrain.model.gpt2 import GPT2
from ratrain.model.mechanism import Mechanism
from ratrain.registry import Patch, optim_kinds, patch_kinds, register
from ratrain.run.launch import train as train_manifest
from ratrain.run.sample import load_run
from ratrain.run.start import AlreadyDone, Launch
from ratrain.sinks.progress import describe
from ratrain.storage.folder import find_run
from ratrain.storage.run_log import RunLog
from ratrain.storage.run_log import read_run as _read_run

if TYPE_CHECKING:
    import tiktoken

Pathlike = str | PathLike[str]

__all__ = [
    "Loaded",
    "Mechanism",
    "Patch",
    "Resolved",
    "RunLog",
    "Verdict",
    "load",
    "read_manifest",
    "read_run",
    "register",
    "resume",
    "train",
    "verify",
]


@dataclass(frozen=True)
class Resolved:
    """A manifest with every key set, and the files and overrides that set them."""

    manifest: Manifest
    source: Source


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode on its device, its manifest, and its tokenizer."""

    model: GPT2
    manifest: Manifest
    tokenizer: tiktoken.Encoding


def read_manifest(
    name: Pathlike,
    *,
    base: Pathlike | None = None,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    patches: Sequence[Pathlike] = (),
) -> Resolved:
    """Reads and resolves the manifest with the id, file name or path `name`.

    `overrides` are keys in the form of `--set` ("schedule.lr=3e-4"), `patches` are folders of mechanisms. Raises
    ManifestError with every fault, and MissingError.
    """
    seeds = [] if seed is None else [f"seed.init={seed}", f"seed.data={seed}"]
    stands_on = None if base is None else find_manifest(str(base))
    source = read_source(find_manifest(str(name)), base=stands_on, scale=scale, overrides=[*seeds, *overrides])
    kinds = patch_kinds([Path(folder) for folder in patches], beside=source.files)
    return Resolved(resolve(source, patches=kinds, optimizers=optim_kinds()), source)


def train(
    manifest: Pathlike | Resolved,
    *,
    base: Pathlike | None = None,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    patches: Sequence[Pathlike] = (),
    out: Pathlike = "runs",
    device: str = "auto",
    resume: str = "auto",
    fresh: bool = False,
    accept_code_change: bool = False,
    on_event: Emit | None = None,
) -> RunLog:
    """Trains a manifest below the folder `out`, and resumes an earlier run of it.

    A finished run is returned as it is. `on_event` receives every event; by default all events but windows of steps
    are printed. `resume` is "auto", "must" or "never"; `fresh` moves an earlier run aside. Raises PreemptedError after
    a stop signal, DivergedError, and other RatrainErrors.
    """
    if not isinstance(manifest, Resolved):
        manifest = read_manifest(manifest, base=base, scale=scale, overrides=overrides, seed=seed, patches=patches)
    launch = Launch(Path(out), device, resume, fresh, accept_code_change)
    try:
        folder = train_manifest(manifest.manifest, manifest.source, launch, sink=on_event or print_event)
    except AlreadyDone as done:
        folder = done.path
    except ManifestError as error:
        raise located(error, manifest.source) from error
    return _read_run(folder)


def resume(run: Pathlike, *, out: Pathlike = "runs", device: str = "auto", on_event: Emit | None = None) -> RunLog:
    """Resumes a stopped run with the manifest in its folder; a finished run is returned as it is."""
    folder = find_run(str(run), Path(out))
    resolved = read_manifest(folder / "resolved.toml")
    return train(resolved, out=folder.parents[1], device=device, resume="must", on_event=on_event)


def read_run(run: Pathlike, *, out: Pathlike = "runs") -> RunLog:
    """Reads the events of a run, given by folder, name below `out`, id, or "@last"."""
    return _read_run(find_run(str(run), Path(out)))


def load(
    name: Pathlike,
    *,
    out: Pathlike = "runs",
    device: str = "cpu",
    scale: str | None = None,
    overrides: Sequence[str] = (),
) -> Loaded:
    """Loads the model of a run with its newest weights that verify, or builds that of a manifest, untrained.

    A path of a run folder and "@last" name runs; every other name is read as that of a manifest.
    """
    place, text = pick_device(device), str(name)
    if text.startswith("@") or (Path(text) / "resolved.toml").exists():
        manifest, model = load_run(find_run(text, Path(out)), device=place, warn=print)
    else:
        manifest = read_manifest(name, scale=scale, overrides=overrides).manifest
        torch.manual_seed(0)
        model = build(manifest, device=place).eval()
    return Loaded(model, manifest, load_tokenizer(manifest.data.tokenizer))


def verify(
    name: Pathlike, *, base: Pathlike | None = None, overrides: Sequence[str] = (), patches: Sequence[Pathlike] = ()
) -> Iterator[Verdict]:
    """Checks every contract on a small version of a manifest; yields each verdict when it is reached.

    A contract holds if the `fault` of its verdict is None.
    """
    own = read_manifest(name, base=base, overrides=overrides, patches=patches).manifest
    small = read_manifest(name, base=base, scale="tiny", overrides=[*SMALL, *overrides], patches=patches)
    try:
        yield from check_contracts(small.manifest, block_size=own.model.block_size)
    except ManifestError as error:
        raise located(error, small.source) from error


def print_event(event: Event) -> None:
    """Prints the lines of every event but windows of steps: a handful per run, suitable for a notebook."""
    if not isinstance(event, Window):
        for line in describe(event):
            print(line)
