"""Pruning a trained run afterwards: its own weights, other caches."""

import json

import pytest

from ratrain.run.prune_eval import prune_eval

KEYS = ("train.budget.steps=30", "model.block_size=64", "eval.windows=4")


@pytest.fixture(scope="module")
def run(trained):
    return trained("v1", *KEYS)


@pytest.fixture
def rows(run):
    def rows(keeps, rules, mode="kv"):
        return list(prune_eval(run, keeps, rules, mode=mode, device="cpu", warn=pytest.fail))

    return rows


def test_dense_is_the_loss_that_the_run_told(run, rows):
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    loss = [event["loss"] for event in told if event["event"] == "Evaluated"][-1]
    assert rows([1.0], [])[0].loss == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("mode", ["kv", "v_only"])
def test_keeping_all_costs_nothing_and_less_costs_more_than_that(rows, mode):
    dense, all_, few = rows([1.0, 0.1], ["mass"], mode)
    assert all_.loss == pytest.approx(dense.loss, abs=1e-6)
    assert abs(few.above_dense) > 1e-5
    assert few.value_bytes < 0.3 * dense.value_bytes
    assert (few.key_bytes < dense.key_bytes) == (mode == "kv")


def test_rules_keep_as_much_and_not_the_same(rows):
    found = rows([0.2], ["mass", "random", "window"])[1:]
    assert len({row.key_bytes for row in found}) == 1
    assert len({row.loss for row in found}) == 3


def test_the_command_keeps_table_and_figure(ratrain, run):
    code, out, _ = ratrain("prune-eval", run, "--keep", "0.2,0.5", "--rule", "mass")
    kept = json.loads((run / "prune-eval.json").read_text())
    assert code == 0
    assert [(row["rule"], row["keep"]) for row in kept] == [("dense", 1.0), ("mass", 0.2), ("mass", 0.5)]
    assert (run / "figures" / "prune-eval.png").read_bytes().startswith(b"\x89PNG")
    for row in kept:
        assert f"{row['loss']:.4f}" in out


@pytest.mark.parametrize("words", [("--keep", "0"), ("--keep", "a"), ("--keep", "1.1"), ("--rule", "best")])
def test_nonsense_is_a_usage_error(ratrain, run, words):
    assert ratrain("prune-eval", run, *words)[0] == 2


def test_statistics_of_sampling_are_those_of_the_caches(ratrain, run):
    code, _, err = ratrain("sample", run, "--tokens", "20", "--stats")
    per_token = 4 * 2 * 32  # fp32, layers, channels
    assert code == 0
    assert f"{2 * per_token:,} bytes a token, {per_token:,} of keys and {per_token:,} of values (100 %" in err
    assert "over 20 tokens" in err
    assert "cache at 20 tokens" in err


def test_a_pruned_run_samples_from_a_smaller_cache(ratrain, trained):
    _, _, err = ratrain("sample", trained("v19", *KEYS, "patch.kv_prune.mode=kv"), "--tokens", "63", "--stats")
    share = int(err.split(" values (")[1].split(" %")[0])
    assert 35 < share < 60


def test_what_pruning_did_is_in_the_events(trained):
    lines = (trained("v19", *KEYS) / "events.jsonl").read_text().splitlines()
    probed = [json.loads(line)["values"]["kv_prune"] for line in lines if '"Probed"' in line][-1]
    kept, retained, overlap = (probed[name] for name in ("kept part", "retained mass", "overlap of blocks"))
    assert [len(row) for row in kept] == [2, 2]
    assert all(value == pytest.approx(22 / 56, abs=1e-6) for row in kept for value in row)  # ceil(0.382 x 56) of 56
    assert all(0.3 < value <= 1 for row in (*retained, *overlap) for value in row)
