"""Kernels compiled without a GPU, a few of those that `make kernels` compiles; a tile for each in every file."""

from __future__ import annotations

import sys

import pytest

from ratrain.kernels import tuning
from ratrain.kernels.tuning import Tile, config, neighbours, serves, trial, tuned, write_tuned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")

ARCHS = [file.stem for file in tuning.TUNED.glob("*.json")]


@pytest.fixture(scope="module")
def cases():
    from ratrain.kernels.ahead import all_cases

    return {case.name: case for case in all_cases()}


def test_there_is_a_file_for_every_target():
    from ratrain.kernels.ahead import TARGETS

    assert sorted(ARCHS) == sorted(TARGETS)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_has_a_tile_where_its_size_is_served(arch, cases):
    for case in cases.values():
        if serves(case.op, case.size, arch):
            config(*case.key, arch)
    tiles = {
        (op, phase, size) for op, phases in tuned(arch).items() for phase, sizes in phases.items() for size in sizes
    }
    assert tiles <= {case.key for case in cases.values()}  # none that nobody asks for


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != "gfx1100"])
def test_what_trains_models_serves_every_head_dimension(arch):
    for op in ("ra_attention", "kv_prune"):
        assert all(serves(op, size, arch) for size in ("32", "64", "128", "32 fp32", "64 fp32", "128 fp32"))


@pytest.mark.parametrize("arch", ["sm_90", "gfx942"])
@pytest.mark.parametrize("name", ["ra_attention tied_keys 64", "kv_prune attend 64"])
def test_products_reach_the_tensor_cores_and_nothing_spills(arch, name, cases):
    from ratrain.kernels.ahead import TARGETS, compile_one

    found = compile_one(arch, cases[name], config(*cases[name].key, arch))
    assert (found.fault, found.spilled, found.matrix) == ("", 0, TARGETS[arch].matrix)


def test_what_spills_is_refused(cases):
    from ratrain.kernels.ahead import compile_one

    found = compile_one("sm_80", cases["ra_attention tied_keys 128"], Tile(128, 64, 4, 2))
    assert found.spilled > 0
    assert "spills registers" in found.fault


def test_a_repair_brings_back_nothing_that_another_version_refused(cases, tmp_path, monkeypatch):
    from ratrain.kernels import ahead

    case = cases["ra_attention tied_keys 64"]
    first, second, third = [config(*case.key, "sm_80"), *neighbours(config(*case.key, "sm_80"))][:3]
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    write_tuned("sm_80", tuned("sm_80"))
    refused: dict[str, list[list[int]]] = {}
    for good in ({second, third}, {first, third}, {second, third}):  # two versions of Triton in turn
        monkeypatch.setattr(ahead, "_serves", lambda _arch, _cases, tile, good=good: tile in good)
        list(ahead.repair("sm_80", [case], refused))
    found = config(*case.key, "sm_80")
    tuned.cache_clear()
    serves.cache_clear()
    assert found == third
    assert len(refused["sm_80 ra_attention tied_keys 64"]) >= 2


def test_a_trial_holds_for_its_kernel_and_no_longer():
    key = ("ra_attention", "forward", "64")
    before = config(*key)
    with trial(key, Tile(16, 16, 4, 1)):
        assert config(*key) == Tile(16, 16, 4, 1)
        assert config("ra_attention", "keys", "64") != Tile(16, 16, 4, 1)
    assert config(*key) == before


def test_neighbours_come_by_likeness():
    near = neighbours(Tile(64, 32, 4, 2))
    assert near[0] in (Tile(64, 32, 4, 1), Tile(64, 32, 4, 3), Tile(64, 32, 8, 2))
    assert Tile(64, 32, 4, 2) not in near
    assert {tile.block for tile in neighbours(Tile(128, 0, 4, 1))} == {128}


def test_a_table_is_written_as_it_is_read(tmp_path, monkeypatch):
    table = tuned("sm_90")
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    write_tuned("sm_90", table)
    assert tuned("sm_90") == table
    tuned.cache_clear()
