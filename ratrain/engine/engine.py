"""The run of one manifest, in reading order. The engine publishes events and depends on no sink.

Every optional feature is a part (`engine/parts/part.py`); the engine calls each hook of the protocol on all parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ratrain import events
from ratrain.config.schema import Manifest
from ratrain.data.recall.source import Recall
from ratrain.engine import run_events
from ratrain.engine.divergence import Divergence
from ratrain.engine.fingerprints import fingerprints
from ratrain.engine.parts.all_parts import parts_of
from ratrain.engine.parts.part import Part, Readings
from ratrain.engine.progress import Progress
from ratrain.engine.setup import set_up
from ratrain.engine.state import RunState, model_tensors
from ratrain.engine.step import StepResult
from ratrain.errors import DivergedError, PreemptedError
from ratrain.machine.attention import Choice, choose, pin, unpin
from ratrain.machine.compile import GraphCounter, compile_model
from ratrain.machine.device import synchronize
from ratrain.machine.distributed import World
from ratrain.machine.rng import restore_rng, rng_state
from ratrain.machine.signals import StopRequest
from ratrain.model.generate import generate
from ratrain.recipe.schedule import Schedule
from ratrain.storage.branch import Branch
from ratrain.storage.checkpoint import Checkpoint, stored_bytes
from ratrain.storage.saver import Saver, Written

_SAMPLE_TOKENS = 150

P = TypeVar("P", bound=Part)


class Engine:
    """Trains `manifest` on `device`, with checkpoints in the folder `checkpoints`; `run` may be called once.

    Each process of `world` has an engine, and all take the same steps. Only rank 0 writes checkpoints, samples text
    and publishes events.
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
        self.emit: events.Emit = emit if world.leads else lambda event: None
        self.setup = set_up(
            manifest,
            checkpoints=checkpoints,
            device=device,
            emit=self.emit,
            world=world,
            branch=branch,
            attention=attention,  # None: the backend is chosen when the run begins
        )
        self.manifest, self.device, self.world = manifest, device, self.setup.world
        self.data, self.model, self.evaluator = self.setup.data, self.setup.model, self.setup.evaluator
        self.train_step, self.precision = self.setup.step, self.setup.precision
        self.parts = parts_of(self.setup)
        self.progress = Progress.of(manifest)
        self.state = RunState(self.setup, self.parts, self.progress)
        self.divergence = Divergence(manifest.train.max_skips, self.progress)
        self.schedule = Schedule(manifest.schedule, total_steps=self.progress.total_steps)
        self.graphs = GraphCounter()
        self._saver = Saver(checkpoints, keep=manifest.checkpoint.keep, world=self.world)
        self._asynchronous = manifest.checkpoint.is_asynchronous(on_gpu=device.type == "cuda")
        self._reserved = not self._asynchronous
        self._uncompiled = 0  # regions not compiled for evaluation yet

    def part(self, kind: type[P]) -> P:
        """Returns the run's part of class `kind`."""
        return next(part for part in self.parts if isinstance(part, kind))

    @property
    def checkpoint_bytes(self) -> int:
        """Estimated bytes of a checkpoint: fp32 weights, buffers, optimizer state of each weight, tensors of parts."""
        held = type(self.manifest.optim).held * stored_bytes(self.precision.masters)
        own = held + stored_bytes(model_tensors(self.setup), *(part.tensors() for part in self.parts))
        sharding = self.world.sharding
        return own + (1 + type(self.manifest.optim).held) * sharding.elsewhere_bytes() if sharding else own

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self, *, until: int | None = None) -> events.RunEnded:
        """Trains to the end of the budget, or to the first window that ends at step `until` or later.

        Raises PreemptedError after a stop request, once a checkpoint is saved. Raises DivergedError if the run
        diverges; the last checkpoint stays as it was.
        """
        with StopRequest(aloud=self.world.leads) as stop, self._divergence_published(), self._saver:
            self._begin()
            asked = None
            while not self.progress.finished and not (asked := self._asked(stop, until)):
                for part in self.parts:
                    self._publish(part.between_windows(self.progress.now))
                self._window(stop)
                if not stop.asked or self.world.sharding:  # processes that divide the model evaluate together
                    self._compile_evaluation()
                    self._reserve()
                self._evaluate_if_due()
                self._publish_saved(wait=False)
                self._save_if_due()
            if not self.progress.finished:
                self._save()
                self.emit(self._ended("preempted"))
                raise PreemptedError(
                    f"stopped by {asked} after step {self.progress.steps}, which is saved; the same command goes on"
                )
            if self.progress.evaluated_at != self.progress.steps:
                self._evaluate()
            self.divergence.check_share()
            self._save()
            for part in self.parts:
                self._publish(part.finish(self.progress.now))
            self._sample()
        return self._done()

    def _begin(self) -> None:
        """Restores the newest checkpoint if there is one, chooses the attention backend, and compiles."""
        self.state.resume(self.emit)
        if self.world.leads:
            self._announce()
            if not self.progress.steps:
                self.emit(fingerprints(self.setup))
        if self.progress.saved_at < 0:  # a new run, also one that branches from another
            for part in self.parts:
                self._publish(part.begin())
        self._choose_attention()
        self._compile()
        self._move_parts()

    def _announce(self) -> None:
        """Publishes the start of the run, and a warning for each patch that is not causal."""
        self.emit(run_events.run_started(self.setup))
        for name, patch in self.manifest.patch.items():
            if patch.leaks:
                self.emit(events.Notice(f"patch.{name} {events.NOT_CAUSAL}: {patch.leaks}", "warning"))

    def _publish(self, found: Iterable[events.Event]) -> None:
        for event in found:
            self.emit(event)

    def _asked(self, stop: StopRequest, until: int | None = None) -> str | None:
        """Returns the name of a stop signal that any process received: all must stop after the same step.

        Returns "its caller" once `until` steps are done, and None if there is no reason to stop.
        """
        if until is not None and self.progress.steps >= until:
            return "its caller"
        return next(filter(None, self.world.gather(stop.asked)), None)

    def _choose_attention(self) -> None:
        """Chooses the attention backend before compilation; all processes use the choice of rank 0."""
        known = self.setup.attention
        if known is None or known.source == "recorded":
            rows = self.train_step.micro_batch
            chosen = self.world.lead(
                lambda: choose(self.manifest, rows=rows, device=self.device, emit=self.emit, known=known)
            )
            known = self.world.share(chosen)
        assert known
        self.setup.attention = known
        pin(self.model, known, strict=self.manifest.compile.strict)
        self.emit(known.event())

    def _compile(self) -> None:
        """Compiles the model for training, before the clock of the first window starts."""
        self._uncompiled = compile_model(self.model, self.manifest.compile)
        self.train_step.share_gradients()
        if self._uncompiled or self.world.size > 1:  # with several processes it fixes DDP's gradient buckets
            self._rehearse("train", self._trial_step)

    def _trial_step(self) -> None:
        """Runs one micro-step and discards its gradients."""
        tokens, targets = self._batch(0)
        rows = slice(0, self.train_step.micro_batch)
        self.train_step.backward(tokens[rows], targets[rows])
        self.train_step.forget()

    def _compile_evaluation(self) -> None:
        """Compiles the model for evaluation, after the first window has shown that it trains.

        It happens no later, so that a failure to compile shows soon after the command is given.
        """
        if self._uncompiled:
            self._rehearse("evaluate", self.evaluator.rehearse)
            self._uncompiled = 0

    def _rehearse(self, purpose: str, act: Callable[[], None]) -> None:
        """Compiles each region by one trial pass, and restores the random generators, so that no result changes."""
        note = f"{self.manifest.compile.backend}, to {purpose}" if self._uncompiled else None
        before = self.graphs.graphs
        with self.setup.phases.timed("compile", note=note) as took:
            tensors, plain = rng_state()
            act()
            restore_rng(tensors, plain)
            synchronize(self.device)
            seconds = took()
        self.graphs.expect(self._uncompiled)
        if self._uncompiled:
            made = self.graphs.graphs - before
            self.emit(events.Compiled(purpose, seconds, made, self._uncompiled, self.graphs.cached))

    # -- one window ---------------------------------------------------------------------------------------------

    def _window(self, stop: StopRequest) -> None:
        """Trains to the next stop (logging, evaluation, checkpoint or part); reads the device once, at the end."""
        start, progress = time.perf_counter(), self.progress
        results: list[StepResult] = []
        end = self._next_stop(progress.steps)
        while progress.steps < end and not (stop.asked and self.world.size == 1):
            now, after = progress.now, progress.at(progress.steps + 1)
            self.train_step.set_lr(self.schedule.lr(after.spent))
            self._move_parts()
            if results and any(part.due(now) for part in self.parts):
                break
            for part in self.parts:
                part.before_step(after)
            results.append(self.train_step(*self._batch(progress.steps)))
            progress.steps += 1
            if self.world.heartbeat:
                self.world.heartbeat.step = progress.steps
            for part in self.parts:
                part.after_step(progress.steps)
        if results:
            self._end_window(results, start)

    def _end_window(self, results: list[StepResult], start: float) -> None:
        """Reads the window's results, publishes them, and passes them to the parts."""
        (own, norms), values = self._read(results)
        told = self.world.gather((own, time.perf_counter() - start))
        losses = [sum(parts) / len(parts) for parts in zip(*(own for own, _ in told), strict=True)]
        readings = Readings(losses, norms, told[0][1])  # rank 0's clock, so that budgets in seconds end together
        self.setup.phases.seconds["train"] += readings.seconds
        self.progress.add_time(readings.seconds)
        fields = {name: value for part in self.parts for name, value in part.window_fields().items()}
        self.emit(run_events.window(self.setup, self.progress, readings, self.graphs, fields))
        self._publish(run_events.heartbeats(self.world, self.progress))
        for part, read in zip(self.parts, values, strict=True):
            self._publish(part.after_window(self.progress.now, replace(readings, values=read)))
        self.divergence.count(norms)
        self._move_parts()

    def _read(self, results: list[StepResult]) -> tuple[list[list[float]], list[dict[object, list[float]]]]:
        """Reads losses and norms by step, and each part's tensors, in one transfer from the device."""
        table = torch.stack([torch.stack(result) for result in results]).T
        wanted = [part.to_read() for part in self.parts]
        tensors = [table, *(tensor.detach() for read in wanted for tensor in read.values())]
        numbers = iter(torch.cat([tensor.double().flatten() for tensor in tensors]).tolist())
        rows = [list(islice(numbers, len(row))) for row in table]
        return rows, [{key: list(islice(numbers, t.numel())) for key, t in read.items()} for read in wanted]

    def _next_stop(self, first: int) -> int:
        """Returns the first step after `first` that ends a window: for logging, evaluation, a checkpoint or a part."""
        m, total = self.manifest, self.progress.total_steps
        stops = [(first // every + 1) * every for every in (m.log.every, m.eval.every, m.checkpoint.every) if every]
        stops += [step for part in self.parts for step in part.stops(first)]
        if total is None:  # elapsed time is read at the end of a window, so the first windows are short
            stops.append(first + max(1, first))
        return min([*stops, total or stops[0]])

    def _move_parts(self) -> None:
        """Calls `move_to` of every part, so that all position-dependent values are set for the next step."""
        for part in self.parts:
            self._publish(part.move_to(self.progress.now))

    def _batch(self, position: int) -> tuple[Tensor, Tensor]:
        tokens, targets = self.setup.sampler.batch(position)
        if self.device.type == "cpu":
            return tokens, targets
        return (
            tokens.pin_memory().to(self.device, non_blocking=True),
            targets.pin_memory().to(self.device, non_blocking=True),
        )

    # -- between windows ----------------------------------------------------------------------------------------

    def _evaluate_if_due(self) -> None:
        every = self.manifest.eval.every
        if every and self.progress.steps % every == 0:
            self._evaluate()

    def _evaluate(self) -> None:
        with self.setup.phases.timed("evaluate") as took, ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.evaluating())
            losses = self.evaluator.losses()
            loss = self.evaluator.mean(losses)
            accuracy = None if self.data.is_text else self.evaluator.mean(self.evaluator.hits())
        step = self.progress.steps
        self.progress.last_loss, self.progress.evaluated_at = loss, step
        means = tuple(self.setup.clusters.means(losses).tolist())
        bits = self.data.bits_per_byte(loss, self.evaluator.targets)
        told = {"bits_per_byte": bits, "windows": self.setup.windows, "accuracy": accuracy}
        self.emit(events.Evaluated(step, loss, self.evaluator.tokens, took(), means, **told))
        for part in self.parts:
            self._publish(part.after_evaluation(self.progress.now, loss))
        self.divergence.check_loss(loss)

    def _save_if_due(self) -> None:
        every = self.manifest.checkpoint.every
        if every and self.progress.steps % every == 0 and not self.progress.finished:
            self._save(may_fail=True)

    def _save(self, *, may_fail: bool = False) -> None:
        """Writes a checkpoint, unless one of this step is there.

        With `may_fail` an error of the disk becomes a warning, and the next checkpoint is tried when it is due; such a
        checkpoint may be written beside the next steps.
        Raises DivergedError if a weight is not finite: the last checkpoint stays the newest.
        """
        with self.setup.phases.timed("save", note=None):
            self._publish_saved(wait=True)
        if self.world.share(self.progress.saved_at == self.progress.steps):
            return
        self.divergence.check_weights(self.precision.masters, self.world)
        behind = may_fail and self._asynchronous
        with self.setup.phases.timed("save"):
            state = self.state.snapshot()
            if self.world.leads or self.world.sharding:
                self._saver.start(state, behind=behind)
        self._publish_saved(wait=not behind, may_fail=may_fail)

    def _reserve(self) -> None:
        """Fetches memory for asynchronous checkpoints, once the optimizer has its state."""
        if not self._reserved and self.manifest.checkpoint.every and (self.world.leads or self.world.sharding):
            self._saver.reserve(Checkpoint(0, model_tensors(self.setup), self.state.tensors(), {}))
        self._reserved = True

    def _publish_saved(self, *, wait: bool, may_fail: bool = True) -> None:
        """Publishes the checkpoint that was started last, once it is on disk; `wait` waits for it."""
        done = self._saver.take(wait=wait)
        if isinstance(done, Written):
            self.progress.saved_at = done.step
            self.emit(events.Saved(done.step, str(done.path), done.size, done.seconds, done.weights, done.stall))
        elif done and may_fail:
            self.emit(events.Notice(f"{done}; the run goes on from memory", "warning"))
        elif done:
            raise done

    def snapshot(self) -> Checkpoint:
        """Returns the state of the run as a checkpoint."""
        return self.state.snapshot()

    # -- the end ------------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        """Publishes a short text drawn from the trained model, or answers to a recall task, for a first look."""
        with self.world.gathered():
            text = self._drawn() if self.world.leads else ""
        self.emit(events.Sampled(self.progress.steps, text))

    def _drawn(self) -> str:
        self.model.eval()
        unpin(self.model)  # the backend chosen for training may not support generation
        # each cache length is a new shape: compiling a graph for each would take longer than the run
        with self.precision.forward(), torch.compiler.set_stance("force_eager"):
            text = self._answers(self.data) if isinstance(self.data, Recall) else self._text()
        self.model.train()
        return text

    def _text(self) -> str:
        prompt = torch.tensor([self.data.tokenizer.eot_token], device=self.device)
        try:
            tokens = list(generate(self.model, prompt, count=_SAMPLE_TOKENS))
        except FloatingPointError as error:  # finite weights, also averaged ones, can still overflow
            raise self.divergence.found(str(error)) from error
        return self.data.tokenizer.decode(tokens)

    @torch.no_grad()
    def _answers(self, data: Recall) -> str:
        """Returns the first validation row with the model's answers."""
        inputs, targets = self.evaluator.windows.inputs[:1], self.evaluator.windows.targets[0]
        answers = self.model.logits(inputs.to(self.device))[0].argmax(-1)
        return data.told(inputs[0].tolist(), targets.tolist(), answers.tolist())

    @contextmanager
    def _divergence_published(self) -> Iterator[None]:
        """Publishes RunEnded with status "diverged" if the block raises DivergedError, and raises it again."""
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
        seconds = dict(self.setup.phases.seconds)
        loss = self.progress.last_loss
        windows = "" if loss is None else self.setup.windows
        return events.RunEnded(status, self.progress.steps, loss, seconds, windows)
