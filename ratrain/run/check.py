"""Checks manifests without training: costs, replaced sites, variants with equal recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ratrain.config.identity import recipe_hash
from ratrain.config.schema import Manifest
from ratrain.errors import Fault
from ratrain.model.build import build
from ratrain.model.count import count


@dataclass(frozen=True)
class Checked:
    """A manifest that builds: counts of the whole model, FLOPs to train one token, sites and leaks by patch."""

    id: str
    scale: str
    recipe: str
    same_as: str | None
    parametrisation: str
    parameters: int
    train_flops_per_token: int
    kv_bytes_per_token: int
    sites: dict[str, int]
    leaks: dict[str, str]  # why a patch sees later tokens; causal patches are absent

    def record(self) -> dict[str, Any]:
        return asdict(self)


def check(manifest: Manifest) -> Checked:
    """Builds the manifest on the meta device and counts its costs. Raises ManifestError if it does not build."""
    model = build(manifest, device="meta")
    cost = count(model)
    claimed = list(model.claimed.values())
    return Checked(
        id=manifest.id,
        scale=manifest.scale,
        recipe=recipe_hash(manifest),
        same_as=manifest.same_as,
        parametrisation=manifest.model.parametrisation,
        parameters=cost.parameters,
        train_flops_per_token=cost.train_flops_per_token,
        kv_bytes_per_token=cost.kv_bytes_per_token(4 if manifest.train.precision == "fp32" else 2),
        sites={name: claimed.count(name) for name in manifest.patch},
        leaks={name: why for name, patch in manifest.patch.items() if (why := patch.leaks)},
    )


def twins(checked: Sequence[Checked]) -> list[Fault]:
    """Returns faults of `same_as`: variants with equal recipes that do not declare it, and false declarations."""
    faults: list[Fault] = []
    by_id = {row.id: row for row in checked}
    for i, row in enumerate(checked):
        other = by_id.get(row.same_as or "")
        if other and other.recipe != row.recipe:
            faults.append(
                Fault(
                    row.id,
                    "same_as",
                    f"declares to equal {row.same_as}, but trains differently; remove it, or change the variant",
                )
            )
        for earlier in checked[:i]:
            told = _root(row, by_id) == _root(earlier, by_id)
            if earlier.recipe == row.recipe and earlier.id != row.id and not told:
                faults.append(
                    Fault(row.id, "same_as", f"trains the same as {earlier.id}; set same_as, or change one of the two")
                )
    return faults


def _root(row: Checked, by_id: dict[str, Checked]) -> str:
    """Returns the id at the end of the chain of `same_as`, also if the chain is a cycle."""
    seen = [row.id]
    while (row := by_id.get(row.same_as or "", row)).id not in seen:
        seen.append(row.id)
    return row.same_as or row.id


def table(checked: Sequence[Checked]) -> str:
    """Formats the counts as aligned columns."""
    told = any(row.parametrisation != "standard" for row in checked)
    head = ("id", "scale", *(["parametrisation"] if told else []), "parameters", "train FLOPs/token", "KV bytes/token",
            "recipe", "sites")  # fmt: skip
    rows = [
        (
            row.id,
            row.scale,
            *([row.parametrisation] if told else []),
            f"{row.parameters:,}",
            f"{row.train_flops_per_token:,}",
            f"{row.kv_bytes_per_token:,}",
            row.recipe[:8],
            ", ".join(f"{name} x {n}" + " (NOT CAUSAL)" * (name in row.leaks) for name, n in row.sites.items()) or "-",
        )
        for row in checked
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )
