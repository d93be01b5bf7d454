"""The bug zoo: planted faults, one a file, and honest models that nothing may be said against.

    python tests/zoo/zoo.py [NAME ...] [--write]

runs every contract of `ratrain verify`, the preflight of a study and `ratrain audit` on them, and prints what each
says. --write puts the table into docs/zoo.md. Exits with 1 where a plant passes its tool or an honest model does not.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ratrain.audit.audit import audit
from ratrain.audit.source import find_target
from ratrain.config.read import read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import Manifest
from ratrain.contracts import SMALL, contracts
from ratrain.contracts.meaning import breaches
from ratrain.contracts.verify import verify
from ratrain.registry import optim_kinds, patch_kinds

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "zoo.md"
PATCHES, DECODERS = {"patches": True, "honest": False}, {"decoders": True, "honest_decoders": False}


def names(folder: str) -> list[str]:
    """Of the models of a folder."""
    return sorted(file.stem for file in (HERE / folder).glob("*.py") if not file.stem.startswith("_"))


def manifest_of(name: str, folder: str = "patches") -> Manifest:
    """GPT-2 with the mechanism, at the contracts' sizes."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / f"{name}.toml"
        file.write_text(f'id = "{name}"\nextends = "gpt2.toml"\n\n[patch.{name}]\n')
        source = read_source(file, scale="tiny", overrides=SMALL)
        return resolve(source, patches=patch_kinds([HERE / folder]), optimizers=optim_kinds())


def broken(name: str, folder: str = "patches") -> dict[str, str]:
    """The contracts that a mechanism breaks, and how."""
    return {one.claim: one.fault for one in verify(manifest_of(name, folder)) if one.fault}


def fault(name: str, claim: str) -> str | None:
    """How a mechanism breaks one contract; whatever is raised counts, as in `ratrain verify`."""
    try:
        contracts()[claim](manifest_of(name))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def stopped(name: str, folder: str = "patches") -> str | None:
    """What the preflight of a study says of an arm with the mechanism."""
    try:
        return next(breaches(manifest_of(name, folder)), None)
    except Exception as error:  # it does not even run, which a study says as well
        return f"{type(error).__name__}: {error}"


def audited(name: str, folder: str = "decoders") -> dict[str, str]:
    """What `ratrain audit` says against a decoder: broken claims; of a plant also warnings, which leave it sound."""
    found = audit(find_target(f"{HERE / folder / name}.py:Model"), {})
    counted = ("BROKEN", "warning") if DECODERS[folder] else ("BROKEN",)
    return {one.claim: one.detail for one in found.findings if one.verdict in counted}


def caught_by(name: str, folder: str = "patches") -> str:
    """The claim that its file says it breaks."""
    return (HERE / folder / f"{name}.py").read_text().partition('CAUGHT_BY = "')[2].partition('"')[0]


def fault_of(name: str, folder: str) -> tuple[str, str]:
    """What is wrong with it, and where that has happened: the two paragraphs of its docstring."""
    text = (HERE / folder / f"{name}.py").read_text().split('"""')[1]
    fault, _, source = text.strip().partition("\n\n")
    return " ".join(fault.split()), " ".join(source.split()).removeprefix("Modelled on ")


@dataclass(frozen=True)
class Seen:
    """One model of the zoo, and what was said against it by each tool that looks at its kind."""

    name: str
    folder: str
    said: dict[str, str]

    @property
    def planted(self) -> bool:
        return {**PATCHES, **DECODERS}[self.folder]

    @property
    def right(self) -> bool:
        """Whether its own tool catches the plant for what it is, or leaves the honest one alone."""
        tool = "audit" if self.folder in DECODERS else "verify"
        wanted = caught_by(self.name, self.folder) if self.planted else ""
        return wanted in self.said[tool] if self.planted else not self.said[tool]


def look(chosen: list[str]) -> Iterator[Seen]:
    """At all of the zoo, or at those chosen."""
    for folder in (*PATCHES, *DECODERS):
        for name in names(folder):
            if chosen and name not in chosen and folder not in chosen:
                continue
            if folder in DECODERS:
                said = {"audit": "; ".join(audited(name, folder))}
            else:
                said = {"verify": "; ".join(broken(name, folder)), "preflight": stopped(name, folder) or ""}
            yield Seen(name, folder, said)


def table(all_seen: list[Seen]) -> str:
    """Caught and called wrongly by each tool, then a line a plant."""
    lines = ["| tool | plants caught | honest models that it speaks against |", "|---|---|---|"]
    for tool in ("verify", "preflight", "audit"):
        of = [one for one in all_seen if tool in one.said]
        plants, honest = ([one for one in of if one.planted is kind] for kind in (True, False))
        caught, wrong = sum(bool(one.said[tool]) for one in plants), sum(not one.right for one in honest)
        lines.append(f"| {tool} | {caught} of {len(plants)} ({caught / len(plants):.0%}) | {wrong} of {len(honest)} |")
    for folder, tool in (("patches", "verify"), ("decoders", "audit")):
        lines += ["", f"### {folder}", "", f"| plant | fault | modelled on | {tool} |", "|---|---|---|---|"]
        for one in (one for one in all_seen if one.folder == folder):
            fault, source = fault_of(one.name, folder)
            also = "" if folder == "decoders" or not one.said["preflight"] else "; the preflight too"
            lines.append(f"| `{one.name}` | {fault} | {source} | {caught_by(one.name, folder)}{also} |")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    all_seen = []
    for one in look([word for word in words if word != "--write"]):
        all_seen.append(one)
        print("ok  " if one.right else "MISS", one.folder, one.name, one.said, flush=True)
    if "--write" in words:
        text = PAGE.read_text()
        begin, end = text.index("<!-- table -->"), text.index("<!-- end -->")
        PAGE.write_text(f"{text[:begin]}<!-- table -->\n\n{table(all_seen)}\n\n{text[end:]}")
    return 0 if all(one.right for one in all_seen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
