"""The printed table, from a record made by hand."""

from __future__ import annotations

import pytest

from ratrain.profile.rows import BACKWARD, FORWARD, GAPS
from ratrain.profile.table import table


def row(phase, name, ms, percent=50.0, bound="compute", moved=1e6):
    return {
        "phase": phase, "name": name, "calls": 4.0, "seconds": ms / 1e3, "flops": 1e9, "bytes": moved,
        "allowed_seconds": None if percent is None else ms / 1e3 * percent / 100, "percent": percent, "bound": bound,
    }  # fmt: skip


@pytest.fixture
def told():
    small = [row(FORWARD, f"small {i}", 0.01, None, "", None) for i in range(30)]
    rows = [
        *small,
        *(row(FORWARD, f"op {i}", 1 + i) for i in range(20)),
        row(BACKWARD, "fused " + "long_" * 30 + "#3.14", 100, 140.0, "cache"),
        row(GAPS, "between phases", 5, None, ""),
    ]
    total = sum(entry["seconds"] for entry in rows)
    return {
        "id": "v0", "scale": "laptop", "batch": [8, 128], "precision": "fp32", "steps": 10, "compiled": True,
        "kernels_told": 0, "rows": rows, "most_to_gain": "most to gain: " + "much " * 40, "gpu": None,
        "environment": {"device": "cpu", "cpu": "a CPU", "threads": 1},
        "roof": {"flops": 1e11, "bandwidth": 1e10, "product": "mm", "measured_flops": 9e10},
        "step": {"seconds": total, "unprofiled_seconds": total, "best_seconds": total / 2, "busy_others": 1.4,
                 "cpus": 2, "tokens": 1024, "tokens_per_second": 1024 / total, "mfu": {"measured": 0.5}},
        "flops": {"counted": 2e9, "attention": 0, "analytic": 2e9},
        "memory": {"peak_bytes": 4 << 20, "peak_phase": FORWARD, "split": {
            "parameters": 1 << 20, "optimizer_state": 2 << 20, "gradients": 0, "activations_and_rest": 1 << 20}},
    }  # fmt: skip


def test_a_table_fits_a_terminal_and_keeps_the_number_of_a_kernel(told):
    lines = table(told).splitlines()
    assert max(map(len, lines)) <= 120
    assert any("…" in line and "#3.14" in line for line in lines)


def test_what_is_small_is_one_row_and_times_add_up(told):
    lines = table(told).splitlines()
    assert sum(line.startswith("  op ") for line in lines) == 19  # with the one of the backward pass: 20
    assert any(line.startswith("  other (31)") for line in lines)
    own = [line[51:].split() for line in lines if line.startswith("  ") and line[2] != " "]
    ms = sum(float(cells[0] if line_has_no_calls(cells) else cells[1]) for cells in own)
    assert ms == pytest.approx(1e3 * told["step"]["seconds"], abs=0.01)


def line_has_no_calls(cells):
    """Of a row that stands for several, where the share comes second."""
    return cells[2] == "%"


def test_it_says_what_the_numbers_may_hide(told):
    text = table(told)
    assert "other work kept 1.4 of this machine's 2 CPUs busy" in text
    assert "the arrays came from a cache" in text
    assert "does not report the bytes of its fused kernels" in text
    assert ">100 %" in text
    assert "(the former by mm; torch.mm reached 90.0)" in text


def test_a_gpu_tells_its_idle_time_and_its_waits(told):
    told["gpu"] = {"idle_share": 0.25, "kernels": 512.0, "syncs": {"cudaStreamSynchronize": 2.0}}
    text = table(told)
    assert "idle 25.0 % of the step; 512 kernels; waits: cudaStreamSynchronize 2" in text
    assert "other work" not in text
