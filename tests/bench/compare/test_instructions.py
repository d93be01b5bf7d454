"""Instructions are counted only if a counter is there, or somebody asks for the slow one."""

from __future__ import annotations

from bench.compare import instructions


def test_instructions_are_read_from_perf_and_missed_where_it_cannot_count():
    assert instructions._read_perf("1234567,,instructions:u,800,100.00,,\n") == 1234567
    assert instructions._read_perf("<not supported>,,instructions:u,0,100.00,,\n") is None


def test_instructions_are_not_counted_where_nobody_asked(monkeypatch):
    monkeypatch.setattr(instructions, "perf_counts", lambda: False)
    assert instructions.instructions({}, None, slow=False) is None
