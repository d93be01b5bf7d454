"""`ratrain calibrate RUN`: fits KV splice, which stores the values in fewer channels, to a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ratrain.config.read import Source, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.config.toml import quoted
from ratrain.engine.engine import Engine
from ratrain.engine.parts.fitting import Fitting
from ratrain.engine.state import model_tensors
from ratrain.events import Branched, Emit, Notice, RunEnded
from ratrain.registry import optim_kinds, patch_kinds
from ratrain.run.launch import train
from ratrain.run.start import AlreadyDone, Launch
from ratrain.storage.branch import Branch, find_branch
from ratrain.storage.checkpoint import load
from ratrain.storage.folder import listed

_PATCH = "patch.kv_splice"
_MARK, _TITLE = "spliced-", ", its values spliced after training"


def spliced(word: str, root: Path, overrides: Sequence[str]) -> tuple[Manifest, Source, Branch]:
    """Returns the manifest of RUN or RUN@STEP with KV splice and `overrides`, its source, and its branch.

    Raises the errors of `find_branch` and `resolve`.
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
    """Fits KV splice to the weights of `launch.branch` and saves the result as a run in a folder of its own.

    Returns the folder. Raises AlreadyDone if the run exists and `launch.fresh` is off, and the errors of `train`.
    """
    folder = launch.folder(manifest)
    if listed(folder.checkpoints) and not launch.fresh:
        raise AlreadyDone(folder.path, folder.read_state().get("loss"))
    return train(manifest, source, launch, sink=sink, engine=Calibration)


class Calibration(Engine):
    """An engine that fits the patches to the weights of another run, evaluates, saves and samples, without training."""

    def run(self, *, until: int | None = None) -> RunEnded:
        fitting = self.part(Fitting)
        with self._divergence_published():
            if self.world.leads:
                self._announce()
            self._choose_attention()
            self._graft(fitting)
            self._move_parts()
            self.emit(Notice(f"validation loss {self.evaluator():.4f} before the fit"))
            now = self.progress.now
            for name in fitting.modules:
                if fitting.has_plain(name):
                    self._publish(fitting.fit(name, now, plain=True))
                    self.emit(Notice(f"validation loss {self.evaluator():.4f} by plain PCA in as many channels"))
                self._publish(fitting.fit(name, now))
            self._evaluate()
            self._save()
            self._sample()
        return self._done()

    def _graft(self, fitting: Fitting) -> None:
        """Restores the checkpoint of the branch; modules that are fitted keep their initial tensors."""
        branch = self.setup.branch
        assert branch
        checkpoint = load(branch.checkpoint)
        sites = tuple(f"{site}." for modules in fitting.modules.values() for site in modules)
        fresh = {name: tensor for name, tensor in model_tensors(self.setup).items() if name.startswith(sites)}
        kept = {name: tensor for name, tensor in checkpoint.model.items() if not name.startswith(sites)}
        self.state.restore(replace(checkpoint, model=kept | fresh))
        self.emit(Branched(self.progress.steps, branch.run, branch.parent.run_hash))
