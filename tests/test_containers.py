"""The Dockerfiles, checked as text: tests have no Docker."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).resolve().parents[1]


def ignored_by(line: str) -> re.Pattern[str]:
    """The paths that a line of .dockerignore leaves out: from the top, or at any depth after `**/`."""
    anywhere = "(.*/)?" if line.startswith("**/") else ""
    return re.compile(anywhere + re.escape(line.removeprefix("**/")).replace(r"\*", "[^/]*") + "(/.*)?$")


@pytest.mark.parametrize("file", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda file: file.name)
class TestContainers:
    @staticmethod
    def steps(file: Path) -> list[tuple[str, str]]:
        """The instructions, each with its text."""
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]

    def test_base_images_are_pinned(self, file):
        bases = [words.split()[0] for step, words in self.steps(file) if step == "FROM"]
        assert bases and all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base) for base in bases)
        tested = re.search(r"on Python (3\.\d+)", (ROOT / "constraints.txt").read_text())[1]
        assert all(base.startswith(f"python:{tested}.") for base in bases)

    def test_what_is_copied_exists_and_is_not_ignored(self, file):
        ignored = (ROOT / ".dockerignore").read_text().split()
        copied = [words.split() for step, words in self.steps(file) if step == "COPY"]
        sources = [word for words in copied if not words[0].startswith("--from") for word in words[:-1]]
        assert sources and all((ROOT / source).exists() and source not in ignored for source in sources)
        stages = {words.split()[-1] for step, words in self.steps(file) if step == "FROM" and " AS " in words}
        assert {words[0].removeprefix("--from=") for words in copied if words[0].startswith("--from")} == stages

    def test_what_the_build_needs_is_not_ignored(self, file):
        folder = [file for file in (ROOT / "ratrain").rglob("*") if "__pycache__" not in file.parts]
        needed = [str(file.relative_to(ROOT)) for file in folder] + [
            "pyproject.toml",
            "setup.py",
            "README.md",
            "NOTICE",
        ]
        ignored = [ignored_by(line) for line in (ROOT / ".dockerignore").read_text().split()]
        assert not [name for name in needed if any(pattern.match(name) for pattern in ignored)]

    def test_versions_are_the_tested_ones_and_extras_exist(self, file):
        installs = [words for step, words in self.steps(file) if step == "RUN" and "pip install" in words]
        assert installs and all(" -c /opt/ratrain/constraints.txt " in words for words in installs)
        named = [found for words in installs for found in re.findall(r"\[([\w,]+)\]", words)]
        extras = {*",".join(named).split(",")}
        project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert extras and extras <= {*project["optional-dependencies"]}

    def test_the_command_is_ratrain_and_its_user_is_not_root(self, file):
        steps = self.steps(file)
        assert [words for step, words in steps if step == "USER"] == ["ratrain"]
        assert ("ENTRYPOINT", '["ratrain"]') in steps
        user, entry = (
            next(at for at, (step, _) in enumerate(steps) if step == name) for name in ("USER", "ENTRYPOINT")
        )
        assert max(at for at, (step, _) in enumerate(steps) if step == "RUN") < user < entry

    def test_the_lines_of_shell_are_well_formed(self, file):
        for step, words in self.steps(file):
            if step == "RUN":
                done = subprocess.run(["sh", "-n", "-c", words], capture_output=True, text=True)
                assert (done.returncode, done.stderr) == (0, "")
