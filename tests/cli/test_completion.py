"""The scripts of `ratrain completion`: bash completes with them; zsh and fish accept them where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from ratrain import cli
from ratrain.config.catalogue import catalogue
from ratrain.config.find import ablations, scales

# as bash does for a TAB after these words
ASK = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
function=$(complete -p ratrain | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$function" ratrain "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of each shell, by its name."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        (folder / shell).write_text(cli.completion.script(shell, cli._every()))
    return folder


@pytest.fixture
def complete(scripts, tmp_path):
    """The words that bash offers for the last of these, in a folder with a run, a study and a manifest."""
    for name in ("runs/v9-tiny-45a3cad6/s1", "runs/studies/gates"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine.toml").touch()
    (tmp_path / "notes.txt").touch()

    def complete(*words: str) -> set[str]:
        command = ["bash", "--norc", "-c", ASK, "bash", str(scripts / "bash"), "ratrain", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return {word for word in done.stdout.splitlines() if word}

    return complete


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_accepts_its_script(shell, scripts):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    done = subprocess.run([shell, "-n", scripts / shell], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sa",), {"sample"}),
        (("--ab",), {"--ablate"}),
        (("runs", "unt"), {"untag"}),
        (("v9", "--sca"), {"--scale"}),
        (("v9", "--device", "c"), {"cpu", "cuda"}),
        (("--ablate", "x.toml", "--am"), {"--amend"}),
        (("completion", "z"), {"zsh"}),
        (("export", "@last", "--to", "n"), {"nanogpt"}),
        (("report", "@"), {"@last"}),
        (("report", "v9-"), {"v9-tiny-45a3cad6/s1"}),
        (("report", "v9-tiny-45a3cad6/s1", "gat"), {"gates"}),
        (("runs", "rm", "v9"), {"v9-tiny-45a3cad6/s1"}),
        (("show", "mi"), {"mine.toml"}),
        (("show", "no"), set()),  # a text file is no manifest
        (("convert", "no"), {"notes.txt"}),
        (("v9", "--out", "ru"), {"runs"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completes(words, offered, complete):
    assert complete(*words) == offered


def test_the_words_of_the_package_are_offered(complete):
    variants = {entry.id for entry in catalogue()}
    assert variants | {name for name in cli._every() if " " not in name} <= complete("")
    assert {name for name in variants if name.startswith("v1")} == complete("v1") == complete("diff", "v0", "v1")
    assert complete("v9", "--scale", "gpt2_1") == {name for name in scales() if name.startswith("gpt2_1")}
    assert complete("--ablate", "abl") == {file.stem for file in ablations()}


@pytest.mark.parametrize("name", sorted(cli._every()))
def test_every_option_of_a_command_is_offered(name, complete):
    parser = cli.argparse.ArgumentParser()
    cli._every()[name].add_arguments(parser)
    known = {word for word, a in parser._option_string_actions.items() if a.help != cli.argparse.SUPPRESS}
    words = ("v9",) if name == "train" else name.split()
    assert {word for word in known if word.startswith("--")} <= complete(*words, "--")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_hold_every_command_and_variant(shell, scripts):
    text = (scripts / shell).read_text()
    words = {word for name in cli._every() for word in name.split()} | {entry.id for entry in catalogue()}
    assert not [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)]


def test_another_shell_is_refused(ratrain):
    code, _, err = ratrain("completion", "tcsh")
    assert code == 2
    assert "'tcsh'" in err
