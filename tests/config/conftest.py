"""Kinds for the tests of the config: small, and no torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import PositiveInt

from ratrain.config.read import find_manifest, read_source
from ratrain.config.resolve import resolve
from ratrain.config.schema import ActivationSection, OptimSection, Section


class FakeAdamW(OptimSection):
    kind: ClassVar[str] = "adamw"

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8


class FakeMuon(OptimSection):
    kind: ClassVar[str] = "muon"

    momentum: float = 0.95


class FakeGate(Section):
    kind: ClassVar[str] = "unified_ra"

    target: str = "blocks.*.attn.score"
    rank: PositiveInt = 4
    gates: Literal["head", "layer"] = "head"
    activation: ActivationSection | None = None


class FakePrune(Section):
    kind: ClassVar[str] = "kv_prune"

    keep: float | int = 0.5
    label: str | None = None
    layers: tuple[int, ...] = ()
    activation: ActivationSection | None = None


KINDS = {
    "patches": {"unified_ra": FakeGate, "kv_prune": FakePrune},
    "optimizers": {"adamw": FakeAdamW, "muon": FakeMuon},
}


@pytest.fixture(scope="session")
def kinds():
    return KINDS


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a manifest below the current folder and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture(scope="session")
def resolved():
    """The manifest of a shipped variant or a path, with `--set`s."""

    def resolved(name: str, *overrides: str, scale: str | None = None):
        return resolve(read_source(find_manifest(str(name)), scale=scale, overrides=overrides), **KINDS)

    return resolved
