"""The cards available to a rehearsal: their properties in torch's form, and their speed for the roofline model."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace


@dataclass(frozen=True)
class Card:
    """A GPU. `flops`: of a large bf16 product, and `bandwidth`: of a copy in bytes/s, both as measured in public runs
    and below the data sheet; `attention`: FLOP/s of cuDNN's causal attention, forward and backward, counting the lower
    triangle; `kernels`: the same of ratrain's Triton kernels."""

    name: str
    capability: tuple[int, int]
    processors: int
    memory: int
    flops: float
    bandwidth: float
    attention: tuple[float, float] = (290e12, 250e12)
    kernels: float = 220e12

    def properties(self) -> SimpleNamespace:
        """Returns the properties in the form of torch.cuda.get_device_properties."""
        return SimpleNamespace(
            name=self.name,
            major=self.capability[0],
            minor=self.capability[1],
            multi_processor_count=self.processors,
            total_memory=self.memory,
            warp_size=32,
            regs_per_multiprocessor=65536,
            max_threads_per_multi_processor=2048,
            max_threads_per_block=1024,
            shared_memory_per_block=48 << 10,
            shared_memory_per_block_optin=227 << 10,
            shared_memory_per_multiprocessor=228 << 10,
            L2_cache_size=50 << 20,
            gcnArchName="",
            is_integrated=False,
            uuid="0",
            clock_rate=1_980_000,
            memory_clock_rate=2_619_000,
            memory_bus_width=5120,
        )


CARDS = {
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 80 << 30, flops=798e12, bandwidth=2.6e12),
    "h200": Card("NVIDIA H200", (9, 0), 132, 141 << 30, flops=790e12, bandwidth=3.75e12),
}
