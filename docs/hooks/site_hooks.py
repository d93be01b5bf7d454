"""The site's hooks of MkDocs: the reference is generated from the code, and links out of docs/ become plain paths."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

import command_pages
import manifest_pages
import python_pages
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "reference/manifest.md": manifest_pages.manifest,
    "reference/study.md": manifest_pages.study,
    "reference/ladder.md": manifest_pages.ladder,
    "reference/patches.md": manifest_pages.patches,
    "reference/optimizers.md": manifest_pages.optimizers,
    "reference/commands.md": command_pages.commands,
    "reference/python.md": python_pages.interface,
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, *, config):
    """Adds the generated pages."""
    for place, page in PAGES.items():
        files.append(File.generated(config, place, content=page()))
    return files


def on_page_markdown(markdown, *, page, config, files):
    """Replaces links to the source, and to folders: the site holds neither."""
    return plain_links(markdown, page.file.src_uri, {file.src_uri for file in files})


def plain_links(markdown: str, page: str, held: set[str]) -> str:
    """Returns the text of `page` with a path as code for each link to a file of the repository not in `held`.

    A link whose target does not exist stays, so that MkDocs warns of it.
    """

    def plain(link: re.Match[str]) -> str:
        text, target, _ = link.groups()
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if "://" in target or place.removeprefix("docs/") in held or not os.path.exists(ROOT / place):
            return link[0]
        return f"`{place}`" if text.strip("`") == place else f"{text} (`{place}`)"

    return _LINK.sub(plain, markdown)
