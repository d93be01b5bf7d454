"""What a command imports before it answers: modules are counted, not seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from ratrain.errors import Exit
from ratrain.kernels import placement

# the process tells at its end what it has imported; what it is to do without is installed, but cannot be imported, or
# is not to be found, as if it were not installed
RUN = """
import json, sys
from importlib.machinery import ModuleSpec, PathFinder

class Refused:
    names = json.loads(sys.argv[1])
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in self.names else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise ImportError(f"{module.__name__} is refused")

absent, find_spec = json.loads(sys.argv[3]), PathFinder.find_spec

def found(cls, name, *rest):
    return None if name.partition(".")[0] in absent else find_spec(name, *rest)

PathFinder.find_spec = classmethod(found)
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


def run(*argv: str, without=(), absent=()) -> tuple[int, str, list[str]]:
    """Its exit code, stdout, and lines of stderr, the last of them the modules."""
    words = [json.dumps(list(without)), json.dumps(list(argv)), json.dumps(list(absent))]
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


GUARDED = 'id = "g"\nbase = "v0"\nscale = "tiny"\narms = ["v9"]\nseed.init = [1, 2, 3]\nguard = ["arc_easy"]\n'


@pytest.mark.parametrize(
    ("extra", "absent", "argv"),
    [
        ("trackers", "tensorboard", ["v9", *QUICK, "--set", 'log.trackers=["tensorboard"]']),
        ("trackers", "wandb", ["v9", *QUICK, "--set", 'log.trackers=["wandb"]']),
        ("trackers", "trackio", ["v9", *QUICK, "--set", 'log.trackers=["trackio"]']),
        ("trackers", "wandb", ["v9", *QUICK, "--dry-run", "--set", 'log.trackers=["wandb"]']),
        ("ray", "ray", ["--ablate", "ablation", "--scale", "tiny", "--pool", "ray"]),
        ("datasets", "datasets huggingface_hub pyarrow", ["prepare", "tinystories"]),
        ("datasets", "datasets huggingface_hub pyarrow", ["prepare", "table.parquet", "--out", "shards"]),
        ("eval", "lm_eval", ["eval", "@last", "--tasks", "arc_easy"]),
        ("eval", "lm_eval", ["--ablate", "guarded.toml", "--set", "compile.scope=off"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_without_its_package_a_feature_tells_in_one_line_how_to_install_it(extra, absent, argv, tmp_path):
    (tmp_path / "guarded.toml").write_text(GUARDED)
    (tmp_path / "table.parquet").touch()
    code, _, told = run(*argv, absent=absent.split())
    assert code == Exit.UNAVAILABLE
    (message,) = (line for line in told[:-1] if not line.endswith("loading torch"))
    assert message.startswith("ratrain: ") and f"pip install 'ratrain[{extra}]'" in message
    assert not list(tmp_path.glob("runs/*/s1/checkpoints/*"))


def test_without_matplotlib_results_are_told_and_figures_are_not_drawn(tmp_path):
    assert run("v9", *QUICK, "--device", "cpu")[0] == Exit.DONE
    for argv in (["report", "v9"], ["prune-eval", "v9", "--keep", "0.5", "--rule", "mass", "--device", "cpu"]):
        code, out, told = run(*argv, absent=["matplotlib"])
        assert (code, told[:-1]) == (Exit.DONE, ["warning: figures need matplotlib; pip install 'ratrain[plots]'"])
        assert "v9-tiny" in out
    (run_folder,) = tmp_path.glob("runs/*/s1")
    page = (run_folder / "report.html").read_text()
    assert "pip install &#39;ratrain[plots]&#39;" in page and "<img" not in page and "w_rec" in page
    assert not list(run_folder.glob("figures/*"))
    assert len(json.loads((run_folder / "prune-eval.json").read_text())) == 2  # dense, and the rule


def test_a_run_and_its_export_need_no_extra(tmp_path):
    absent = ["matplotlib", "tensorboard", "wandb", "trackio", "ray", "datasets", "tokenizers", "pyarrow", "pynvml"]
    absent += ["lm_eval", "transformers", "huggingface_hub"]
    assert run("v9", *QUICK, "--device", "cpu", absent=absent)[0] == Exit.DONE
    for form in ("ratrain", "hf", "nanogpt"):
        code, _, told = run("export", "v9", "--to", form, absent=absent)
        assert (code, told[:-1]) == (Exit.DONE, [])


def test_completion_imports_no_torch():
    code, out, told = run("completion", "bash", without=["torch", "triton", "scipy"])
    assert (code, told[:-1]) == (Exit.DONE, [])
    assert "complete -o bashdefault" in out
