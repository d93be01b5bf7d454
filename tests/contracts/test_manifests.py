"""What every shipped manifest must keep true. A new manifest is covered the moment its file exists."""

import pytest

from ratrain.config.find import shipped
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.engine.contracts import SMALL, contracts
from ratrain.registry import optim_kinds, patch_kinds


def resolved(file, overrides=()):
    return resolve(
        read_source(file, scale="tiny", overrides=overrides), patches=patch_kinds(), optimizers=optim_kinds()
    )


def twins(file):
    """Whether the manifest says that it equals another, which test_golden holds it to."""
    return resolved(file).same_as is not None


AS_RUN = {file for file in shipped() if file.parent.name == "as_run"}
ALONE = [file for file in shipped() if not twins(file)]
# what reproduces an old run has parameters that nothing reads and options that acted on nothing; some saw the future
STRUCTURE = (
    "it runs forward and backward",
    "no position sees a later token",
    "loading a checkpoint restores the outputs",
    "one graph each to train and to evaluate wherever the activation stands",
    "cached decoding equals the full forward",
)


@pytest.mark.parametrize("file", [file for file in ALONE if file not in AS_RUN], ids=lambda file: file.stem)
@pytest.mark.parametrize("claim", contracts())
def test_manifest(file, claim):
    contracts()[claim](resolved(file, SMALL))


@pytest.mark.parametrize("file", [file for file in ALONE if file in AS_RUN], ids=lambda file: file.stem)
@pytest.mark.parametrize("claim", STRUCTURE)
def test_manifest_of_an_old_run(file, claim):
    manifest = resolved(file, SMALL)
    leaks = any(patch.leaks for patch in manifest.patch.values())
    if leaks and claim in ("no position sees a later token", "cached decoding equals the full forward"):
        with pytest.raises(AssertionError):
            contracts()[claim](manifest)
    else:
        contracts()[claim](manifest)
