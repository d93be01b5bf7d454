"""A mixture draws each row from one of its corpora, by weight, and evaluates on all of them."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from ratrain.config.schema import DataSection
from ratrain.data.mixture import _shares
from ratrain.data.source import open_data
from ratrain.data.tokenizer import VOCAB
from ratrain.errors import DataError

SIZE = VOCAB["shakespeare2k"]


@pytest.fixture
def mixed(tmp_path):
    """Two folders whose tokens tell the folder: below 1000, and from 1000 on."""
    for at, name in enumerate(("low", "high")):
        folder = tmp_path / name
        folder.mkdir()
        for split, count in (("train", 5000), ("val", 3000)):
            tokens = np.random.default_rng(at).integers(1000 * at, 1000 * at + 900, count)
            tokens.astype("<u2").tofile(folder / f"{split}.bin")

    def opened(low=3.0, high=1.0):
        weights = {str(tmp_path / "low"): low, str(tmp_path / "high"): high}
        return open_data(DataSection(source="mixture", mixture=weights), vocab_size=SIZE, block_size=16)

    return opened


def test_rows_come_from_each_corpus_by_its_weight_and_lie_within_it(mixed):
    data = mixed()
    sampler = data.sampler(seed=1, batch=400, block_size=16)
    inputs = [sampler.batch(step)[0] for step in range(10)]
    of_high = np.concatenate([(batch >= 1000).numpy() for batch in inputs])
    assert set(of_high.mean(1).tolist()) == {0.0, 1.0}  # no row mixes them
    share = of_high[:, 0].mean()
    assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))


def test_every_window_of_a_corpus_can_be_drawn(mixed):
    sampler = mixed(1.0, 1.0).sampler(seed=1, batch=4096, block_size=4990)
    drawn = np.concatenate([sampler.order(step) for step in range(2)])
    assert {tuple(row) for row in drawn.tolist()} == {(which, offset) for which in (0, 1) for offset in range(10)}


def test_targets_follow_their_inputs_and_a_step_is_drawn_alike_by_every_number_of_processes(mixed):
    data = mixed()
    inputs, targets = data.sampler(seed=5, batch=8, block_size=16).batch(3)
    assert inputs[:, 1:].equal(targets[:, :-1])
    parts = [data.sampler(seed=5, batch=8, block_size=16, rank=rank, world=4).batch(3) for rank in range(4)]
    assert np.array_equal(np.concatenate([part[0] for part in parts]), inputs)
    assert np.array_equal(np.concatenate([part[1] for part in parts]), targets)


def test_validation_windows_are_divided_by_weight(mixed):
    windows = mixed().validation(block_size=16, count=10)
    assert (windows.inputs[:, 0] >= 1000).tolist() == [True] * 3 + [False] * 7
    assert mixed().clusters(windows).of.shape == windows.targets.shape


@pytest.mark.parametrize(
    ("count", "weights"), [(10, (0.75, 0.25)), (7, (1 / 3, 1 / 3, 1 / 3)), (1, (0.5, 0.5)), (64, (0.99, 0.01))]
)
def test_shares_add_up_and_are_within_one_of_the_exact_ones(count, weights):
    shares = _shares(count, weights)
    assert sum(shares) == count
    assert all(abs(share - count * weight) < 1 for share, weight in zip(shares, weights, strict=True))


def test_weights_count_by_their_ratio_and_change_the_fingerprint(mixed):
    assert mixed(3.0, 1.0).fingerprint == mixed(6.0, 2.0).fingerprint
    assert mixed(3.0, 1.0).fingerprint != mixed(1.0, 3.0).fingerprint


def test_text_that_one_corpus_validates_on_and_another_trains_on_is_found(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(300, 2000, (4, 3000))
    for name, train, val in (("a", ids[0], ids[1]), ("b", ids[1], ids[2])):
        (tmp_path / name).mkdir()
        train.astype("<u2").tofile(tmp_path / name / "train.bin")
        val.astype("<u2").tofile(tmp_path / name / "val.bin")
    weights = {str(tmp_path / name): 1.0 for name in ("a", "b")}
    section = DataSection(source="mixture", mixture=weights)
    alone = open_data(DataSection(source=str(tmp_path / "a")), vocab_size=SIZE, block_size=16)
    assert alone.overlap().share == 0
    assert open_data(section, vocab_size=SIZE, block_size=16).overlap().share == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "keys",
    [
        {"mixture": {"a": 1.0, "b": 1.0}},
        {"source": "mixture"},
        {"source": "mixture", "mixture": {"a": 1.0}},
        {"source": "mixture", "mixture": {"a": 1.0, "mqar": 1.0}},
        {"source": "mixture", "mixture": {"a": 0.0, "b": 1.0}},
    ],
)
def test_a_mixture_of_less_than_two_texts_is_refused(keys):
    with pytest.raises(ValidationError):
        DataSection(**keys)


def test_windows_keep_the_weights_and_their_clusters_where_a_corpus_is_too_short_for_its_part(mixed):
    data = mixed(1.0, 1.0)
    windows = data.validation(block_size=1400, count=50)
    assert windows.parts == (2, 2)  # 3000 tokens hold two windows
    assert data.clusters(windows).of.shape == windows.targets.shape
    uneven = mixed(9.0, 1.0).validation(block_size=100, count=200)
    assert uneven.parts == (3, 29)


def test_the_order_of_the_sources_changes_nothing(mixed, tmp_path):
    weights = {str(tmp_path / "high"): 1.0, str(tmp_path / "low"): 3.0}
    other = open_data(DataSection(source="mixture", mixture=weights), vocab_size=SIZE, block_size=16)
    assert other.fingerprint == mixed(3.0, 1.0).fingerprint


def test_the_same_text_twice_is_refused(mixed, tmp_path):
    mixed()
    weights = {str(tmp_path / "low"): 1.0, str(tmp_path / "high" / ".." / "low"): 1.0}
    with pytest.raises(DataError, match="hold the same tokens"):
        open_data(DataSection(source="mixture", mixture=weights), vocab_size=SIZE, block_size=16)
