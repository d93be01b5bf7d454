"""The contract on transfer: a learning rate of one width serves others under muP, or the patch is refused by name."""

from __future__ import annotations

from ratrain.config.schema import BaseShape, Manifest
from ratrain.contracts.registry import contract
from ratrain.errors import ManifestError
from ratrain.recipe.optim.adamw import AdamW
from ratrain.run.coordcheck import Coordinates, check_coordinates

WIDTHS, SEEDS = (64, 128, 256), 2
LOOSE = 1.25  # largest trend over 4 x the width; a wrong power of it makes a factor of 2 or more


@contract
def its_learning_rates_transfer_or_it_is_refused_by_name(manifest: Manifest) -> None:
    try:
        found = grown(manifest, "mup")
    except ManifestError as error:
        places = tuple(f"patch.{name}." for name in manifest.patch)
        elsewhere = [str(fault) for fault in error.faults if not f"{fault.key}.".startswith(places)]
        assert not elsewhere, f"is refused under muP, but not by the name of its patch: {elsewhere[0]}"
        return
    off = {part.name: max(part.judged, key=lambda trend: max(trend, 1 / trend)) for part in found.parts}
    worst = {name: trend for name, trend in off.items() if not 1 / LOOSE <= trend <= LOOSE}
    assert not worst, (
        f"under muP, over 4 x the width, {', '.join(f'{name} grow x {trend:.2g}' for name, trend in worst.items())}; "
        "declare `fan_in` of its parameters, or say in Patch.transfers why it does not transfer"
    )


def grown(manifest: Manifest, parametrisation: str) -> Coordinates:
    """Checks the coordinates of a small manifest at WIDTHS under AdamW, with the first of them as the base of muP."""
    spec = manifest.model
    base = BaseShape(n_embd=WIDTHS[0], n_head=WIDTHS[0] // spec.head_dim) if parametrisation == "mup" else None
    spec = spec.model_copy(update={"parametrisation": parametrisation, "base": base})
    optim = manifest.optim if manifest.optim.transfers else AdamW()
    manifest = manifest.model_copy(update={"model": spec, "optim": optim})
    return check_coordinates(manifest, sizes=WIDTHS, seeds=SEEDS)
