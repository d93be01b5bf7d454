"""A ladder manifest of this folder's tests: one arm and a planted one, of a few steps."""

from __future__ import annotations

import pytest

LADDER = """\
id = "steps"
scale = "tiny"
arms = ["v9"]
set.compile.scope = "off"
set.log.every = 100
set.model.block_size = 16

[rungs]
params = [36_000, 75_000, 150_000, 300_000]
tokens = [128, 320, 1000, 2600]
seeds = [4, 3, 3, 3]

[arm.more]
manifest = "aa_order"
tokens = [2.0, 1.8, 1.5, 1.0]
"""


@pytest.fixture
def ladder(tmp_path):
    """Writes a ladder manifest, LADDER unless another text is given."""

    def ladder(text: str = LADDER):
        file = tmp_path / "ladder.toml"
        file.write_text(text)
        return file

    return ladder
