"""The run of one manifest, in reading order. The engine knows no sink: it states events."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ratrain import events
from ratrain.config.resolve import steps_total
from ratrain.config.schema import Manifest
from ratrain.engine import tell
from ratrain.engine.attention import Choice, choose, pin, require, unpin
from ratrain.engine.average import Average
from ratrain.engine.branch import Branch
from ratrain.engine.checkpoint import listed, save, stored_bytes
from ratrain.engine.compile import GraphCounter, compile_model
from ratrain.engine.device import keep_freed_memory, peak_flops, set_determinism, synchronize
from ratrain.engine.distributed import World, local_rows
from ratrain.engine.divergence import Divergence
from ratrain.engine.evaluate import Evaluator
from ratrain.engine.fingerprint import fingerprints
from ratrain.engine.fitting import Fitting, unfitted
from ratrain.engine.probes import Probes, Values
from ratrain.engine.pruning import Pruning, examine
from ratrain.engine.rng import restore_rng, rng_state
from ratrain.engine.signals import StopRequest
from ratrain.engine.state import graft, resume, snapshot
from ratrain.engine.step import Precision, StepResult, TrainStep
from ratrain.engine.switchboard import Switchboard
from ratrain.engine.tallies import Tallies
from ratrain.errors import CannotCreateError, DiskError, DivergedError, PreemptedError
from ratrain.model.build import build, seed_of
from ratrain.model.count import count
from ratrain.model.generate import generate
from ratrain.model.pretrained import load_pretrained
from ratrain.recipe.data import open_corpus
from ratrain.recipe.groups import group_parameters
from ratrain.recipe.sampling import Sampler, validation_clusters, validation_windows
from ratrain.recipe.schedule import Schedule

_SAMPLE_TOKENS = 150


class Engine:
    """Trains `manifest` on `device`, with checkpoints in `checkpoints`; `run` may be called once.

    Each process of `world` has one, and all go the same way; the first alone writes, samples and states events.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        checkpoints: Path,
        device: torch.device,
        emit: events.Emit,
        world: World = World(),  # noqa: B008 - frozen
        branch: Branch | None = None,
        attention: Choice | None = None,
    ):
        self.manifest, self.device, self.world = manifest, device, world
        self.emit: events.Emit = emit if world.leads else lambda event: None
        self.checkpoints, self.branch = checkpoints, branch
        self.parent = branch.parent if branch else None
        self.attention = attention  # None: chosen when the run begins
        keep_freed_memory()
        self.deterministic = set_determinism(manifest.train.deterministic, device)
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by phase
        self.steps_done = 0  # steps done
        self.spent_seconds = 0.0  # of training alone, over all sessions of the run
        self.last_loss: float | None = None  # of the last evaluation, and the step it was made at
        self.evaluated_at = -1
        self.saved_at = -1
        self.divergence = Divergence(manifest.train.max_skips)
        self._uncompiled = 0  # regions whose evaluation is still to be compiled

        self.corpus = open_corpus(
            manifest.data, vocab_size=manifest.model.vocab_size, block_size=manifest.model.block_size
        )
        self.sampler = Sampler(
            self.corpus.train,
            seed=manifest.seed.order,
            batch=manifest.train.batch,
            block_size=manifest.model.block_size,
            vocab_size=manifest.model.vocab_size,
            rank=world.rank,
            world=world.size,
        )
        cut = {"block_size": manifest.model.block_size, "count": manifest.eval.windows}
        windows = validation_windows(self.corpus.val, **cut)
        self.clusters = validation_clusters(self.corpus.val, **cut, eot=self.corpus.tokenizer.eot_token)
        torch.manual_seed(seed_of(manifest.seed.order, "dropout", world.rank))
        self.model = build(manifest, device=device)
        begins = branch is None and not listed(checkpoints)  # else a checkpoint holds the weights
        self.pretrained = load_pretrained(self.model, manifest) if begins and manifest.init.weights else None
        self.cost = count(self.model)
        self.groups = group_parameters(self.model, manifest.optim.weight_decay)
        self.precision = Precision(manifest.train.precision, self.model)
        self.train_step = TrainStep(
            self.model,
            manifest.optim,
            groups=self.groups,
            precision=self.precision,
            micro_batch=local_rows(world, batch=manifest.train.batch, micro_batch=manifest.train.micro_batch),
            world=world,
            prune=manifest.prune,
        )
        require(manifest, rows=self.train_step.micro_batch, device=device)
        self.evaluator = Evaluator(
            self.model, windows, precision=self.precision, batch=self.train_step.micro_batch, world=world
        )
        self.total_steps = steps_total(manifest)
        self.tallies = Tallies(self.train_step.optimizer)
        self.pruning = Pruning(manifest, self.train_step, total_steps=self.total_steps)
        self.average = Average(self.precision, manifest.eval.ema, self.pruning.apply)
        self.schedule = Schedule(manifest.schedule, total_steps=self.total_steps)
        self.switchboard = Switchboard(manifest, self.model, total_steps=self.total_steps)
        self.fitting = Fitting(manifest, self.model, self.corpus.train, world=world)
        self.probes = Probes(self.model, self.train_step, on=manifest.log.probes)
        self.graphs = GraphCounter()
        self.peak = peak_flops(device, manifest.train.precision)

    @property
    def checkpoint_bytes(self) -> int:
        """About what one checkpoint takes: fp32 weights, buffers, what the optimizer keeps of each weight, masks."""
        kept, held = {**self.model.state_dict(), **self.precision.masters}, type(self.manifest.optim).held
        return stored_bytes(kept, self.average.state(), self.pruning.tensors(), self.tallies.own) + held * sum(
            parameter.nbytes for parameter in self.train_step.parameters
        )

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self, *, until: int | None = None) -> events.RunEnded:
        """Trains to the end of the budget, or to the first window that ends at step `until` or later.

        Raises PreemptedError when asked to stop, after saving; DivergedError, with the last checkpoint as it was.
        """
        with StopRequest(aloud=self.world.leads) as stop, self._divergence_told():
            resume(self)
            if self.world.leads:
                tell.start(self)
                if not self.steps_done:
                    self.emit(fingerprints(self))
                if self.saved_at < 0 and (began := self.pruning.began(self.cost.parameters)):
                    self.emit(began)  # also where it begins with another run
            self._choose_attention()
            self._compile()
            self._switch()
            asked = None
            while not self._finished() and not (asked := self._asked(stop, until)):
                self._fit_if_due()
                self._window(stop)
                if not stop.asked:
                    self._compile_evaluation()
                self._evaluate_if_due()
                self._save_if_due()
            if not self._finished():
                self._save()
                self.emit(self._ended("preempted"))
                raise PreemptedError(
                    f"stopped by {asked} after step {self.steps_done}, which is saved; the same command goes on"
                )
            if self.evaluated_at != self.steps_done:
                self._evaluate()
            self.divergence.check_share(self.steps_done)
            self._save()
            self._warn_of_unfitted()
            if self.manifest.prune:
                self._examine()
            self._sample()
        return self._done()

    def calibrate(self) -> events.RunEnded:
        """Fits, without training, what is to be fitted in the run that this one begins with: its model, and a fit."""
        with self._divergence_told():
            if self.world.leads:
                tell.start(self)
            self._choose_attention()
            graft(self)
            spent = self.spent_after(0, self.spent_seconds, self.steps_done)
            self._switch(spent)
            self.emit(events.Notice(f"validation loss {self.evaluator():.4f} before the fit"))
            for name in self.fitting.modules:
                if self.fitting.has_plain(name):
                    self.fit(name, spent, plain=True)
                    self.emit(events.Notice(f"validation loss {self.evaluator():.4f} by plain PCA in as many channels"))
                self.fit(name, spent)
            self._evaluate()
            self._save()
            self._sample()
        return self._done()

    def _asked(self, stop: StopRequest, until: int | None = None) -> str | None:
        """The signal that asks to stop, whichever process it reached: all must leave after the same step."""
        if until is not None and self.steps_done >= until:
            return "its caller"
        return next(filter(None, self.world.gather(stop.asked)), None)

    def _choose_attention(self) -> None:
        """Settles what computes attention, before anything is compiled; all processes take what the first chooses."""
        if self.attention is None or self.attention.source == "recorded":
            rows, known = self.train_step.micro_batch, self.attention
            chosen = self.world.lead(
                lambda: choose(self.manifest, rows=rows, device=self.device, emit=self.emit, known=known)
            )
            self.attention = self.world.share(chosen)
        assert self.attention
        pin(self.model, self.attention, strict=self.manifest.compile.strict)
        self.emit(self.attention.event())

    def _compile(self) -> None:
        """Compiles what training needs, before the clock of the first window starts."""
        self._uncompiled = compile_model(self.model, self.manifest.compile)
        self.train_step.share_gradients()
        if self._uncompiled or self.world.size > 1:  # between processes it settles what gradients are averaged in
            self._rehearse("train", self._trial_step)

    def _trial_step(self) -> None:
        """One micro-step, forgotten."""
        tokens, targets = self._batch(0)
        rows = slice(0, self.train_step.micro_batch)
        self.train_step.backward(tokens[rows], targets[rows])
        self.train_step.forget()

    def _compile_evaluation(self) -> None:
        """Compiles what evaluation needs, after the first window: whether it trains at all is seen before.

        No later, or what fails there would fail long after the command was given.
        """
        if self._uncompiled:
            self._rehearse("evaluate", self.evaluator.rehearse)
            self._uncompiled = 0

    def _rehearse(self, what: str, act: Callable[[], None]) -> None:
        """Compiles each region for one kind of pass, by one that the run does not see: not its dropout either."""
        if self._uncompiled:
            self.emit(events.PhaseStarted("compile", f"{self.manifest.compile.backend}, to {what}"))
        before, spent = self.graphs.graphs, self.seconds["compile"]
        with self._phase("compile"):
            tensors, plain = rng_state()
            act()
            restore_rng(tensors, plain)
        self.graphs.expect(self._uncompiled)
        if self._uncompiled:
            made, took = self.graphs.graphs - before, self.seconds["compile"] - spent
            self.emit(events.Compiled(what, took, made, self._uncompiled, self.graphs.cached))

    # -- one window ---------------------------------------------------------------------------------------------

    def _window(self, stop: StopRequest) -> None:
        """Trains to the next step at which something is due; reads the device once, at the end."""
        start, first, spent = time.perf_counter(), self.steps_done, self.spent_seconds
        results: list[StepResult] = []
        while self.steps_done < self._next_stop(first) and not (stop.asked and self.world.size == 1):
            self.train_step.set_lr(self.schedule.lr(self.spent_after(self.steps_done - first + 1, spent, first)))
            now = self.spent_after(self.steps_done - first, spent, first)
            self._switch(now)
            if results and self.fitting.due(self.steps_done, now, self.switchboard.is_open()):
                break
            self.pruning.expect(self.steps_done + 1, self.spent_after(self.steps_done - first + 1, spent, first))
            results.append(self.train_step(*self._batch(self.steps_done)))
            self.steps_done += 1
            self.average.update(self.steps_done)
        if not results:
            return
        (own, norms), probed = self.probes.read(torch.stack([torch.stack(r) for r in results]).T)
        told = self.world.gather((own, time.perf_counter() - start))
        losses = [sum(parts) / len(parts) for parts in zip(*(own for own, _ in told), strict=True)]
        seconds = told[0][1]  # one clock for all, or a budget in seconds would end at different steps
        self.seconds["train"] += seconds
        self.spent_seconds += seconds
        self.emit(tell.window(self, losses, norms, seconds))
        self._tell_probes(probed)
        for event in (*self.pruning.told(self.world, len(losses), seconds), *self.tallies.told(self.steps_done)):
            self.emit(event)
        self.divergence.count(norms, self.steps_done)
        self.switchboard.look(losses, self.steps_done, self.spent_after(0, self.spent_seconds, self.steps_done))
        self._switch()

    def _next_stop(self, first: int) -> int:
        """The first step after `first` at which the device is read: a window's end, an evaluation, a checkpoint."""
        m = self.manifest
        stops = [(first // every + 1) * every for every in (m.log.every, m.eval.every, m.checkpoint.every) if every]
        stops += self.switchboard.next_looks(first)
        if self.total_steps is None:  # what is spent is known at the end of a window: the first ones are short
            stops.append(first + max(1, first))
        return min([*stops, self.total_steps or stops[0]])

    def _switch(self, spent: float | None = None) -> None:
        """Sets what is switched on in the next step."""
        spent = self.spent_after(0, self.spent_seconds, self.steps_done) if spent is None else spent
        for name, s in self.switchboard.set(self.steps_done, spent):
            self.emit(events.Activated(self.steps_done, name, s))

    def spent_after(self, steps: int, spent: float, first: int) -> float:
        """Fraction of the budget used once `steps` steps of this window are done.

        A budget in seconds is read once per window; in between it grows by the mean step so far.
        """
        if self.total_steps is not None:
            return (first + steps) / self.total_steps
        per_step = spent / first if first else 0.0
        return min(1.0, (spent + steps * per_step) / self.manifest.train.budget.amount)

    def _finished(self) -> bool:
        if self.total_steps is not None:
            return self.steps_done >= self.total_steps
        return self.spent_seconds >= self.manifest.train.budget.amount

    def _batch(self, position: int) -> tuple[Tensor, Tensor]:
        tokens, targets = self.sampler.batch(position)
        if self.device.type == "cpu":
            return tokens, targets
        return (
            tokens.pin_memory().to(self.device, non_blocking=True),
            targets.pin_memory().to(self.device, non_blocking=True),
        )

    # -- what is due between windows ----------------------------------------------------------------------------

    def _fit_if_due(self) -> None:
        """Fits what is fitted and not trained, to the model as it is now."""
        spent = self.spent_after(0, self.spent_seconds, self.steps_done)
        for name in self.fitting.due(self.steps_done, spent, self.switchboard.is_open()):
            self.fit(name, spent)

    def fit(self, name: str, spent: float, *, plain: bool = False) -> None:
        self.emit(events.PhaseStarted("fit"))
        with self._phase("fit"):
            told = self.fitting.fit(
                name, self.steps_done, spent, rows=self.train_step.micro_batch, precision=self.precision, plain=plain
            )
        if told and not plain:
            self.emit(told)

    def _warn_of_unfitted(self) -> None:
        for name in self.fitting.unfitted():
            self.emit(events.Notice(unfitted(name), "warning"))

    def _evaluate_if_due(self) -> None:
        every = self.manifest.eval.every
        if every and self.steps_done % every == 0:
            self._evaluate()

    def _evaluate(self) -> None:
        self.emit(events.PhaseStarted("evaluate"))
        with self._phase("evaluate") as took, self.average.in_place():
            losses = self.evaluator.losses()
            self.last_loss = float(losses.mean())
            shares = self.probes.observe(self.evaluator.real_windows, self.precision) if self.world.leads else {}
        self.evaluated_at = self.steps_done
        self.pruning.evaluated(self.last_loss)
        parts = tuple(self.clusters.means(losses).tolist())
        self.emit(events.Evaluated(self.steps_done, self.last_loss, self.evaluator.tokens, took(), parts))
        self._tell_probes(shares)
        self.divergence.check_loss(self.last_loss, self.steps_done)

    def _examine(self) -> None:
        """What is left of the weights that were pruned, at the end of the run."""
        self.emit(events.PhaseStarted("examine"))
        with self._phase("examine"):
            found = examine(self)
        self.emit(found)

    def _tell_probes(self, values: Values) -> None:
        if values:
            self.emit(events.Probed(self.steps_done, values))

    def _save_if_due(self) -> None:
        every = self.manifest.checkpoint.every
        if every and self.steps_done % every == 0 and not self._finished():
            self._save(may_fail=True)

    def _save(self, *, may_fail: bool = False) -> None:
        """Writes a checkpoint; one that `may_fail` for want of disk is told, and tried again when the next is due.

        Raises DivergedError where a weight is not finite: the last checkpoint stays the newest.
        """
        if self.world.share(self.saved_at == self.steps_done):
            return
        self.divergence.check_weights(dict(self.model.named_parameters()), self.steps_done)
        self.emit(events.PhaseStarted("save"))
        with self._phase("save") as took:
            state = snapshot(self)
            if self.world.leads:
                try:
                    path, size, weights = save(self.checkpoints, state, keep=self.manifest.checkpoint.keep)
                except (DiskError, CannotCreateError) as error:
                    if not may_fail:
                        raise
                    self.emit(events.Notice(f"{error}; the run goes on from memory", "warning"))
                else:
                    self.saved_at = self.steps_done
                    self.emit(events.Saved(self.steps_done, str(path), size, took(), weights))

    def _sample(self) -> None:
        """A stretch of text from the trained model: the check that a person makes first."""
        if not self.world.leads:
            return
        self.model.eval()
        unpin(self.model)  # what was chosen for training need not serve here
        prompt = torch.tensor([self.corpus.tokenizer.eot_token], device=self.device)
        # each length of the cache is another shape: a graph for each would take longer than the run
        with self.precision.forward(), torch.compiler.set_stance("force_eager"):
            try:
                tokens = list(generate(self.model, prompt, count=_SAMPLE_TOKENS))
            except FloatingPointError as error:  # finite weights, even an average of them, can still overflow
                raise self.divergence.found(str(error)) from error
        self.model.train()
        self.emit(events.Sampled(self.steps_done, self.corpus.tokenizer.decode(tokens)))

    @contextmanager
    def _divergence_told(self) -> Iterator[None]:
        """States the end of a run that diverges, wherever in it that is seen."""
        try:
            yield
        except DivergedError:
            self.emit(self._ended("diverged"))
            raise

    def _done(self) -> events.RunEnded:
        ended = self._ended("done")
        self.emit(ended)
        return ended

    def _ended(self, status: str) -> events.RunEnded:
        synchronize(self.device)
        return events.RunEnded(status, self.steps_done, self.last_loss, dict(self.seconds))

    @contextmanager
    def _phase(self, name: str) -> Iterator[Callable[[], float]]:
        """Adds the time of the block to the phase `name`; the value tells the seconds since it began."""
        start = time.perf_counter()
        yield lambda: time.perf_counter() - start
        synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start
