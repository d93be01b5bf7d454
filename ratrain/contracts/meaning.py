"""The contracts that the meaning of a loss depends on, checked before a study, and before a run of a user's patch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ratrain.config.read import Source, read_source
from ratrain.config.render import render
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.contracts.registry import SMALL, contracts
from ratrain.errors import Fault, ManifestError, RatrainError
from ratrain.model.parametrisation import from_itself
from ratrain.registry import is_ours

# each with the fault of a model that breaks it
_CLAIMS = {
    "no position sees a later token": "sees the future",
    "no gradient comes from a later token": "learns from the future",
    "no sequence sees another": "sees the other sequences of its batch",
    "evaluating computes what was trained": "is evaluated as another model than was trained",
    "a call leaves nothing behind": "depends on the calls before",
}


def breaches(manifest: Manifest) -> Iterator[str]:
    """Yields the broken contracts of a small manifest's model; each makes its loss meaningless."""
    for claim, fault in _CLAIMS.items():
        try:
            contracts()[claim](manifest)
        except AssertionError as error:
            yield f"{fault} ({error})"


def require_meaning(manifest: Manifest, source: Source) -> None:
    """Checks a manifest with patches from outside the package on a small version of its model.

    Shipped patches are left to the tests, and patches that declare a leak (`Patch.leaks`) to their warning. Raises
    ManifestError with the first broken contract.
    """
    patches = manifest.patch.values()
    if all(map(is_ours, patches)) or any(patch.leaks for patch in patches):
        return
    small = _small(manifest, source)
    if small is None:
        return
    try:
        fault = next(breaches(small), None)
    except Exception:  # of the patch: the run itself reports it with the patch's line
        return
    if fault:
        names = ", ".join(name for name, patch in manifest.patch.items() if not is_ours(patch))
        advice = "so its loss would be meaningless; `ratrain verify` checks every contract"
        raise ManifestError([Fault(source.manifest, f"patch.{names}", f"the model {fault}, {advice}")])


def _small(manifest: Manifest, source: Source) -> Manifest | None:
    """Resolves the manifest again at the contracts' sizes, without pretrained weights; None if it rejects the sizes."""
    alone = manifest.model_copy(update={"init": type(manifest.init)()})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resolved.toml"
        file.write_text(render(alone, source))
        try:
            patches = {type(patch).kind: type(patch) for patch in manifest.patch.values()}
            optimizers = {type(manifest.optim).kind: type(manifest.optim)}
            small = read_source(file, scale="tiny", overrides=SMALL)
            beside = replace(small, files=(*small.files, *source.files))  # files that patches name are there
            return from_itself(resolve(beside, patches=patches, optimizers=optimizers))
        except RatrainError:
            return None
