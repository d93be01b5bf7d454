"""What every patch must keep true, on either base. A new patch is covered the moment its file exists."""

import pytest

from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.config.toml import toml
from ratrain.contracts import SMALL, contracts
from ratrain.errors import ManifestError
from ratrain.model.build import build
from ratrain.registry import optim_kinds, patch_kinds


def with_patch(kind: str, base: str = "gpt2"):
    source = read_source(find_manifest(base), scale="tiny", overrides=[*SMALL, *enabling(kind)])
    return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())


def enabling(kind: str) -> list[str]:
    """The overrides that add a patch, with the kind's own example of the options that have no default."""
    example = patch_kinds()[kind].example
    return [f"patch.{kind}.enabled=true", *(f"patch.{kind}.{key}={toml(value)}" for key, value in example.items())]


def stands_on_modern(kind: str) -> bool:
    """Whether the modern base takes the patch; it refuses what it does itself."""
    try:
        build(with_patch(kind, "modern"), device="meta")
    except ManifestError:
        return False
    return True


MODERN = [kind for kind in patch_kinds() if stands_on_modern(kind)]


@pytest.mark.thorough
@pytest.mark.parametrize("claim", contracts())
@pytest.mark.parametrize("kind", patch_kinds())
def test_patch(kind, claim):
    contracts()[claim](with_patch(kind))


@pytest.mark.slow
@pytest.mark.parametrize("claim", contracts())
@pytest.mark.parametrize("kind", MODERN)
def test_patch_on_the_modern_base(kind, claim):
    contracts()[claim](with_patch(kind, "modern"))


def test_the_modern_base_takes_all_but_what_it_has():
    assert set(patch_kinds()) - set(MODERN) == {"qk_norm"}
