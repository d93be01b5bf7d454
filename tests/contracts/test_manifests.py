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


@pytest.mark.parametrize("file", shipped(), ids=lambda file: file.stem)
@pytest.mark.parametrize("claim", contracts())
def test_manifest(file, claim):
    contracts()[claim](resolved(file, SMALL))
