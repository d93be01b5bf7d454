"""Worker side of bench_optim: a step that recomputes the pruning masks, and one that only applies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.compare.worker import ratrain_step


def pruned_step(
    manifest: str, scale: str | None = None, overrides: Sequence[str] = (), device: str = "cpu", looks: bool = False
) -> Callable[[], object]:
    """Returns a step with half of the weights pruned; `looks`: masks are recomputed after each step."""
    step = ratrain_step(manifest, scale, overrides, device)
    pruner = step.step.hooks[0]
    pruner.expect(0.5)
    step()

    def looking() -> None:
        pruner.expect(0.5)
        step()

    return looking if looks else step
