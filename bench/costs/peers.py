"""Steps of other trainers on ratrain's batches, each made in its own process; see bench_peers.py.

All train the same GPT-2 from equal weights on equal batches. To make it one training, all predict the rows that pad the
vocabulary, as nanoGPT does, and weight decay is 0: nanoGPT also decays embeddings, ratrain only the matrices of the
blocks. A peer runs as its own trainer runs it: nanoGPT without deterministic algorithms, AdamW fused on a GPU only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bench.compare.worker import ArmError
from bench.manifests import manifest_of
from ratrain.config.schema import CompileSection, Manifest
from ratrain.data.corpus import open_corpus
from ratrain.data.sampling import Sampler
from ratrain.engine.assembly import train_step
from ratrain.machine.compile import keep_compiled_code
from ratrain.machine.device import keep_freed_memory, set_determinism
from ratrain.model.build import build

LR = 1e-3
BATCHES = 16

# parts of a parameter's name, ratrain's and nanoGPT's
_THEIRS = {
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


def ours(*, scale: str | None, overrides: Sequence[str], device: str, compiled: bool = True) -> Callable[[], Tensor]:
    """Returns ratrain's step as the engine takes it."""
    keep_compiled_code()
    keep_freed_memory()
    manifest = common_manifest(scale, overrides)
    set_determinism(manifest.train.deterministic, torch.device(device))
    return on_batches(manifest, our_step(manifest, device, compiled=compiled), device)


def nanogpt(
    *, checkout: str, scale: str | None, overrides: Sequence[str], device: str, compiled: bool
) -> Callable[[], Tensor]:
    """Returns nanoGPT's step as its train.py takes it, with the model.py of the checkout."""
    manifest = common_manifest(scale, overrides)
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    step = their_step(manifest, load_code(Path(checkout)), device, compiled=compiled)
    return on_batches(manifest, step, device)


def common_manifest(scale: str | None, overrides: Sequence[str]) -> Manifest:
    return manifest_of("gpt2", scale=scale, overrides=["optim.weight_decay=0", *overrides])


def _padded(manifest: Manifest) -> Manifest:
    """Returns the manifest with the rows that pad the vocabulary predicted as well."""
    spec = manifest.model
    return manifest.model_copy(update={"model": spec.model_copy(update={"vocab_size": spec.padded_vocab})})


def batches_of(manifest: Manifest, device: str) -> list[tuple[Tensor, Tensor]]:
    corpus = open_corpus(manifest.data, vocab_size=manifest.model.vocab_size)
    sampler = Sampler(corpus.train, seed=1, batch=manifest.train.batch, block_size=manifest.model.block_size)
    read = (sampler.batch(step) for step in range(BATCHES))
    return [(tokens.to(device), targets.to(device)) for tokens, targets in read]


def on_batches(manifest: Manifest, step: Step, device: str) -> Callable[[], Tensor]:
    """Returns the step on successive batches, read beforehand."""
    supply = itertools.cycle(batches_of(manifest, device))
    return lambda: step(*next(supply))


def our_step(manifest: Manifest, device: str, *, compiled: bool) -> Step:
    compiler = manifest.compile if compiled else CompileSection(scope="off")
    _, step = train_step(_padded(manifest), lr=LR, device=device, compiler=compiler)
    return lambda tokens, targets: step(tokens, targets).loss


def their_step(manifest: Manifest, code: ModuleType, device: str, *, compiled: bool) -> Step:
    manifest = _padded(manifest)
    spec, optim, kind = manifest.model, manifest.optim, torch.device(device).type
    shapes = {key: getattr(spec, key) for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    with contextlib.redirect_stdout(io.StringIO()):
        model = code.GPT(code.GPTConfig(**shapes, bias=spec.bias, dropout=spec.dropout)).to(device)
        optimizer = model.configure_optimizers(optim.weight_decay, LR, optim.betas, kind)
    _copy_weights(build(manifest), model)
    forward: Any = torch.compile(model) if compiled else model
    wide = contextlib.nullcontext() if manifest.train.precision == "fp32" else torch.autocast(kind, torch.bfloat16)

    def run(tokens: Tensor, targets: Tensor) -> Tensor:
        with wide:
            _, loss = forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run


def load_code(checkout: Path) -> ModuleType:
    """Loads the checkout's model.py. Raises ArmError if it is missing or not like nanoGPT's."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # compiled code looks it up
    try:
        spec.loader.exec_module(module)
    except OSError as error:
        raise ArmError(f"{checkout}: {error.strerror}; expected a checkout of nanoGPT, with its model.py") from error
    if not (hasattr(module, "GPT") and hasattr(module, "GPTConfig")):
        raise ArmError(f"{checkout}/model.py: has no GPT and GPTConfig as nanoGPT's has")
    return module


def _copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Copies ratrain's weights to nanoGPT's model, which must have the same parameters."""
    named = {".".join(_THEIRS.get(part, part) for part in name.split(".")): p for name, p in ours.named_parameters()}
    targets = dict(theirs.named_parameters())
    assert named.keys() == targets.keys()
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(named[name])
