"""Every block and every command of the README and of docs/ does what the page says, or is known to the parser."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
import tomli
import torch
import yaml

import ratrain
from ratrain.ablation.ladder.manifest import find_ladder
from ratrain.ablation.ladder.plan import make_ladder
from ratrain.ablation.manifest import find_ablation
from ratrain.ablation.plan import make_plan
from ratrain.cli import commands, main, parser_of, split
from ratrain.plugins import offered
from tests.docs.blocks import LANGUAGES, PAGES, ROOT, blocks, blocks_of, name_of, spans
from tests.docs.lines import PARSED_ONLY, refusal, tiny, why_parsed_only, words_of

CONSOLE = blocks("console")
LINES = [(block, line) for block in CONSOLE for line in block.lines]
OURS = [(block, line) for block, line in LINES if words_of(line) is not None]
RUN = [(block, line) for block, line in OURS if not (block.not_run or why_parsed_only(line))]
TUTORIAL = [page for page in PAGES if page.parent.name == "tutorial"]
ALONE = [(block, line) for block, line in RUN if block.page not in TUTORIAL]
QUICK = 'scale="tiny", overrides=["compile.scope=off", "train.budget={steps=2}", "eval.windows=2"]'


def label(found):
    return str(found) if not isinstance(found, tuple) else f"{found[0]}: {found[1]}"


def done(line: str) -> str:
    """The stdout of a line, run in this process in its tiny form; a redirection is followed."""
    said = io.StringIO()
    words = tiny(words_of(line))
    with contextlib.redirect_stdout(said):
        code = main(words)
    assert code == 0, f"{shlex.join(words)}: exit code {code}"
    _, redirected, file = line.partition(" > ")
    if redirected:
        Path(file).write_text(said.getvalue())
    return said.getvalue()


# every block and line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_language_that_decides_its_test(page):
    assert not [str(block) for block in blocks_of(page) if block.language not in LANGUAGES]
    assert page.read_text().count("```") == 2 * len(blocks_of(page))


@pytest.mark.parametrize("block", blocks("text"), ids=str)
def test_no_command_hides_in_a_block_of_output(block):
    assert not [line for line in block.text.splitlines() if re.match(r"(ratrain|make|python|pip) ", line)]


@pytest.mark.parametrize("block", CONSOLE, ids=str)
def test_every_line_of_commands_is_one(block):
    texts = [line for line in block.text.splitlines() if line.strip()]
    assert len(block.lines) == len(texts)


@pytest.mark.parametrize("found", OURS, ids=label)
def test_every_command_is_taken_by_its_parser(found):
    assert refusal(words_of(found[1])) is None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_a_sentence_is_taken_by_its_parser(page):
    assert not [(span, why) for span in spans(page) if (why := refusal(words_of(span), named=True))]


def test_the_page_of_commands_names_every_command():
    text = (ROOT / "docs" / "commands.md").read_text()
    groups = {name.split()[0] for name in commands()} - {"train"}
    assert not [name for name in groups if f"ratrain {name} " not in text]


def test_the_parsers_refuse_an_option_that_does_not_exist():
    assert "unrecognized arguments: --colour" in str(refusal(["v9", "--colour"]))
    assert "invalid choice" in str(refusal(["export", "@last", "--to", "tensorflow"]))


def test_every_reason_not_to_run_has_its_line():
    lines = [line for _, line in LINES]
    assert not [pattern for pattern in PARSED_ONLY if not any(re.search(pattern, line) for line in lines)]


@pytest.mark.parametrize("found", [found for found in LINES if words_of(found[1]) is None], ids=label)
def test_the_targets_modules_and_extras_of_other_lines_exist(found):
    words = [word for word in shlex.split(found[1]) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "make":
        targets = re.findall(r"^([\w%-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wanted = [word for word in words[1:] if word not in ("&&", "make")]
        assert not [word for word in wanted if word not in targets and not word.startswith("defconfig-")]
    elif words[:2] == ["python", "-m"]:
        assert words[2] == "ratrain.legacy.train"
        from ratrain.legacy.readers.command_line import parser

        parser().parse_args(words[3:])
    elif words[0] == "pip":
        extras = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert not {*re.findall(r"\[(.*)\]", words[-1])} - {*extras}
    elif words[:2] == ["docker", "build"]:
        assert (ROOT / words[words.index("-f") + 1]).is_file()
    elif words[:2] == ["docker", "run"]:
        image = next(at for at, word in enumerate(words) if word.partition(":")[0] == "ratrain")
        assert refusal(words[image + 1 :]) is None
    elif words[0] == "eval":
        assert refusal(words_of(words[1].removeprefix("$(").removesuffix(")"))) is None
    else:
        assert words[0] in ("source", "bash", "git")


# blocks of other languages


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_manifest_is_built_and_a_study_is_resolved(block, place):
    folder = place(block.page)
    tree = tomli.loads(block.text)
    if "project" in tree:  # of a package with mechanisms
        assert {*tree["project"]["entry-points"]} <= {"ratrain.patches"} and offered("ratrain.patches")
        return
    file = folder / "block.toml"
    if "rungs" in tree:
        file.write_text(block.text)
        assert len(make_ladder(file).rungs) >= 4
        return
    if {"arm", "arms"} & {*tree}:
        file.write_text(block.text)
        plan = make_plan(find_ablation(str(file)), scale="tiny")
        assert len(plan.arms) > 1
        return
    head = "" if "id" in tree else 'id = "block"\nextends = "gpt2.toml"\n'
    file.write_text(head + block.text)
    assert {*tree.get("patch", {})} <= {*ratrain.load(file, scale="tiny").manifest.patch}


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block, place, capsys):
    place(block.page)
    code = compile(block.text.replace('scale="tiny")  # trains', f"{QUICK})  # trains"), str(block), "exec")
    exec(code, {"__name__": "page"})
    if "print(" in block.text:
        assert re.search(r"^\d\.\d+$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if "\n# my_idea.toml\n" in page.read_text()], ids=name_of)
def test_the_mechanism_of_the_page_is_the_base_model_while_switched_off(page, place):
    place(page)
    mine, base = ratrain.load("my_idea.toml", scale="tiny").model, ratrain.load("gpt2", scale="tiny").model
    tokens = torch.arange(16)[None]
    for name, buffer in mine.named_buffers():
        if name.endswith(".s"):
            buffer.zero_()
    assert torch.equal(mine.logits(tokens), base.logits(tokens))
    assert any(name.endswith("heat") for name, _ in mine.named_parameters())


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_task(block):
    assert {"task", "dataset_path", "doc_to_target", "metric_list"} <= {*yaml.safe_load(block.text)}


# commands


@pytest.mark.parametrize("found", [found for found in OURS if found not in RUN], ids=label)
def test_a_command_that_is_not_run_names_manifests_that_resolve(found, place):
    """The first words of a command that trains are manifests, ideas or a study: those are resolved."""
    block, line = found
    place(block.page)
    command, rest = split(words_of(line))
    args = parser_of(command).parse_args(rest)
    if why_parsed_only(line) == "names no file":
        return
    if command == "--ablate":
        assert make_plan(find_ablation(args.file), scale="tiny").arms
    elif command == "--ladder":
        assert make_ladder(find_ladder(args.file)).rungs
    elif command in ("train", "try"):
        keys = [key for key in args.set if not key.startswith("log.trackers")]
        for name in getattr(args, "ideas", None) or [args.manifest]:
            assert ratrain.read_manifest(name, scale=args.scale, overrides=keys).manifest.id


@pytest.mark.slow
@pytest.mark.parametrize("found", ALONE, ids=label)
def test_a_command_runs(found, place):
    place(found[0].page)
    done(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIAL, ids=name_of)
def test_the_commands_of_a_tutorial_run_one_after_another(page, place):
    place(page)
    for block in blocks_of(page):
        for line in block.lines if block.language == "console" and not block.not_run else ():
            if words_of(line) is not None and not why_parsed_only(line):
                assert done(line)
