"""What every shipped manifest must keep true. A new manifest is covered the moment its file exists."""

import pytest

from ratrain.config.find import shipped
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.contracts import SMALL, contracts
from ratrain.registry import optim_kinds, patch_kinds


def resolved(file, overrides=()):
    return resolve(
        read_source(file, scale="tiny", overrides=overrides), patches=patch_kinds(), optimizers=optim_kinds()
    )


AS_RUN = {file for file in shipped() if file.parent.name == "as_run"}
# what reproduces an old run has parameters that nothing reads and options that acted on nothing; some saw the future
STRUCTURE = (
    "it runs forward and backward",
    "no position sees a later token",
    "loading a checkpoint restores the outputs",
    "one graph each to train and to evaluate wherever the activation stands",
    "cached decoding equals the full forward",
)


TRAINED = (
    "the same seed gives the same losses",
    "training lowers the loss",
    "bf16 stays near fp32",
    "what it offers to be looked at is finite",
)  # under the manifest's optimizer; no other contract knows of it


COMPILED = "compiled it computes the same and sees no later token"  # the slowest: once for each set of kinds


def cases(files, claims):
    """Every claim of every model that the files describe, once: many differ only in what prunes or trains it."""
    assert {*TRAINED, *STRUCTURE, COMPILED} <= {*contracts()}
    found = {}
    for file in files:
        manifest = resolved(file, SMALL)
        patches = {name: patch.model_copy(update={"activation": None}) for name, patch in manifest.patch.items()}
        for claim in claims:
            options = (
                repr(patches) if claim != COMPILED else repr(sorted(type(patch).kind for patch in patches.values()))
            )
            key = (claim, repr(manifest.model), options, repr(manifest.optim) if claim in TRAINED else "")
            found.setdefault(key, pytest.param(file, claim, id=f"{claim}-{file.stem}"))
    return list(found.values())


@pytest.mark.thorough
@pytest.mark.parametrize(("file", "claim"), cases([file for file in shipped() if file not in AS_RUN], contracts()))
def test_manifest(file, claim):
    contracts()[claim](resolved(file, SMALL))


@pytest.mark.slow
@pytest.mark.parametrize(("file", "claim"), cases(sorted(AS_RUN), STRUCTURE))
def test_manifest_of_an_old_run(file, claim):
    manifest = resolved(file, SMALL)
    leaks = any(patch.leaks for patch in manifest.patch.values())
    if leaks and claim in ("no position sees a later token", "cached decoding equals the full forward"):
        with pytest.raises(AssertionError):
            contracts()[claim](manifest)
    else:
        contracts()[claim](manifest)
