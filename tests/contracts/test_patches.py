"""What every patch must keep true. A new patch is covered the moment its file exists."""

import pytest

from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.engine.contracts import SMALL, contracts
from ratrain.registry import optim_kinds, patch_kinds


def with_patch(kind: str):
    source = read_source(find_manifest("gpt2"), scale="tiny", overrides=[*SMALL, f"patch.{kind}.enabled=true"])
    return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())


@pytest.mark.parametrize("claim", contracts())
@pytest.mark.parametrize("kind", patch_kinds())
def test_patch(kind, claim):
    contracts()[claim](with_patch(kind))
