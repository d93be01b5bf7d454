"""Every planted fault is caught by the claim that it breaks; nothing is said against honest models."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from ratrain.contracts import contracts

# as a script it has no package
_SPEC = importlib.util.spec_from_file_location("zoo", Path(__file__).with_name("zoo.py"))
assert _SPEC and _SPEC.loader
zoo = importlib.util.module_from_spec(_SPEC)
sys.modules["zoo"] = zoo  # where its dataclasses look for it
_SPEC.loader.exec_module(zoo)


@pytest.mark.parametrize("name", zoo.names("patches"))
def test_a_planted_mechanism_breaks_its_contract(name):
    assert zoo.fault(name, zoo.caught_by(name))


@pytest.mark.thorough
@pytest.mark.parametrize("claim", contracts())
@pytest.mark.parametrize("name", zoo.names("honest"))
def test_an_honest_mechanism_keeps_every_contract(name, claim):
    contracts()[claim](zoo.manifest_of(name, "honest"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", zoo.names("decoders"))
def test_a_planted_decoder_is_told(name):
    claim = zoo.caught_by(name, "decoders")
    assert any(said.startswith(claim) for said in zoo.audited(name))


@pytest.mark.parametrize("name", zoo.names("honest_decoders"))
def test_an_honest_decoder_is_sound(name):
    found = zoo.audit(zoo.find_target(f"{zoo.HERE / 'honest_decoders' / name}.py:Model"), {})
    assert found.sound, found.page()


@pytest.mark.parametrize(
    "name", ["mean_over_sequence", "gradient_of_the_future", "batch_of_four", "hotter_in_training"]
)
def test_a_study_stops_at_an_arm_whose_loss_means_nothing(name):
    assert zoo.stopped(name)


def test_the_page_tells_of_every_plant():
    page = zoo.PAGE.read_text()
    plants = [name for folder in ("patches", "decoders") for name in zoo.names(folder)]
    assert len(plants) >= 80
    assert [name for name in plants if f"| `{name}` |" not in page] == []
    assert "of 0" not in page
