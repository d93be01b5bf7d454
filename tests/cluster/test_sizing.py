"""What a study takes on a cluster, from its manifest: against arithmetic, and by `ratrain plan FILE`."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from ratrain.ablation.running.sizing import Need, Site, choices, lay_out
from ratrain.cli import main
from ratrain.statistics.failures import Cluster, best_interval
from tests.cluster.studies import ADAPTIVE, FIXED

NEED = Need(
    "a", (3,), tokens=1000, flops=1e6, token_flops=1000, step_flops=1e4, batch=8, state=30, checkpoint=20, every=10,
    asynchronous=False,
)  # fmt: skip
SITE = Site(Cluster(2, 4), flops=1000.0, efficiency=0.5, packing=1.0, memory=100, disk=2.0, restart=5.0)


def laid_out(need=NEED, site=SITE, **options):
    return lay_out([need], site, **{"gpus": 1, "draws": 1, "seed": 0, **options})


@pytest.mark.parametrize(
    ("options", "finish", "device_seconds"),
    [
        ({}, 1000 + 5 + 10, 3 * 1015),  # a start reads 20 bytes at 2 bytes/s
        ({"gpus": 2}, 1000 + 15, 6 * 1015),  # half as efficient
        ({"gpus": 8}, 3 * (250 + 15), 24 * 265),
        ({"every": 10}, 1015 + 9 * 10, 3 * 1105),  # 100 steps: nine saves of 20 bytes before the last part
        ({"packed": 2}, 2 * 1000 + 15, 3 * 2015 / 2),
    ],
)
def test_without_failures_it_is_arithmetic(options, finish, device_seconds):
    found = laid_out(**options)
    assert found.foretold.finish == pytest.approx(finish)
    assert found.foretold.spent == pytest.approx(device_seconds)
    assert (found.foretold.lost, found.foretold.failures) == (0, 0)


def test_runs_that_pack_well_end_earlier():
    site = replace(SITE, cluster=Cluster(1, 1), packing=1.5)
    alone, packed = laid_out(site=site), laid_out(site=site, packed=3)
    assert alone.foretold.finish == pytest.approx(3 * 1015)
    assert packed.foretold.finish == pytest.approx(3 * 1000 / 1.5 + 15)


def test_a_look_waits_for_the_runs_before_it():
    need = replace(NEED, rounds=(1, 1))
    assert laid_out(need).foretold.finish == pytest.approx(2 * 1015)


def test_checkpoints_are_as_far_apart_as_daly_says():
    site = replace(SITE, cluster=Cluster(2, 4, mtbf=500.0))
    for gpus, machines in ((1, 1), (8, 2)):
        found = laid_out(site=site, gpus=gpus)
        assert found.interval == pytest.approx(best_interval(10.0, 500.0 / machines), abs=10 / gpus)
        assert 0 < found.foretold.lost < found.foretold.spent


def test_a_checkpoint_waits_until_the_one_before_is_on_the_disk():
    need = replace(NEED, asynchronous=True, checkpoint=60)  # 30 s to write; a step takes 10 s
    every_step, apart = laid_out(need, every=1), laid_out(need, every=4)
    assert every_step.foretold.finish == pytest.approx(1000 + 35 + 99 * 20)
    assert apart.foretold.finish == pytest.approx(1000 + 35, rel=1e-6)


def test_seeds_as_needed_come_in_blocks_that_keep_all_places_busy():
    need = replace(NEED, rounds=(3, *[1] * 8))
    few, many = (laid_out(need, replace(SITE, cluster=Cluster(1, places))) for places in (1, 4))
    assert (few.looks, many.looks) == (8, 2)
    assert many.foretold.finish == pytest.approx(3 * 1015)


def test_asynchronous_checkpoints_are_not_closer_than_their_writing_takes():
    site = replace(SITE, cluster=Cluster(2, 4, mtbf=500.0))
    found = laid_out(replace(NEED, asynchronous=True, checkpoint=60), site)
    assert found.interval == pytest.approx(60 / 2.0)


@pytest.mark.parametrize(
    ("need", "memory", "expected"),
    [
        (NEED, 100, [1, 2, 4, 8]),
        (NEED, 50, [2, 4, 8]),  # half is for activations
        (replace(NEED, batch=6), 100, [1, 2]),
        (NEED, 5, []),
    ],
)
def test_the_devices_of_a_run_hold_its_state_and_divide_its_batch(need, memory, expected):
    assert choices([need], SITE.cluster, memory) == expected


# -- the command ------------------------------------------------------------------------------------------------------


def planned(capsys, *words):
    code = main(["plan", *map(str, words)])
    return code, capsys.readouterr()


def test_a_study_is_counted_from_its_manifest(tmp_path, capsys):
    file = tmp_path / "two.toml"
    file.write_text(FIXED)
    code, said = planned(capsys, file, "--nodes", 2, "--gpus", 2, "--mtbf", 1, "--rate", 100, "--json")
    assert code == 0
    found = json.loads(said.out)
    assert [(need["arm"], need["rounds"], need["tokens"]) for need in found["needs"]] == [
        ("v0", [3], 6 * 4 * 32), ("v9", [3], 6 * 4 * 32), ("v19", [3], 6 * 4 * 32),
    ]  # fmt: skip
    base = found["needs"][0]
    assert found["layouts"][0]["alone"] >= base["flops"] / base["token_flops"] / 100
    assert [layout["gpus"] for layout in found["layouts"]] == [1, 2, 4]


def test_seeds_as_needed_are_rounds(tmp_path, capsys):
    file = tmp_path / "some.toml"
    file.write_text(ADAPTIVE)
    code, said = planned(capsys, file, "--json")
    assert (code, json.loads(said.out)["needs"][0]["rounds"]) == (0, [3, 1, 1, 1, 1, 1])


def test_the_table_says_what_is_assumed(capsys):
    code, said = planned(capsys, "v0", "--scale", "gpt2_124m", "--nodes", 4, "--gpus", 8, "--mtbf", 100, "--price", 2.5)
    assert code == 0
    assert "32 devices on 4 machines" in said.out
    assert "each fails every 4.2 d, one of them every 25.0 h" in said.out
    assert "with checkpoint.every = 1000 as it is" in said.out
    assert "400 TFLOP/s of one device (--tflops, or --rate)" in said.out


def test_a_manifest_that_saves_too_rarely_is_told_beside_what_would_do(capsys):
    words = ("--set", "checkpoint.every=0", "--set", "train.budget.tokens=100_000_000_000_000", "--mtbf", 24)
    code, said = planned(capsys, "gpt2", *words)
    assert code == 0
    assert "with checkpoint.every = 0 as it is, 1 a run: rarely done" in said.out


def test_json_has_no_infinity(capsys):
    _, said = planned(capsys, "v0", "--scale", "tiny", "--json")
    found = json.loads(said.out, parse_constant=pytest.fail)
    assert found["site"]["cluster"]["mtbf"] is None


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--nodes", 3], 2, "--nodes: needs a FILE"),
        (["v0", "--arms", 3], 2, "--arms: is for a plan without FILE"),
        (["--set", "train.batch=8"], 2, "--set: needs a FILE"),
        (["nothing", "--nodes", 3], 66, "nothing: no such manifest"),
        (["v0", "--gpus", 4, "--gpus-per-run", 8], 2, "--gpus-per-run 8: the cluster has 4 devices"),
        (["v0", "--gpus", 4, "--gpus-per-run", 3], 2, "leaves devices of a machine unused"),
        (["v0", "--scale", "tiny", "--gpus", 8, "--gpus-per-run", 8], 2, "does not divide train.batch = 4 of v0"),
        (["v0", "--scale", "gpt2_1558m", "--memory", 24], 2, "take 23.2 GiB of a device, and half of 24 GiB"),
        (["v0", "--scale", "tiny", "--mtbf", 0.0001], 2, "runs rarely live up to their next checkpoint"),
        (["v0", "--set", "train.budget={seconds=9}"], 2, "its budget is in seconds"),
    ],
)  # fmt: skip
def test_nonsense_is_one_message(words, code, told, capsys):
    found, said = planned(capsys, *words)
    assert found == code
    assert told in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_an_infinite_time_between_failures_is_not_asked_for(capsys):
    with pytest.raises(SystemExit) as end:
        main(["plan", "v0", "--mtbf", str(math.inf)])
    assert end.value.code == 2
    assert "expected a number" in capsys.readouterr().err


def test_a_study_without_a_base_is_a_study_for_check_too(tmp_path, capsys):
    file = tmp_path / "study.toml"
    file.write_text(FIXED)
    assert main(["check", "runs", str(file)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["v0", "v9", "v19", "all"]
