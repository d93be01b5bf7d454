"""No variant changes its meaning unnoticed, and no two mean the same without saying so."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from ratrain.run.check import twins

WRITER = runpy.run_path(str(Path(__file__).parent / "golden" / "write.py"))
KNOWN = json.loads(WRITER["FILE"].read_text())


@pytest.fixture(scope="module")
def rows():
    return WRITER["checked"]()


def test_every_variant_is_what_it_was_when_last_agreed_on(rows):
    now = json.loads(json.dumps(WRITER["golden"](rows)))
    changed = sorted(id for id in {**now, **KNOWN} if now.get(id) != KNOWN.get(id))
    assert not changed, f"{', '.join(changed)} changed; where that is meant, `make golden` writes the new values"


def test_no_two_variants_are_twins_without_saying_so(rows):
    assert not twins(rows)


def test_a_twin_that_does_not_say_so_is_found(rows):
    silent = [type(row)(**{**row.record(), "same_as": None}) for row in rows]
    assert {fault.where for fault in twins(silent)} == {row.id for row in rows if row.same_as}
