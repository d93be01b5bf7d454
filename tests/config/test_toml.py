"""The TOML writer against tomli: every value that is written is read again."""

from __future__ import annotations

import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from ratrain.config.toml import dotted, toml

TEXT = st.text(st.characters(blacklist_categories=("Cs",)))
PLAIN = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)


@settings(max_examples=300, deadline=None)
@given(TEXT, VALUES)
def test_what_is_written_is_read_again(key, value):
    assert tomli.loads(f"{dotted((key,))} = {toml(value)}") == {key: value}


def test_tuples_are_lists_and_infinities_are_toml_s():
    assert toml((1, (2.5, "x"))) == '[1, [2.5, "x"]]'
    assert toml([float("inf"), -float("inf")]) == "[inf, -inf]"
