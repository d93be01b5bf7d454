"""Errors over documents are those of known formulas and of draws of documents."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ratrain.statistics.documents import difference, mean_of


def test_the_error_of_a_mean_is_sd_over_root_n():
    x = np.random.default_rng(0).normal(size=50)
    found = mean_of(x, np.ones(50))
    assert found.value == pytest.approx(x.mean())
    assert found.se == pytest.approx(x.std(ddof=1) / math.sqrt(50), rel=1e-12)


def test_documents_that_both_find_hard_cancel():
    hard = np.random.default_rng(0).normal(size=30) * 100
    found = difference(hard, hard + 1.0, np.ones(30))
    assert found == pytest.approx((1.0, 0.0), abs=1e-12)


def test_the_error_of_a_difference_is_the_spread_over_drawn_documents():
    draw = np.random.default_rng(1)
    weights = draw.integers(5, 50, size=200).astype(float)
    a, b = draw.normal(2.0, 0.3, 200) * weights, draw.normal(2.1, 0.3, 200) * weights
    rows = draw.integers(200, size=(4000, 200))
    values = (b - a)[rows].sum(1) / weights[rows].sum(1)
    assert difference(a, b, weights).se == pytest.approx(values.std(), rel=0.05)


def test_one_document_has_no_error():
    assert math.isnan(difference([1.0], [2.0], [1.0]).se)
