"""What every test shares: a cache apart from the user's, shipped manifests at the tiny scale, the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ratrain.cli import main
from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.registry import optim_kinds, patch_kinds

_TESTS = Path(__file__).parent


def pytest_addoption(parser):
    words = "leave out slow and thorough tests, and skip those that start a process or compile with Inductor"
    parser.addoption("--fast", action="store_true", help=words)


def pytest_collection_modifyitems(config, items):
    if config.getoption("fast"):
        left = [item for item in items if not (item.get_closest_marker("slow") or item.get_closest_marker("thorough"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(left)])
        items[:] = left


@pytest.fixture(scope="session", autouse=True)
def no_processes(request):
    """With --fast: a test that starts a process or compiles with Inductor is skipped when it does."""
    if not request.config.getoption("fast"):
        yield
        return

    def skip(*_args, **_kwargs):
        pytest.skip("starts a process or compiles; `make test` runs it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subprocess.Popen.__init__", skip)
        patch.setattr("multiprocessing.process.BaseProcess.start", skip)
        patch.setattr("os.fork", skip)
        patch.setattr("torch._inductor.compile_fx.compile_fx", skip)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The shapes here are too small to share, and test processes side by side would fight for the cores."""
    torch.set_num_threads(1)


# folders whose tests launch runs in this process
_TRAINING = {"docs", "engine", "machine", "profile", "run", "storage", "tasks"}


@pytest.fixture(autouse=True)
def after_training(request, monkeypatch, tmp_path):
    """Undoes what a run sets in its process: determinism, compiled code, Inductor's folder. Its sample is short."""
    if not _TRAINING & {*request.path.relative_to(_TESTS).parts}:
        yield
        return
    monkeypatch.setattr("ratrain.engine.engine._SAMPLE_TOKENS", 2)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


@pytest.fixture
def all_in_float64():
    """Models, learning rates and sums that no line gives another dtype: in fp32 two runs part by the order of a sum."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def tiny_source():
    """The merged file of a shipped variant at the tiny scale, uncompiled unless the overrides say otherwise."""

    def tiny_source(name: str = "gpt2", *overrides: str, scale: str = "tiny"):
        return read_source(find_manifest(name), scale=scale, overrides=["compile.scope=off", *overrides])

    return tiny_source


@pytest.fixture(scope="session")
def tiny(tiny_source):
    """The manifest of `tiny_source`."""

    def tiny(name: str = "gpt2", *overrides: str, scale: str = "tiny"):
        source = tiny_source(name, *overrides, scale=scale)
        return resolve(source, patches=patch_kinds(), optimizers=optim_kinds())

    return tiny


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a run of a shipped variant at the tiny scale, with overrides; each call trains anew."""

    def trained(name: str, *overrides: str):
        out = tmp_path_factory.mktemp("runs")
        words = [word for override in overrides for word in ("--set", override)]
        assert main([name, "--scale", "tiny", "--out", str(out), "--json", *words]) == 0
        return next(out.glob("*/s1"))

    return trained


@pytest.fixture
def ratrain(capsys):
    """Runs a command line in this process: (code, stdout, stderr)."""

    def ratrain(*argv):
        try:
            code = main([str(word) for word in argv])
        except SystemExit as ended:  # argparse
            code = ended.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return ratrain
