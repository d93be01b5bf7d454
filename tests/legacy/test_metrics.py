"""Metrics files of the reference in `ratrain report`: what they tell, and what is said of it."""

from __future__ import annotations

import json

import pytest

from ratrain.errors import DataError, Exit
from ratrain.legacy.metrics.caveats import caveats
from ratrain.legacy.metrics.read import is_metrics, read_metrics

V14 = "crashed on an import; where it had run before, every position saw the future"  # as its manifest says
STEPS = {  # as train_ra_mla.py wrote them
    "iteration": [0, 10, 20],
    "attention_entropy": [],
    "reciprocity_score": [],
    "forward_time_ms": [1600.0, 1500.0, 1510.0],
    "memory_allocated_mb": [3000.0] * 3,
    "memory_reserved_mb": [3100.0] * 3,
    "eval_iteration": [0, 10, 20],
    "train_loss": [10.9, 7.1, 6.4],
    "val_loss": [10.9, 6.9, 7.0],
    "train_perplexity": [54176.0, 1212.0, 602.0],
    "val_perplexity": [54176.0, 992.0, 1097.0],
    "learning_rate": [0.0, 6e-5, 1.2e-4],
}
VANILLA = {  # as train.py wrote them
    "config": {"eval_interval": 500},
    "train_losses": [1.09, 7.0],
    "val_losses": [10.9, 5.5, 4.25],
    "sparsities": [0.0, 0.25, 0.4994],
    "iterations": [0, 10],
    "final_val_loss": 4.25,
    "total_time": 2000.0,
    "total_iterations": 1000,
    "training_mode": "time_based",
}


def written(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2))
    return path


@pytest.fixture
def matrix(tmp_path):
    """A matrix's folder whose list of all results was emptied, as `make summary` did."""
    folder = tmp_path / "test_matrix_results_20251103_000000"
    written(folder / "all_results.json", [])
    written(folder / "gpt2_adamwspam_ramla_stepV14" / "training_metrics.json", STEPS)
    written(folder / "gpt2_adamwprune_bitter7_state_50" / "training_metrics.json", VANILLA)
    (folder / "gpt2_adamwspam_ramla_step3").mkdir()
    (folder / "gpt2_adamwspam_ramla_step3" / "error.txt").write_text("\nTrying to backward a second time\nmore\n")
    return folder


def test_steps_are_read_as_they_were_written(tmp_path):
    (run,) = read_metrics(written(tmp_path / "gpt2_adamwspam_ramla_step5" / "training_metrics.json", STEPS))
    assert (run.name, run.trainer, run.step) == ("gpt2_adamwspam_ramla_step5", "train_ra_mla.py", "5")
    assert run.evaluated == ((0, 10.9), (10, 6.9), (20, 7.0))
    assert (run.iterations, run.milliseconds, run.seconds, run.sparsity) == (20, 1510.0, None, 0.0)


def test_a_file_from_before_evaluations_were_written_has_its_timings(tmp_path):
    early = {key: STEPS[key] for key in [*STEPS][:6]}
    (run,) = read_metrics(written(tmp_path / "metrics.json", early))
    assert (run.evaluated, run.iterations, run.milliseconds) == ((), 20, 1510.0)


def test_the_other_trainer_evaluated_at_its_interval(tmp_path):
    (run,) = read_metrics(written(tmp_path / "metrics.json", VANILLA))
    assert run.trainer == "train.py"
    assert run.evaluated == ((0, 10.9), (500, 5.5), (1000, 4.25))
    assert (run.iterations, run.milliseconds, run.sparsity) == (1000, 2000.0, 0.4994)


def test_a_list_of_all_results_tells_of_failures_too(tmp_path):
    done = STEPS | {"test_id": "gpt2_adamwspam_ramla_stepL5", "elapsed_time": 7200.0, "success": True}
    failed = {"test_id": "gpt2_adamw_none", "elapsed_time": 3.0, "success": False, "error": "exit code 2\nlog"}
    one, two = read_metrics(written(tmp_path / "all_results.json", [done, failed]))
    assert (one.step, one.seconds, one.failed) == ("L5", 7200.0, "")
    assert (two.name, two.trainer, two.failed) == ("gpt2_adamw_none", "", "exit code 2")


def test_a_matrix_is_read_from_the_folders_of_its_tests(matrix):
    runs = {run.name: run for run in read_metrics(matrix)}
    assert set(runs) == {
        "gpt2_adamwspam_ramla_stepV14",
        "gpt2_adamwprune_bitter7_state_50",
        "gpt2_adamwspam_ramla_step3",
    }
    assert runs["gpt2_adamwspam_ramla_step3"].failed == "Trying to backward a second time"
    written(matrix / "all_results.json", [VANILLA | {"test_id": "gpt2_adamw_none"}, STEPS | {
        "test_id": "gpt2_adamwspam_ramla_stepV14", "elapsed_time": 60.0}])  # fmt: skip
    runs = {run.name: run for run in read_metrics(matrix)}
    assert len(runs) == 4
    assert runs["gpt2_adamwspam_ramla_stepV14"].seconds == 60.0


def test_what_is_wrong_with_a_step_is_said_of_that_step(tmp_path):
    files = [tmp_path / f"gpt2_adamwspam_ramla_step{step}" / "metrics.json" for step in ("V14", "5", "L4")]
    lines = caveats([run for file in files for run in read_metrics(written(file, STEPS))])
    own = [line for line in lines if line.startswith("gpt2_")]
    assert own[0] == "gpt2_adamwspam_ramla_stepV14: V14 as it ran: " + V14
    assert own[1].startswith("gpt2_adamwspam_ramla_step5: ratio:5 as it ran: ")
    assert own[2] == "gpt2_adamwspam_ramla_stepL4: lens:L4 as it ran: l3_as_run: the MLP stayed"
    assert any("adamwspam was AdamW with AMSGrad" in line for line in lines)
    assert not any("sparsity counts masks" in line for line in lines)  # the other trainer's


@pytest.mark.parametrize(("last", "said"), [(10.85, "that of random tokens"), (0.31, "saw the tokens"), (3.6, "")])
def test_losses_that_cannot_be_of_text_are_pointed_out(tmp_path, last, said):
    runs = read_metrics(written(tmp_path / "run" / "metrics.json", STEPS | {"val_loss": [10.9, 6.9, last]}))
    own = [line for line in caveats(runs) if line.startswith("run: ")]
    assert [said in line for line in own] == [True] * bool(said)


def test_the_command_tells_numbers_and_what_they_are_worth(matrix, ratrain, tmp_path):
    before = {file: file.read_bytes() for file in matrix.rglob("*") if file.is_file()}
    code, out, err = ratrain("report", matrix, "--out", tmp_path / "runs")
    assert code == Exit.DONE, err
    (row,) = [line.split() for line in out.splitlines() if line.startswith("gpt2_adamwspam_ramla_stepV14 ")]
    assert row[1:] == ["20", "7.0000", "1096.63", "6.9000", "10", "1,510.0"]
    assert "numbers come from the reference; none was measured here" in out
    assert "gpt2_adamwspam_ramla_step3        failed" in out
    page = (tmp_path / "runs" / "reference.html").read_text()
    assert "<svg" in page
    assert V14 in page
    assert {file: file.read_bytes() for file in matrix.rglob("*") if file.is_file()} == before  # read, never written


BAD = {
    "not JSON": ("{", "is not JSON"),
    "a word": ('"x"', "is a JSON str; expected one of training_metrics.json"),
    "nested too deep": ("[" * 100_000, "is not JSON"),
    "foreign": ('{"loss": [1]}', r"has neither trainer's keys \(its keys: loss\)"),
    "an entry without a name": ("[{}]", "entry 1: has no test_id"),
    "words for numbers": (json.dumps(STEPS | {"val_loss": ["x"] * 3}), "val_loss: expected a list of numbers"),
    "lists that do not match": (json.dumps(STEPS | {"val_loss": [1.0]}), "has 1 entries for 3 of eval_iteration"),
    "a time that is none": (json.dumps(VANILLA | {"total_time": "1 h"}), "total_time: expected a number, got '1 h'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_file_is_one_message(case, ratrain, tmp_path):
    content, message = BAD[case]
    file = tmp_path / "metrics.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_metrics(file)
    code, out, err = ratrain("report", file)
    assert (code, out) == (Exit.BAD_DATA, "")
    assert err.startswith(f"ratrain: {file}")
    assert err.count("\n") == 1


def test_old_and_new_are_not_compared(matrix, ratrain, tmp_path):
    assert ratrain("report", matrix, "v1", "--out", tmp_path)[0] == Exit.USAGE


def test_a_run_of_ours_is_no_old_one(tmp_path):
    written(tmp_path / "run" / "metrics.json", STEPS)
    assert is_metrics(tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").touch()
    assert not is_metrics(tmp_path / "run")
    assert not is_metrics(tmp_path / "absent.json")
