"""GPT-2 widened to the cost of a variant: the control for the effect of parameters or FLOPs alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ratrain.config.schema import Manifest
from ratrain.model.build import build
from ratrain.model.count import count

By = Literal["parameters", "flops"]


@dataclass(frozen=True)
class Widened:
    """A base `manifest` whose MLP width matches the cost of the variant."""

    manifest: Manifest
    variant: Manifest
    base: Manifest
    by: By
    goal: int  # cost of the variant: parameters, or forward FLOPs per token
    cost: int  # cost of the widened model
    own: int  # cost of the unchanged base


def widen(variant: Manifest, base: Manifest, *, by: By) -> Widened:
    """Widens the MLP of `base` to the cost nearest to the variant's, within half a hidden channel per layer.

    The cost is linear in the hidden width, so that two widths determine all others.
    """
    goal, own = _cost(variant, by), _cost(base, by)
    per_channel = _cost(_with_hidden(base, base.model.n_hidden + 1), by) - own
    hidden = max(1, base.model.n_hidden + round((goal - own) / per_channel))
    manifest = _with_hidden(base, hidden)
    return Widened(manifest, variant, base, by, goal=goal, cost=_cost(manifest, by), own=own)


def text(widened: Widened) -> str:
    """Formats the widened model as a manifest that extends the base."""
    base, variant, by = widened.base, widened.variant, widened.by
    unit = "parameters" if by == "parameters" else "forward FLOPs per token"
    hidden = widened.manifest.model.n_hidden
    twin = hidden == base.model.n_hidden  # the difference is below half a hidden channel per layer
    return (
        f"# What would the {unit} of {variant.id} buy alone? At the scale {variant.scale}, {variant.id} has "
        f"{widened.goal:,},\n# {base.id} {widened.own:,} and this {widened.cost:,}: "
        f"{hidden} hidden channels in place of {base.model.n_hidden}.\n"
        + (f"# One more would be farther away: {base.id} itself is the control of {variant.id}.\n" if twin else "")
        + f'id = "{base.id}-as-{variant.id}"\ntitle = "{base.title}, widened to the {unit} of {variant.id}"\n'
        f'extends = "{base.id}"\n'
        + (f'same_as = "{base.id}"\n' if twin else "")
        + f"\n[model]\nmlp_ratio = {widened.manifest.model.mlp_ratio!r}\n"
    )


def _cost(manifest: Manifest, by: By) -> int:
    cost = count(build(manifest, device="meta"))
    return cost.parameters if by == "parameters" else cost.forward_flops_per_token


def _with_hidden(manifest: Manifest, hidden: int) -> Manifest:
    spec = manifest.model.model_copy(update={"mlp_ratio": hidden / manifest.model.n_embd})
    return manifest.model_copy(update={"model": spec})
