"""Compiles the model into graphs, and counts them."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.distributed.fsdp import FSDPModule

from ratrain.config.schema import CompileSection
from ratrain.data.cache import cache_folder
from ratrain.kernels import products
from ratrain.machine.products import inductor_options
from ratrain.model.gpt2 import GPT2

_PLAIN = (int, float, str, bool, type(None), tuple)
_GRAPH_LIMIT = 64  # per code object; with torch's default of 8 the ninth variant in a process would fail


def compile_model(model: GPT2, section: CompileSection) -> int:
    """Compiles the model in place; returns the number of compiled regions (0: none).

    Scope `block` compiles each block and the head; blocks of equal structure share a graph, so compile time does not
    grow with depth. Scope `model` compiles the forward pass into one graph.
    """
    scope = section.scope
    if scope == "auto":
        divided = isinstance(model, FSDPModule)
        scope = "block" if divided or model.wte.weight.device.type == "cpu" else "model"
    if scope == "off":
        return 0
    torch.compiler.config.cache_key_tag = _operations()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPH_LIMIT)
    options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": section.backend}
    if section.backend == "inductor":
        on_cpu = model.wte.weight.device.type == "cpu"
        options["options"] = inductor_options() if on_cpu else gpu_options(section)
    if scope == "model":
        model.compile(**options)
        return 1
    for block in model.blocks:
        if isinstance(block, FSDPModule):  # its hooks, which gather it, must stay outside of the graph
            block.forward = torch.compile(block.forward, **options)
        else:
            block.compile(**options)
    model.head = torch.compile(model.head, **options)
    return 1 + len({tuple(_structure(block)) for block in model.blocks})


def gpu_options(section: CompileSection) -> dict[str, Any]:
    """Returns torch.compile's `options` for a model on a GPU. The head's products always use ATen."""
    return {"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON"} if section.autotune else {}


@functools.cache
def _operations() -> str:
    """Returns the part of a graph's cache key that torch leaves out: our operations' source and their choice by CPU.

    Without it, code cached by another version would misread the results of our operations.
    """
    files = sorted(Path(products.__file__).parent.glob("**/*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return f"ratrain {digest} {products.onednn_is_faster()}"


def _structure(module: nn.Module) -> Iterator[tuple]:
    """Yields all that distinguishes the graphs of two blocks: classes, shapes, and plain attributes used in forward.

    `layer`, the index of the block, is left out: only builders use it.
    """
    for name, part in module.named_modules():
        plain = {k: v for k, v in vars(part).items() if k != "layer" and isinstance(v, _PLAIN)}
        shapes = tuple((k, tuple(p.shape)) for k, p in part.named_parameters(recurse=False))
        yield name, type(part).__qualname__, shapes, tuple(sorted((k, repr(v)) for k, v in plain.items()))


def keep_compiled_code() -> None:
    """Stores compiled code in the user's cache folder, which survives restarts, unless the environment sets another."""
    # torch writes its own default, a temporary folder, into the environment when it is imported
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache_folder() / f"inductor-{torch.__version__}")
    if inductor_config.cpp.vec_isa_ok is None:
        # trial compilations for the CPU's reported vector sets take 6 s; a C++20 compiler supports all of them
        inductor_config.cpp.vec_isa_ok = True
    # functions in graphs with a chosen attention backend; their arguments are part of the cache key already
    calls = ("torch.nn.attention._sdpa_kernel", "torch.nn.attention._backend_from_string")
    inductor_config.unsafe_marked_cacheable_functions |= dict.fromkeys(calls, torch.__version__)


class GraphCounter:
    """Counts the graphs compiled since its construction, and the expected ones, which `expect` adds to."""

    def __init__(self):
        self._start = counters["stats"]["unique_graphs"]
        self._expected = 0
        self._hits, self._misses = _cache_counts()

    @property
    def graphs(self) -> int:
        return counters["stats"]["unique_graphs"] - self._start

    @property
    def recompiles(self) -> int:
        """Number of graphs beyond the expected number."""
        return max(0, self.graphs - self._expected)

    @property
    def cached(self) -> bool:
        """Whether every graph was found in the cache on disk."""
        hits, misses = _cache_counts()
        return hits > self._hits and misses == self._misses  # only inductor has a cache

    def expect(self, more: int) -> None:
        self._expected += more


def _cache_counts() -> tuple[int, int]:
    """Returns hits and misses of inductor's graph cache on disk since the process began."""
    return counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]
