"""The documentation site: its reference holds every key, command and name, and nothing of it is fetched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import tomli
import yaml

import ratrain
from ratrain import api
from ratrain.ablation.ladder.manifest import LadderManifest
from ratrain.ablation.manifest import AblationManifest
from ratrain.cli import commands, main
from ratrain.config.schema import Manifest
from ratrain.registry import optim_kinds, patch_kinds
from tests.docs.blocks import PAGES, ROOT


@pytest.fixture(scope="module")
def hooks():
    """The modules of docs/hooks, as MkDocs imports them."""
    pytest.importorskip("mkdocs")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs" / "hooks"))
        import site_hooks

        yield site_hooks


def keys(schema, defs, path=""):
    """The paths of all keys of a JSON schema."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}{name}"
        for part in (child, *child.get("anyOf", ()), child.get("additionalProperties", False)):
            if isinstance(part, dict) and "$ref" in part:
                many = "NAME." if part is child.get("additionalProperties") else ""
                yield from keys(defs[part["$ref"].rpartition("/")[2]], defs, f"{path}{name}.{many}")


def listed(page):
    """The paths of all keys in the tables of a page."""
    path = ""
    for line in page.splitlines():
        if heading := re.match(r"#+ `\[(.*)\]`$", line):
            path = f"{heading[1]}."
        elif row := re.match(r"\| `(\w+)` \|", line):
            yield f"{path}{row[1]}"


@pytest.mark.parametrize(
    ("page", "model"), [("manifest", Manifest), ("study", AblationManifest), ("ladder", LadderManifest)]
)
def test_the_reference_has_every_key(hooks, page, model):
    schema = model.model_json_schema()
    wanted = {*keys(schema, schema["$defs"])}
    assert len(wanted) > 20
    found = [*listed(hooks.PAGES[f"reference/{page}.md"]())]
    assert {*found} - {"optim.weight_decay", "optim.clip"} == wanted
    assert len(found) == len({*found})


@pytest.mark.parametrize(("page", "kinds"), [("patches", patch_kinds()), ("optimizers", optim_kinds())])
def test_the_reference_has_every_kind_with_its_options(hooks, page, kinds):
    text = hooks.PAGES[f"reference/{page}.md"]()
    parts = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert {*parts} == {*kinds}
    common = {"target", "activation", "weight_decay", "clip"}
    for kind, part in parts.items():
        assert not [name for name in {*kinds[kind].model_fields} - common if f"\n| `{name}` |" not in part]


def test_a_row_states_type_bounds_default_and_meaning(hooks):
    page = hooks.PAGES["reference/manifest.md"]()
    assert "| `dropout` | number >= 0 and < 1 | `0.0` |" in page
    assert '| `norm` | `"layer"`, `"rms"` | `"layer"` |' in page
    assert "| `every` | integer >= 0 | `0` | steps between checkpoints; 0: only at the end |" in page
    assert "| `warmup` | table | `{ fraction = 0.02 }` |" in page


def test_the_reference_has_the_help_of_every_command(hooks, capsys, monkeypatch):
    page = hooks.PAGES["reference/commands.md"]()
    assert [*re.findall(r"^## `ratrain ([^`]+)`", page, re.MULTILINE)][1:] == commands()[1:]
    monkeypatch.setenv("COLUMNS", "110")
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert capsys.readouterr().out in page


def test_the_reference_has_every_public_name(hooks):
    page = hooks.PAGES["reference/python.md"]()
    assert re.findall(r"^## `(\w+)`", page, re.MULTILINE) == api.__all__
    assert "ratrain.read_run(run: Pathlike, *, out: Pathlike = runs) -> RunLog" in page


def test_only_links_out_of_docs_become_paths(hooks):
    held = {"studies.md", "modules/gru.toml"}
    for text, wanted in {
        "[studies](studies.md#guards)": "[studies](studies.md#guards)",
        "[a GRU](modules/gru.toml)": "[a GRU](modules/gru.toml)",
        "[ratrain/plugins.py](../ratrain/plugins.py)": "`ratrain/plugins.py`",
        "[the log](../LOG.md)": "the log (`LOG.md`)",
        "[modules](modules)": "modules (`docs/modules`)",
        "[there](https://example.org)": "[there](https://example.org)",
        "[a page that is gone](gone.md)": "[a page that is gone](gone.md)",
    }.items():
        assert hooks.plain_links(text, "mechanisms.md", held) == wanted


class Loads(HTMLParser):
    """Collects what a browser fetches to show a page."""

    def __init__(self):
        super().__init__()
        self.places: list[str] = []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.places.append(named.get("src") or "")
        elif tag == "link" and named.get("rel") != "canonical":
            self.places.append(named.get("href") or "")


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = [page for page in (tmp_path / "site").rglob("*.html") if page.parent.name not in ("series", "performance")]
    assert len(pages) > 25
    for page in pages:
        reader = Loads()
        reader.feed(page.read_text())
        assert reader.places and not [place for place in reader.places if re.match(r"(https?:)?//", place)]
    styles = "".join(style.read_text() for style in (tmp_path / "site").rglob("*.css"))
    assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", styles)


# the project's files


def test_the_citation_names_the_version_and_the_licence_of_the_package():
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == ratrain.__version__
    assert citation["license"] == project["license"]
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= {*citation}
    assert all({"name"} == {*author} for author in citation["authors"])


def test_the_changelog_has_the_form_of_keep_a_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert re.search(r"^## \[Unreleased\]$", text, re.MULTILINE)
    assert {*re.findall(r"^### (.*)$", text, re.MULTILINE)} <= kinds
    assert not re.findall(r"^## (?!\[(?:Unreleased|\d+\.\d+\.\d+)\])", text, re.MULTILINE)


def test_every_page_has_a_place_in_the_navigation():
    def leaves(node):
        if isinstance(node, str):
            return [node]
        return [leaf for child in (node.values() if isinstance(node, dict) else node) for leaf in leaves(child)]

    navigation = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert not docs - {*navigation}
    assert len(navigation) == len({*navigation})
