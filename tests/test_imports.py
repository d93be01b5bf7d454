"""What a command imports before it answers: modules are counted, not seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from ratrain.errors import Exit
from ratrain.kernels import placement

# the process tells at its end what it has imported; what it is to do without is installed, but cannot be imported
RUN = """
import json, sys
from importlib.machinery import ModuleSpec

class Refused:
    names = json.loads(sys.argv[1])
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in self.names else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise ImportError(f"{module.__name__} is refused")

sys.meta_path.insert(0, Refused())
from ratrain.cli import main
try:
    code = main(json.loads(sys.argv[2]))
finally:
    print(json.dumps([*sys.modules]), file=sys.stderr)
sys.exit(code)
"""
HEAVY = ("torch", "numpy", "scipy", "triton", "safetensors", "rich", "matplotlib", "jinja2")
QUICK = ["--scale", "tiny", "--set", "compile.scope=off", "--set", "train.budget={steps=2}", "--set", "eval.windows=2"]


def run(*argv: str, without=()) -> tuple[int, str, list[str]]:
    """Its exit code, stdout, and lines of stderr, the last of them the modules."""
    words = [json.dumps(list(without)), json.dumps(list(argv))]
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["list"], Exit.DONE),
        (["show", "v9"], Exit.DONE),
        (["show", "l6", "--base", "modern"], Exit.DONE),
        (["diff", "v1", "c1"], Exit.DONE),
        (["schema"], Exit.DONE),
        (["v9", "--set", "learning_rate=1"], Exit.BAD_MANIFEST),
        (["v9", "--set", "patch.unified_ra.rnk=1", "--devices", "2"], Exit.BAD_MANIFEST),
        (["check", "v9", "--set", "schedule.lr=-1"], Exit.BAD_MANIFEST),
        (["profile", "v9", "--set", "schedule.lr=-1"], Exit.BAD_MANIFEST),
        (["widen", "v9", "--set", "schedule.lr=-1"], Exit.BAD_MANIFEST),
        (["--ablate", "ablation", "--set", "schedule.lr=-1"], Exit.BAD_MANIFEST),
        (["verify", "v9", "--set", "schedule.lr=-1"], Exit.BAD_MANIFEST),
        (["smoke", "v9", "v99", "--set", "schedule.lr=-1"], Exit.BAD_MANIFEST),
        (["v99"], Exit.MISSING),
        (["verify", "v99"], Exit.MISSING),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_look_and_a_refusal_import_nothing_heavy(argv, code):
    got, _, told = run(*argv, without=HEAVY)
    assert got == code, told[:-1]
    assert len(json.loads(told[-1])) < 400
    of_legacy = [name for name in json.loads(told[-1]) if name.startswith("ratrain.legacy")]
    assert not of_legacy or "l6" in argv or argv == ["schema"]  # which name mechanisms of legacy


def test_only_a_name_of_legacy_loads_it(tmp_path):
    for argv in (["v9", *QUICK, "--device", "cpu"], ["report", "@last"], ["runs"], ["check", "v9"], ["v99"]):
        _, _, told = run(*argv)
        assert not [name for name in json.loads(told[-1]) if name.startswith("ratrain.legacy")], argv
    (tmp_path / "metrics.json").write_text("{}")
    defconfig = ["legacy/defconfigs/gpt2-vanilla-baseline", "--set", "a=1"]
    for argv in (["convert", "no_file"], ["report", "metrics.json"], defconfig):
        assert [name for name in json.loads(run(*argv)[2][-1]) if name.startswith("ratrain.legacy.commands")], argv


def test_a_run_that_is_done_is_known_without_torch(tmp_path):
    assert run("v9", *QUICK, "--device", "cpu")[0] == Exit.DONE
    for more in ([], ["--devices", "2"], ["--json"]):
        code, out, told = run("v9", *QUICK, *more, without=HEAVY)
        assert (code, "done" in out) == (Exit.DONE, True), told[:-1]
    (file,) = tmp_path.glob("runs/*/s1/code.json")
    file.write_text(
        file.read_text().replace('"ratrain/patches/unified_ra.py": "', '"ratrain/patches/unified_ra.py": "0')
    )
    code, _, told = run("v9", *QUICK, without=HEAVY)
    assert (code, told[0].split(":")[0]) == (Exit.BAD_MANIFEST, "ratrain/patches/unified_ra.py")


@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_run_speaks_before_torch_is_imported(devices):
    code, out, told = run("v9", *QUICK, "--devices", devices, without=["torch"])
    assert (code, out) == (1, "v9, tiny scale: loading torch\n")
    assert told[-1] == "ImportError: torch is refused"


def test_check_imports_no_compiler():
    code, _, told = run("check", "v9", "c1", "recip3", without=["torch._dynamo", "torch._inductor", "triton"])
    assert code == Exit.DONE, told[:-1]


def test_the_mark_of_a_constant_is_all_that_torch_would_set():
    """The kernels set it themselves, so that they need not import the compiler."""

    def marked():
        pass

    assert vars(torch.compiler.assume_constant_result(marked)) == vars(placement._has_tile)
