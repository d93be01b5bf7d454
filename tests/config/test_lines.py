"""The scanner of lines against TOML itself: cut the line out, and the key is gone."""

from __future__ import annotations

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from ratrain.config.find import shipped
from ratrain.config.lines import key_lines
from ratrain.config.read import find_manifest
from ratrain.config.toml import dotted, quoted

TRICKY = '''\
# a = 1
title = "# no comment, [no.table]\\" = 3"
path = 'C:\\temp'
text = """
[fake]
fake = 1 \\""" still "quotes" ""
"""
raw = \'\'\'
[fake2]
it''s = 2\'\'\'
list = [
  1, # "unbalanced
  [2, 3],
  "]",
]
inline = { a = 1, b.c = { d = [ 1, 2 ], e = "}" }, f = 2 }
many = [ { x = 1 }, { y = 2 } ]
after = 1
"quoted key" = 1
'literal.key' = 2
1234 = 3
3.14 = "pi"
when = 1979-05-27T07:32:00Z
dot . ted . "k\\u0065y" = 1

[table] # comment
x = 1
[ table . sub ]
y = 2
[[array]]
z = 1
[[array]]
w = 2
'''

WORDS = st.text("ab-_1", min_size=1, max_size=2)
SPELLINGS = st.one_of(WORDS, WORDS.map(lambda word: f'"{word}"'), WORDS.map(lambda word: f"'{word}.'"))
VALUES = st.sampled_from(
    [
        "1",
        '"a=1"',
        "'[t]'",
        '"""\nq = 1\n"""',
        "'''\n[t]\n'''",
        "[1,\n 2]",
        '["]", "#",\n]',
        "{ c = 1, d.e = [2] }",
        "1.5",
    ]
)
ENTRIES = st.one_of(
    st.tuples(st.lists(SPELLINGS, min_size=1, max_size=3), VALUES).map(
        lambda kv: f"{'.'.join(kv[0])} = {kv[1]} # x = 1"
    ),
    st.lists(SPELLINGS, min_size=1, max_size=3).map(lambda parts: f"[{' . '.join(parts)}]"),
    st.sampled_from(["", "# [c]", "  # k = 1"]),
)


def leaves(value, key=()):
    if not isinstance(value, dict):
        return {key}
    return {key}.union(*(leaves(child, (*key, name)) for name, child in value.items())) if value else {key}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_tricky_toml_has_every_key_on_its_line(newline):
    text = TRICKY.replace("\n", newline)
    lines = key_lines(text)
    assert {key for key in lines if key[0] not in ("many", "array")} == {
        key for key in leaves(tomli.loads(text)) - {()} if key[0] not in ("many", "array")
    }
    written = TRICKY.split("\n")
    for key, start in {
        ("after",): "after",
        ("table", "sub", "y"): "y",
        ("array", "w"): "w",
        ("quoted key",): '"q',
    }.items():
        assert written[lines[key] - 1].startswith(start)
    assert lines["inline", "b", "c", "e"] == lines["inline",]
    assert written[lines["dot", "ted", "key"] - 1].startswith("dot")


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.lists(ENTRIES, max_size=8))
def test_the_scanner_finds_the_keys_that_the_parser_finds(entries):
    text = "\n".join(entries)
    try:
        tree = tomli.loads(text)
    except tomli.TOMLDecodeError:
        return
    assert set(key_lines(text)) == leaves(tree) - {()}


@pytest.mark.parametrize("file", shipped(), ids=lambda file: file.stem)
def test_a_key_goes_when_its_line_is_cut(file):
    text = file.read_text()
    for key, line in key_lines(text).items():
        rest = text.split("\n")
        assert rest[line - 1].lstrip().startswith((key[-1], "[", key[0])) or "{" in rest[line - 1]
        if not rest[line - 1].startswith("["):
            del rest[line - 1]
            assert key not in key_lines("\n".join(rest))


def test_a_dotted_key_reads_back_as_its_parts():
    for parts in [("a", "b"), ("a.b", 'c"d'), ("", "\x7f\n"), ("é",)]:
        tree = tomli.loads(f"{dotted(parts)} = 1")
        assert leaves(tree) >= {parts}


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_quoted_string_reads_back(text):
    assert tomli.loads(f"v = {quoted(text)}")["v"] == text


def test_the_base_is_shipped():
    assert find_manifest("gpt2") in shipped()
