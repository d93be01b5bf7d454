"""A worker of a shipped variant at the tiny scale, which starts in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
TINY = {"manifest": "v9", "scale": "tiny", "overrides": ["compile.scope=off"]}


@pytest.fixture(scope="session")
def start():
    """Starts a worker: of the tiny v9, or of a planted step where one is named."""
    from bench.compare.arm import Arm

    def start(does: str = "", *, after: int = 0, **options):
        if not does:
            return Arm(arguments=TINY, source=HERE.parents[2], **options)
        return Arm(
            make="planted:step_that", arguments={"does": does, "after": after}, label=does,
            environment={"PYTHONPATH": str(HERE)}, **options,
        )  # fmt: skip

    return start
