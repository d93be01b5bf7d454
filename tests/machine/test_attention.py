"""What computes attention is asked for, recorded, or measured once; and a run keeps to it."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from ratrain.data.cache import cache_folder
from ratrain.engine.engine import Engine
from ratrain.errors import UnavailableError
from ratrain.events import AttentionChosen, Notice, Window
from ratrain.machine import attention
from ratrain.machine.attention import Case, Choice, choose, fastest, measure, pin, recorded, require, serves
from ratrain.machine.compile import compile_model, keep_compiled_code
from ratrain.model.build import build
from ratrain.model.gpt2 import Core
from ratrain.run.dry_run import dry_run, rehearse
from ratrain.storage.checkpoint import load_newest

CPU = torch.device("cpu")
CASE = Case((2, 2, 16, 8), torch.float32, 0.0, CPU)
SHORT = ("train.budget.steps=4", "log.every=1", "eval.windows=2", "checkpoint.every=2")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ratrain" / "attention"


@pytest.fixture
def measured(monkeypatch):
    """The cases that were measured; in place of a measurement, these times."""
    cases = []

    def measure(case):
        cases.append(case)
        return {"flash": 0.002, "efficient": 0.003, "math": 0.009, "ours": 0.004, "cudnn": 0.001}

    monkeypatch.setattr(attention, "measure", measure)
    return cases


def run(manifest, folder):
    """The engine after its run, and what it stated."""
    seen = []
    engine = Engine(manifest, checkpoints=folder, device=CPU, emit=seen.append)
    engine.run()
    return engine, seen


def of(kind, seen):
    return [event for event in seen if isinstance(event, kind)]


def losses(seen):
    return [loss for window in of(Window, seen) for loss in window.losses]


# -- the measurement ------------------------------------------------------------------------------------------------


def test_each_that_serves_is_measured():
    seconds = measure(CASE)
    assert set(seconds) == {"flash", "math", "ours"}
    assert all(0 < s < 1 for s in seconds.values())
    assert set(measure(replace(CASE, dropout=0.1))) == {"math"}


def test_a_measurement_draws_nothing_from_the_runs_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    measure(replace(CASE, dropout=0.5))
    serves(replace(CASE, dropout=0.5), "math")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_fastest_is_chosen_and_the_others_stand_behind_it(measured):
    choice = fastest(CASE)
    assert (choice.backend, choice.source) == ("cudnn", "measured")
    assert choice.order == ("cudnn", "flash", "efficient", "math")


def test_it_is_measured_once_and_kept(measured):
    first, second = fastest(CASE), fastest(CASE)
    assert measured == [CASE]
    assert (first.source, second.source) == ("measured", "cached")
    assert replace(second, source="measured") == first


@pytest.mark.parametrize(
    "other", [{"shape": (4, 2, 16, 8)}, {"dtype": torch.bfloat16}, {"dropout": 0.1}], ids=lambda o: next(iter(o))
)
def test_another_case_is_measured_apart(measured, other):
    fastest(CASE)
    fastest(replace(CASE, **other))
    assert len(measured) == 2


def test_another_number_of_threads_is_another_case():
    keys = [CASE.key()]
    torch.set_num_threads(2)
    try:
        assert CASE.key() not in keys
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', None, {"value": {}}, {"value": {"flash": "fast"}}])
def test_what_is_damaged_on_disk_is_measured_again(measured, cache, damage):
    fastest(CASE)
    (file,) = cache.glob("*.json")
    if damage is None:
        file.unlink()
        file.mkdir()
    elif isinstance(damage, dict):
        file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))
    else:
        file.write_bytes(damage)
    assert fastest(CASE).backend == "cudnn"
    assert len(measured) == 2


def test_a_cache_that_cannot_be_written_changes_nothing(measured, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    assert fastest(CASE).backend == "cudnn"


def _race(knocked, note):
    """In a process of its own: the choice, with a note of each measurement."""
    take = fcntl.flock

    def measure(case):
        assert all(knocked.acquire(timeout=20) for _ in range(2))  # the other has come to the lock, and is to wait
        with (cache_folder() / "attention" / "lock").open() as lock, pytest.raises(BlockingIOError):
            take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with note.open("a") as file:
            file.write("measured\n")
        return {"math": 1.0}

    def flock(*words):
        knocked.release()
        take(*words)

    attention.measure, fcntl.flock = measure, flock
    assert fastest(CASE).backend == "math"


def test_processes_that_come_at_the_same_time_measure_once(tmp_path):
    context = multiprocessing.get_context("fork")
    knocked = context.Semaphore(0)
    processes = [context.Process(target=_race, args=(knocked, tmp_path / "note")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "note").read_text() == "measured\n"


# -- the choice -----------------------------------------------------------------------------------------------------


def test_a_cpu_measures_nothing_and_changes_nothing(tiny, tmp_path, measured):
    engine, seen = run(tiny("v1", *SHORT), tmp_path)
    assert not measured
    assert engine.setup.attention == Choice("torch", "default", "cpu", "float32 [4, 2, 32, 16]")
    assert of(AttentionChosen, seen) == [AttentionChosen("torch", "default", "float32 [4, 2, 32, 16] on cpu", {})]
    assert all(part.backends == () for part in engine.model.modules() if isinstance(part, Core))


@pytest.mark.parametrize("name", ["flash", "math", "ours"])
def test_the_one_asked_for_is_pinned_in_every_layer(tiny, name):
    manifest = tiny("v1", f"compile.attention={name}")
    choice, model = choose(manifest, rows=4, device=CPU), build(manifest)
    assert (choice.backend, choice.source) == (name, "asked")
    pin(model, choice)
    cores = [part for part in model.modules() if isinstance(part, Core)]
    assert [core.backends for core in cores] == [tuple(dict.fromkeys((name, "math")))] * 2
    pin(model, choice, strict=True)
    assert [core.backends for core in cores] == [(name,)] * 2


@pytest.mark.usefixtures("all_in_float64")
def test_all_train_alike_within_rounding(tiny, tmp_path):
    told = {}
    for name in ("auto", "flash", "math", "ours"):
        _, seen = run(tiny("v1", *SHORT, f"compile.attention={name}"), tmp_path / name)
        told[name] = losses(seen)
    assert told["flash"] == told["auto"]  # which is torch's own choice here
    for name in ("math", "ours"):
        assert told[name] == pytest.approx(told["auto"], rel=1e-11)


def test_one_that_cannot_serve_is_told_and_left_to_auto(tiny):
    said = []
    choice = choose(tiny("v1", "compile.attention=cudnn"), rows=4, device=CPU, emit=said.append)
    assert choice.backend == "torch"
    (notice,) = of(Notice, said)
    assert notice.level == "warning"
    assert notice.message == (
        "compile.attention: 'cudnn' cannot compute float32 [4, 2, 32, 16] on cpu: continues as with 'auto'"
    )


def test_strict_refuses_it_and_says_what_can(tiny):
    manifest = tiny("v1", "compile.attention=flash", "compile.strict=true", "model.dropout=0.1")
    with pytest.raises(UnavailableError, match=r"'flash' cannot compute .* with dropout 0.1 on cpu; math can"):
        require(manifest, rows=4, device=CPU)


def test_a_strict_refusal_is_one_message_and_leaves_no_folder(ratrain, tmp_path):
    words = ("--set", "compile.attention=cudnn", "--set", "compile.strict=true", "--device", "cpu")
    code, _, err = ratrain("v1", "--scale", "tiny", "--out", tmp_path / "runs", *words)
    assert code == 69
    assert len(err.splitlines()) == 1
    assert err.startswith("ratrain: compile.attention: 'cudnn' cannot compute float32")
    assert not (tmp_path / "runs").exists()


def test_what_a_variant_asks_beside_the_base_is_refused_by_strict_as_well(ratrain, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "serves", lambda case, name: True)  # as if only a patch's call did not fit
    words = ("--set", "compile.attention=efficient", "--set", "compile.strict=true", "--device", "cpu")
    code, _, err = ratrain("v1", "--scale", "tiny", "--out", tmp_path / "runs", "--json", *words)
    assert code == 69
    assert err.count("compile.strict") == 2
    assert len(err.splitlines()) == 1


# -- a run keeps to it ----------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_choice(tiny, tmp_path):
    engine, _ = run(tiny("v1", *SHORT, "compile.attention=math"), tmp_path)
    found, _, _ = load_newest(tmp_path)
    assert found
    assert recorded(found.state["attention"]) == replace(engine.setup.attention, source="recorded")


class Elsewhere:
    """A device that is measured, in place of a GPU."""

    type = "cuda"


def test_a_resumed_run_takes_what_it_recorded(tiny, measured, monkeypatch):
    monkeypatch.setattr(Case, "machine", "a GPU")
    manifest = tiny("v1")
    first = choose(manifest, rows=4, device=Elsewhere())
    assert (first.backend, first.source) == ("cudnn", "measured")
    known = recorded(json.loads(json.dumps({**first.record(), "backend": "flash", "order": ["flash", "math"]})))
    again = choose(manifest, rows=4, device=Elsewhere(), known=known)
    assert (again.backend, again.source, again.order) == ("flash", "recorded", ("flash", "math"))
    assert len(measured) == 1
    # on another kind of GPU it is chosen anew
    assert choose(manifest, rows=4, device=Elsewhere(), known=replace(known, machine="other")).backend == "cudnn"


def test_the_engine_resumes_with_the_record_of_its_checkpoint(tiny, tmp_path, monkeypatch):
    manifest, asked = tiny("v1", *SHORT), []

    def choice(source, known=None):
        return known or Choice("math", source, "cpu", "x", ("math",), {"math": 1.0})

    monkeypatch.setattr(
        "ratrain.engine.engine.choose",
        lambda *_, known, **__: asked.append(known) or choice("measured", known),
    )
    _, first = run(manifest, tmp_path)
    (tmp_path / "step-00000004").rename(tmp_path / "gone")
    _, second = run(manifest, tmp_path)
    assert [event.source for event in of(AttentionChosen, first + second)] == ["measured", "recorded"]
    assert asked == [None, choice("recorded")]
    assert losses(second) == losses(first)[2:]


def test_a_rehearsal_tells_the_choice_of_the_run_itself(tiny):
    manifest = tiny("v1", "compile.attention=math")
    seen = []
    found = rehearse(manifest, device="cpu", emit=seen.append)
    assert found["attention"]["case"] == "float32 [4, 2, 32, 16]"  # and not that of its own small passes
    assert [event.backend for event in of(AttentionChosen, seen)] == ["math"]
    assert "attention      math (asked)" in dry_run(manifest, device="cpu", as_json=False, emit=lambda event: None)


@pytest.mark.slow
def test_compiled_code_kept_on_disk_is_not_taken_for_another_backend(tiny):
    # torch's own key knows nothing of process-wide settings, and would give math what was compiled for flash
    keep_compiled_code()
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    ran = []
    for name in ("flash", "math", "flash", "math"):
        torch._dynamo.reset()
        manifest = tiny("gpt2", f"compile.attention={name}", "compile.scope=model", "compile.backend=inductor")
        model = build(manifest)
        pin(model, choose(manifest, rows=2, device=CPU))
        compile_model(model, manifest.compile)
        before = counters["aot_autograd"]["autograd_cache_hit"]
        model(tokens, tokens).backward()
        hit = counters["aot_autograd"]["autograd_cache_hit"] > before
        with torch.profiler.profile() as seen:
            model(tokens, tokens)
        ran.append((any("flash" in event.key for event in seen.key_averages()), hit))
    assert ran == [(True, False), (False, False), (True, True), (False, True)]


@pytest.fixture
def installed(monkeypatch):
    """FlashAttention 3 as if it were installed: torch's registry tells when it is put in and taken out."""
    torch_attention = pytest.importorskip("torch.nn.attention._registry", reason="this torch has no registry")
    told = []

    class Handle:
        def remove(self):
            told.append("out")

    def put_in():
        told.append("in")
        return Handle()

    monkeypatch.setitem(torch_attention._FLASH_ATTENTION_IMPLS, "FA3", put_in)
    yield told
    torch_attention.restore_flash_attention_impl(_raise_warn=False)


def test_an_installed_flash_implementation_is_measured_and_taken_out_again(installed):
    assert "fa3" in measure(CASE)
    assert installed[0] == "in"
    assert installed[-1] == "out"
    assert torch.nn.attention.current_flash_attention_impl() is None


def test_pinning_puts_the_implementation_in_for_the_whole_run(tiny, installed):
    model = build(tiny("v0"))
    pin(model, Choice("fa3", "asked", "cpu", "it", ("fa3", "math")))
    assert torch.nn.attention.current_flash_attention_impl() == "FA3"
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    assert model(tokens, tokens).isfinite()
    pin(model, Choice("flash", "asked", "cpu", "it", ("flash", "math")))
    assert torch.nn.attention.current_flash_attention_impl() is None


@pytest.mark.parametrize("name", ["fa3", "fa4"])
def test_one_that_is_not_installed_does_not_serve(name):
    assert not serves(CASE, name)
