"""Options of the bench, and the fixture that every bench measures with."""

from __future__ import annotations

from typing import Any

import pytest

from bench.costs.setting import REPLAY, TABLES, Setting, device_of


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ratrain")
    group.addoption("--scale", metavar="S", help="overlay of sizes: study, gpt2_124m, ... (that of the manifests)")
    group.addoption("--device", default="auto", metavar="D", help="cpu, cuda, cuda:N (auto: a GPU, else the CPU)")
    group.addoption("--rounds", type=int, metavar="N", help="rounds of each suite (as many as fit in --minutes)")
    group.addoption("--minutes", type=float, default=0.5, metavar="M", help="for the rounds of bench_variants (0.5)")
    group.addoption("--set", dest="overrides", action="append", default=[], metavar="K=V", help="change one key in all")
    group.addoption("--cold", default="v0", metavar="A,B", help="manifests whose cold start is measured (v0)")


@pytest.fixture(scope="session")
def setting(request: pytest.FixtureRequest) -> Setting:
    """Device and sizes of all measurements; prepares the process for them."""
    asked: Any = request.config.getoption
    made = Setting(
        scale=asked("--scale"),
        device=device_of(asked("--device")),
        rounds=asked("--rounds"),
        minutes=asked("--minutes"),
        overrides=tuple(asked("overrides")),
        cold=tuple(asked("--cold").split(",")),
    )
    made.prepare()
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=REPLAY))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for suite, lines in TABLES.items():
        terminalreporter.section(suite)
        for line in lines:
            terminalreporter.write_line(line)
