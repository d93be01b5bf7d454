"""What a step of nanoGPT costs against ours: the same GPT-2, in rounds so that drift hits both alike.

`NANOGPT=/path/to/nanoGPT` names a checkout; without it nothing is measured. Per round every arm takes one step, in one
order and then in the other; CPU time of this process, one thread, fp32, batches read beforehand. A second of ours runs
along: the half-width of its interval is what the machine cannot resolve, and the claim holds when the lower end of
nanoGPT's interval, eager and compiled, is above the bound less that.

All train the `study` scale with GPT-2's vocabulary from equal weights on equal batches, and their losses are held
together before anything is measured. To make it one training, all predict the 47 rows that pad the vocabulary, as
nanoGPT does, and weight decay is 0: nanoGPT also decays the embeddings, ours only the matrices of the blocks. Ours runs
as the manifest has it; nanoGPT as its train.py: no deterministic algorithms, AdamW fused on a GPU only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from history import record
from torch import Tensor, nn

from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import CompileSection, Manifest
from ratrain.engine.compile import keep_compiled_code
from ratrain.engine.device import set_determinism
from ratrain.engine.paired import Ratio, measure, rows_of
from ratrain.engine.stepping import train_step
from ratrain.model.build import build
from ratrain.recipe.data import open_corpus
from ratrain.recipe.sampling import Sampler
from ratrain.registry import optim_kinds, patch_kinds

NANOGPT = os.environ.get("NANOGPT", "")
ROUNDS = int(os.environ.get("ROUNDS", "60"))
BOUND = 1.15  # of ours, for nanoGPT either way
LR = 1e-3
OVERRIDES = ["data.tokenizer=gpt2", "model.vocab_size=50257", "optim.weight_decay=0"]
OURS, TWIN, OURS_EAGER = "ours", "ours again", "ours, eager"
PEERS = ["nanoGPT, eager", "nanoGPT, compiled"]

# parts of a parameter's name, ours and nanoGPT's
THEIRS = {
    "wte": "transformer.wte",
    "pos": "transformer.wpe",
    "blocks": "transformer.h",
    "norm": "transformer.ln_f",
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "qkv": "c_attn",
    "proj": "c_proj",
    "up": "c_fc",
    "down": "c_proj",
}

Step = Callable[[Tensor, Tensor], Tensor]  # tokens and targets [B, T] -> loss, before the update

pytestmark = pytest.mark.skipif(not NANOGPT, reason="NANOGPT=/path/to/nanoGPT names the checkout to measure against")


def load_code(checkout: Path) -> ModuleType:
    """The checkout's model.py."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # compiled code looks it up
    spec.loader.exec_module(module)
    return module


def our_step(manifest: Manifest, compiler: CompileSection) -> Step:
    _, step = train_step(manifest, lr=LR, compiler=compiler)

    def run(tokens: Tensor, targets: Tensor) -> Tensor:
        set_determinism(manifest.train.deterministic, torch.device("cpu"))
        return step(tokens, targets).loss

    return run


def their_step(manifest: Manifest, code: ModuleType, *, compiled: bool) -> Step:
    spec, optim = manifest.model, manifest.optim
    shapes = {key: getattr(spec, key) for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    with contextlib.redirect_stdout(io.StringIO()):
        model = code.GPT(code.GPTConfig(**shapes, bias=spec.bias, dropout=spec.dropout))
        optimizer = model.configure_optimizers(optim.weight_decay, LR, optim.betas, "cpu")
    copy_weights(build(manifest), model)
    forward = torch.compile(model) if compiled else model

    def run(tokens: Tensor, targets: Tensor) -> Tensor:
        torch.use_deterministic_algorithms(False)
        _, loss = forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Ours to theirs, which must have the same parameters."""
    named = {".".join(THEIRS.get(part, part) for part in name.split(".")): p for name, p in ours.named_parameters()}
    targets = dict(theirs.named_parameters())
    assert named.keys() == targets.keys()
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(named[name])


def hold_together(steps: dict[str, Step], batches: list[tuple[Tensor, Tensor]]) -> None:
    """Takes one step of each arm per batch: the same loss from the start, and still the same after the updates."""
    for number, batch in enumerate(batches):
        losses = {name: step(*batch) for name, step in steps.items()}
        for name, loss in losses.items():
            tolerance = 1e-5 if number == 0 else 1e-4
            torch.testing.assert_close(loss, losses[OURS], rtol=tolerance, atol=0, msg=f"step {number}: {name}")


@pytest.fixture(scope="module")
def steps() -> dict[str, Callable[[], object]]:
    """Arms, warmed up; each call takes the arm's next batch."""
    torch.set_num_threads(1)
    keep_compiled_code()
    source = read_source(find_manifest("gpt2"), scale="study", overrides=OVERRIDES)
    manifest = resolve(source, patches=patch_kinds(), optimizers=optim_kinds())
    spec, code = manifest.model, load_code(Path(NANOGPT).expanduser())
    corpus = open_corpus(manifest.data, vocab_size=spec.vocab_size)
    sampler = Sampler(corpus.train, seed=1, batch=manifest.train.batch, block_size=spec.block_size)
    batches = [sampler.batch(step) for step in range(64)]
    manifest = manifest.model_copy(update={"model": spec.model_copy(update={"vocab_size": spec.padded_vocab})})
    arms = {
        OURS: our_step(manifest, manifest.compile),
        TWIN: our_step(manifest, manifest.compile),
        OURS_EAGER: our_step(manifest, CompileSection(scope="off")),
        PEERS[0]: their_step(manifest, code, compiled=False),
        PEERS[1]: their_step(manifest, code, compiled=True),
    }
    hold_together(arms, batches[:5])

    def endless(step: Step) -> Callable[[], object]:
        supply = itertools.cycle(batches)
        return lambda: step(*next(supply))

    return {name: endless(step) for name, step in arms.items()}


@pytest.fixture(scope="module")
def seconds(steps) -> dict[str, list[float]]:
    seconds = measure(steps, rounds=ROUNDS)
    record("peers", rows_of(seconds, base=OURS))
    return seconds


@pytest.mark.parametrize("name", [OURS, TWIN, OURS_EAGER, *PEERS])
def bench_step_against_ours(benchmark, steps, seconds, name):
    ratio, twin = (Ratio.of(seconds[arm], seconds[OURS]) for arm in (name, TWIN))
    benchmark.extra_info.update(ratio_to_ours=ratio.median, low=ratio.low, high=ratio.high, rounds=ROUNDS)
    benchmark.pedantic(steps[name], rounds=5)  # for pytest-benchmark's own table: wall time, not paired
    verdict = ""
    if name in PEERS:
        verdict = f"at least {BOUND}" if ratio.reaches(BOUND, twin) else f"NOT at least {BOUND}"
    print(f"{name:18} {1e3 * statistics.median(seconds[name]):7.1f} ms  {ratio} x ours  {verdict}")
