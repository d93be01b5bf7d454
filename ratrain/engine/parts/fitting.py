"""Calibrates modules in closed form instead of by gradient descent.

Such a module defines `fit(x, held_out, attn, generator)`, which stores the result in buffers and returns errors. `x`
and `held_out` [H, N, D] are samples of the module's first argument [B, H, T, D], computed by the current model in eval
mode from windows of the training split. `vectors` is the number of samples that the module needs per head, `fitted`
whether it was fitted. Its patch defines `refit`, the interval between fits in training, and its `objective`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ratrain.config.schema import Span
from ratrain.engine.observe import looked_at
from ratrain.engine.parts.part import Part, Position
from ratrain.engine.setup import Setup
from ratrain.errors import DivergedError
from ratrain.events import Fitted, Notice
from ratrain.model.build import seed_of
from ratrain.model.gpt2 import GPT2
from ratrain.model.mechanism import offers

_CHOICE = 2  # tokens computed for each one sampled, because neighbouring tokens are similar
_HELD_OUT = 4  # windows used for the fit for each window held out


class NotFiniteError(ValueError):
    """A sample contains infinities or NaN."""


class Fitting(Part):
    """Fits patches when they are due; rank 0 computes the fit and all processes receive it.

    `is_open` returns which patches are switched on. `last`, the position of each patch's last fit, is its only state.
    """

    key = "fitting"

    def __init__(self, setup: Setup, is_open: Callable[[], Mapping[str, bool]]):
        manifest, self._setup, self._is_open = setup.manifest, setup, is_open
        self.manifest, self.model, self.world = manifest, setup.model, setup.world
        self.modules: dict[str, dict[str, Any]] = {}
        for name, site, module in fittable(self.model):
            self.modules.setdefault(name, {})[site] = module
        self.last: dict[str, tuple[int, float]] = {}  # step, and fraction of the budget spent
        order = {"seed": manifest.seed.order, "batch": manifest.train.batch, "block_size": manifest.model.block_size}
        self.sampler = setup.data.sampler(**order)  # of the whole batch, not only the rows of this process

    def due(self, now: Position) -> bool:
        return bool(self._due(now))

    def between_windows(self, now: Position) -> Iterator[Fitted]:
        for name in self._due(now):
            yield from self.fit(name, now)

    def _due(self, now: Position) -> list[str]:
        """Returns the patches to fit before the next step: when a patch opens, then whenever its `refit` has passed.

        At step 0 nothing is learned yet: an open patch is not fitted, and its `refit` counts from there.
        """
        due, is_open = [], self._is_open()
        for name in self.modules:
            refit = self.manifest.patch[name].refit
            if refit == "never" or not is_open[name]:
                continue
            if now.step == 0:
                self.last[name] = (0, 0.0)
            elif name not in self.last or self._passed(refit, self.last[name], now):
                due.append(name)
        return due

    def fit(self, name: str, now: Position, *, plain: bool = False) -> Iterator[Fitted]:
        """Fits one patch in every layer; on rank 0 yields the Fitted event. `plain` uses `fit_plain`, with no event."""
        with self._setup.phases.timed("fit"):
            with self.world.gathered():
                found = self.world.lead(lambda: self._fit(name, now.step, plain=plain))
            self._share(name)
            self.last[name] = (now.step, now.spent)
        if found and not plain:
            yield found

    def has_plain(self, name: str) -> bool:
        """Returns whether every module of the patch has `fit_plain`."""
        return all(offers(module, "fit_plain") for module in self.modules[name].values())

    def finish(self, now: Position) -> Iterator[Notice]:
        for name, modules in self.modules.items():
            if not all(module.fitted for module in modules.values()):
                yield Notice(unfitted(name), "warning")

    def state(self) -> dict[str, Any]:
        return dict(self.last)

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.last = {name: (at[0], at[1]) for name, at in state.items() if name in self.modules}

    def _passed(self, refit: Span, last: tuple[int, float], now: Position) -> bool:
        if refit.steps is not None:
            return now.step >= last[0] + refit.steps
        return now.spent >= last[1] + (refit.fraction or 0.0) - 1e-9

    def _fit(self, name: str, step: int, *, plain: bool) -> Fitted:
        """Fits the modules of one patch on this process. Raises DivergedError if a sample is not finite."""
        modules = self.modules[name]
        wanted = max(module.vectors for module in modules.values())
        windows = self._windows(step, wanted)
        generator = torch.Generator().manual_seed(seed_of(self.manifest.seed.order, "fit", name, step))
        try:
            passes = {"rows": self._setup.step.micro_batch, "precision": self._setup.precision, "plain": plain}
            errors = fit_modules(self.model, modules, windows, generator, **passes)
        except NotFiniteError as error:
            raise DivergedError(f"patch.{name} cannot be fitted at step {step}: {error}; lower schedule.lr") from error
        used, by_pca, values = (torch.stack(part) for part in zip(*errors, strict=True))  # [layers, H]
        return Fitted(
            step=step,
            patch=name,
            vectors=wanted,
            objective=self.manifest.patch[name].objective,
            error=float(used.mean()),
            error_of_pca=float(by_pca.mean()),
            error_of_values=float(values.mean()),
            heads=used.numel(),
            heads_as_pca=int((used >= by_pca).sum()),
        )

    def _windows(self, step: int, wanted: int) -> Tensor:
        """Returns inputs [n, T] of the batches from `step` on, enough for the fit and its held-out part."""
        fitted_to = math.ceil(_CHOICE * wanted / self.manifest.model.block_size)
        count = fitted_to + math.ceil(fitted_to / _HELD_OUT)
        batches = range(step, step + math.ceil(count / self.manifest.train.batch))
        return torch.cat([self.sampler.batch(at)[0] for at in batches])[:count]

    def _share(self, name: str) -> None:
        """Copies the buffers of rank 0 to every process."""
        if self.world.size == 1:
            return
        own = {
            f"{site}.{key}": buffer
            for site, module in self.modules[name].items()
            for key, buffer in module.named_buffers()
        }
        told = self.world.share({key: buffer.cpu() for key, buffer in own.items()})
        for key, buffer in own.items():
            buffer.copy_(told[key])


def unfitted(name: str) -> str:
    """Returns the warning about a patch that was never fitted."""
    return f"patch.{name} was never fitted: it is the base model, and compresses nothing; ratrain calibrate fits it"


def fittable(model: GPT2) -> Iterator[tuple[str, str, nn.Module]]:
    """Yields (patch, site, module) of every module with `fit` in a built model."""
    for site, name in model.claimed.items():
        module = model.get_submodule(site)
        if offers(module, "fit"):
            yield name, site, module


def fit_modules(
    model: GPT2,
    modules: Mapping[str, Any],
    windows: Tensor,
    generator: torch.Generator,
    *,
    rows: int = 1,
    precision: Any = None,
    plain: bool = False,
) -> list[Any]:
    """Fits modules, by site, to tokens [n, T], the last part held out; returns the errors that each fit returns.

    The model runs on `rows` sequences at a time, in `precision`. `plain` uses `fit_plain`, the baseline of a fit.
    Raises NotFiniteError if a sample is not finite.
    """
    fitted_to = max(1, len(windows) * _HELD_OUT // (_HELD_OUT + 1))
    passes = {"rows": rows, "precision": precision, "generator": generator}
    x = _inputs(model, modules, windows[:fitted_to], share=1, **passes)
    held_out = _inputs(model, modules, windows[fitted_to:], share=_HELD_OUT, **passes)
    for site in modules:
        if not (x[site].isfinite().all() and held_out[site].isfinite().all()):
            raise NotFiniteError(f"the input of {site} is not finite")
    parents = {site: model.get_submodule(site.rpartition(".")[0]) for site in modules}
    fits = {site: module.fit_plain if plain else module.fit for site, module in modules.items()}
    return [fit(x[site], held_out[site], parents[site], generator) for site, fit in fits.items()]


def fit_briefly(model: GPT2, windows: Tensor) -> GPT2:
    """Fits all modules of `model` to a few tokens [n, T] and returns it: for contracts and inspection."""
    if modules := {site: module for _, site, module in fittable(model)}:
        fit_modules(model, modules, windows, torch.Generator().manual_seed(0))
    return model


class _Reservoir:
    """A uniform sample of a stream of positions, without replacement, of at most `count` positions."""

    def __init__(self, count: int):
        self.count = count
        self.keys, self.vectors = torch.empty(0), torch.empty(0)

    def add(self, x: Tensor, keys: Tensor) -> None:
        """Adds x [B, H, T, D] with a random key for each of its B T positions; keeps those with the highest keys."""
        fresh = x.detach().transpose(0, 1).flatten(1, 2)  # [H, B T, D]
        if len(self.keys):
            keys, fresh = torch.cat([self.keys, keys]), torch.cat([self.vectors, fresh], dim=1)
        self.keys, best = keys.topk(min(self.count, len(keys)))
        self.vectors = fresh[:, best.to(fresh.device)]


def _inputs(
    model: GPT2,
    modules: Mapping[str, Any],
    windows: Tensor,
    *,
    share: int,
    rows: int,
    precision: Any,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Returns by site the module's first argument [H, N, D] at positions sampled from tokens [n, T].

    Samples up to `vectors // share` positions for a module, but at least one.
    """
    kept = {site: _Reservoir(max(1, module.vectors // share)) for site, module in modules.items()}
    keys = torch.empty(0)

    def taking(reservoir: _Reservoir) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, inputs: reservoir.add(inputs[0], keys)

    with looked_at(model, [(modules[site], taking(reservoir)) for site, reservoir in kept.items()], precision):
        for batch in windows.to(model.wte.weight.device).split(rows):
            keys = torch.rand(batch.numel(), generator=generator, dtype=torch.float64)
            h, state = model.embed(batch), None
            for block in model.blocks:
                h, state = block(h, state)
    return {site: reservoir.vectors for site, reservoir in kept.items()}
