"""Simulates a GPU for torch, Dynamo, Inductor and Triton. Needs its own process: nothing is undone."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# code compiled for fake tensors is useless to other processes, and the reverse
os.environ.update(TORCHINDUCTOR_FX_GRAPH_CACHE="0", TORCHINDUCTOR_AUTOGRAD_CACHE="0", TORCHINDUCTOR_COMPILE_THREADS="1")
# the same holds for measurements on fakes
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ratrain-rehearsal-")

from bench.rehearsal import guard
from bench.rehearsal.card import Card

_guard = guard.load()  # before torch loads its hooks

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch._subclasses import fake_impls  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402

# in inference mode a fake tensor does not go to another device; functions are decorated when ratrain is imported
torch.inference_mode = lambda mode=True: torch.set_grad_enabled(not mode) if mode else contextlib.nullcontext()

SOURCES: dict[str, str] = {}  # of each kernel that Inductor wrote, by name
Launch = Callable[[str, tuple[Any, ...], dict[str, Any]], None]
_Generator = torch.Generator
_kept: list[object] = []  # torch.library undoes its registrations when these are freed


class Stream:
    """torch.cuda.Stream on which everything is done at once."""

    cuda_stream = stream_id = device_index = 0
    device_type = 1
    device = torch.device("cuda", 0)

    def __init__(self, *args, **options): ...
    def synchronize(self) -> None: ...
    def wait_stream(self, stream) -> None: ...
    def wait_event(self, event) -> None: ...
    def record_event(self, event=None):
        return event or Event()

    def query(self) -> bool:
        return True

    def __enter__(self):
        return self

    def __exit__(self, *why) -> None: ...


class Event:
    """torch.cuda.Event between any two of which a millisecond passes."""

    def __init__(self, *args, **options): ...
    def record(self, *args) -> None: ...
    def synchronize(self) -> None: ...
    def wait(self, *args) -> None: ...
    def elapsed_time(self, other) -> float:
        return 1.0

    def query(self) -> bool:
        return True


class Generator:
    """torch.Generator of the GPU: `manual_seed` returns None, torch's default generator; fakes draw no numbers."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls) if torch.device(device).type == "cuda" else _Generator(device)

    def manual_seed(self, seed: int) -> None: ...


class Device:
    """torch.cuda.device"""

    def __init__(self, device=None):
        self.idx = 0

    def __enter__(self):
        return self

    def __exit__(self, *why) -> None: ...


def install(card: Card, *, launched: Launch, synced: Callable[[], None]) -> FakeTensorMode:
    """Makes `card` the GPU of this process, and returns the mode in which its tensors are made.

    launched(kernel, arguments, options) is called in place of each Triton kernel, and synced() each time the host would
    wait for a number from the device.
    """
    _guard.install()
    _torch(card)
    _dynamo(card)
    _triton(card, launched)
    _inductor(launched)
    _constants()

    def number(mode, function, x):
        synced()
        return 1.0 if x.dtype.is_floating_point else 1

    def counts(mode, function, x, *args):  # the length depends on values, which fakes lack: 8 in place of it
        with mode:
            return torch.empty(8, dtype=torch.float64 if args else torch.int64, device=x.device)

    def places(mode, function, x):
        with mode:
            return torch.empty(8, x.dim(), dtype=torch.int64, device=x.device)

    fake_impls.op_implementations_dict[torch.ops.aten.bincount.default] = counts
    fake_impls.op_implementations_dict[torch.ops.aten.nonzero.default] = places
    torch.Tensor.pin_memory = lambda self, *args: self  # pyright: ignore[reportAttributeAccessIssue]
    FakeTensor.numpy = _numbers  # pyright: ignore[reportAttributeAccessIssue]
    fake_impls.op_implementations_dict[torch.ops.aten._local_scalar_dense.default] = number
    return FakeTensorMode(allow_non_fake_inputs=True)


def _torch(card: Card) -> None:
    cuda: Any = torch.cuda
    torch.version.cuda = "13.0"
    properties = card.properties()
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_initialized": True, "_lazy_init": None,
        "init": None, "get_device_properties": properties, "get_device_capability": card.capability,
        "get_device_name": card.name, "synchronize": None, "set_device": None, "current_stream": Stream(),
        "default_stream": Stream(), "stream": contextlib.nullcontext(), "_exchange_device": 0,
        "_maybe_exchange_device": 0, "empty_cache": None, "reset_peak_memory_stats": None, "memory_allocated": 0,
        "max_memory_allocated": 0, "mem_get_info": (card.memory - (1 << 30), card.memory), "is_bf16_supported": True,
        "_sleep": None, "get_rng_state_all": [], "set_rng_state": None, "is_current_stream_capturing": False,
        "manual_seed": None, "manual_seed_all": None,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(cuda, name, _always(answer))
    cuda.get_rng_state = lambda device=None: torch.empty(16, dtype=torch.uint8)
    cuda.random.get_rng_state, cuda.random.set_rng_state = cuda.get_rng_state, cuda.set_rng_state
    cuda.Stream, cuda.Event, cuda.device = Stream, Event, Device
    torch.set_rng_state = torch.random.set_rng_state = _always(None)  # pyright: ignore[reportAttributeAccessIssue]
    torch.Generator = Generator  # pyright: ignore[reportAttributeAccessIssue]
    below = {
        "_cuda_getDevice": 0, "_cuda_setDevice": None, "_cuda_getDeviceCount": 1, "_cuda_getCurrentRawStream": 0,
        "_cuda_isCurrentStreamCapturing": False,
    }  # fmt: skip
    for name, answer in below.items():
        setattr(torch._C, name, _always(answer))
    FakeTensorMode.avoid_device_init = property(lambda self: True)  # pyright: ignore[reportAttributeAccessIssue]


def _always(answer: object) -> Callable[..., object]:
    return lambda *args, **options: answer


def _dynamo(card: Card) -> None:
    from torch._dynamo import device_interface

    known: Any = device_interface.CudaInterface
    for name in ("current_device", "set_device", "device_count", "stream", "current_stream", "synchronize",
                 "get_device_properties", "memory_allocated", "is_bf16_supported"):  # fmt: skip
        setattr(known, name, staticmethod(getattr(torch.cuda, name)))
    for name in ("get_raw_stream", "exchange_device", "maybe_exchange_device"):
        setattr(known, name, staticmethod(_always(0)))
    known.device, known.Event, known.Stream = Device, Event, Stream
    device_interface.caching_worker_device_properties["cuda"] = [card.properties()]
    device_interface.caching_worker_current_devices["cuda"] = 0


def _triton(card: Card, launched: Launch) -> None:
    import triton
    from torch.utils import _triton as probes
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    limits = {
        "max_shared_mem": 227 << 10,
        "multiprocessor_count": card.processors,
        "max_num_regs": 65536,
        "warpSize": 32,
    }
    target = GPUTarget("cuda", 10 * card.capability[0] + card.capability[1], 32)
    fake: Any = SimpleNamespace(
        utils=SimpleNamespace(get_device_properties=_always(limits)),
        binary_ext="cubin",
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        set_current_device=_always(None),
        get_current_stream=_always(0),
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_device_interface=lambda: torch.cuda,
        is_active=lambda: True,
        get_empty_cache_for_benchmark=_always(None),
    )
    driver.set_active(fake)

    def run(kernel, *args, grid=None, warmup=None, **options):
        launched(f"{kernel.fn.__module__.split('.')[-2]} {kernel.fn.__name__}", args, options)

    jit: Any = triton.runtime.jit.JITFunction
    jit.run = run
    for function in vars(probes).values():  # results cached before the GPU was installed
        if hasattr(function, "cache_clear"):
            function.cache_clear()


class _Kernel:
    """A kernel of Inductor's, not compiled."""

    def __init__(self, name: str, launched: Launch):
        self._name, self._launched = name, launched

    def run(self, *args, **options) -> None:
        self._launched(self._name, args, options)


def _inductor(launched: Launch) -> None:
    from torch._inductor import async_compile, config

    config.compile_threads, config.fx_graph_cache = 1, False

    def written(self, name: str, source: str, device_str: str = "cuda") -> _Kernel:
        SOURCES[name] = source
        return _Kernel(name, launched)

    compiler: Any = async_compile.AsyncCompile
    compiler.triton = written
    torch_c: Any = torch._C
    below = torch_c._dynamo.guards
    below._empty_strided_cuda = lambda size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device="cuda"
    )
    below._reinterpret_tensor = lambda x, size, stride, offset=0: torch.as_strided(
        x, size, stride, x.storage_offset() + offset
    )


def _numbers(x: FakeTensor) -> np.ndarray:
    """Replaces FakeTensor.numpy: returns zeros for a CPU tensor. Raises TypeError for another device."""
    if x.device.type != "cpu":
        raise TypeError(f"can't convert {x.device} device type tensor to numpy")
    return np.zeros(tuple(x.shape), dtype=str(x.dtype).removeprefix("torch."))


def _constants() -> None:
    """Constant folding makes tensors of one element outside of the fake mode: these live on the CPU."""
    aten = torch.library.Library("aten", "IMPL")
    aten.impl(
        "empty.memory_format",
        lambda size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None: torch.empty(
            size, dtype=dtype
        ),
        "CUDA",
    )
    aten.impl(
        "empty_strided",
        lambda size, stride, dtype=None, layout=None, device=None, pin_memory=None: torch.empty_strided(
            size, stride, dtype=dtype
        ),
        "CUDA",
    )
    _kept.append(aten)
