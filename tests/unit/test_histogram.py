"""The streaming histogram: constant size, exact counts, and a state that merges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from exporter.quantize.histogram import BINS, Histogram

VALUES = npst.arrays(
    np.float32,
    st.integers(0, 40),
    elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
    | st.floats(-1, 1, width=32, allow_subnormal=False),
)


def observed(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for values in batches:
        if values.size:
            histogram.add(values, float(values.min()), float(values.max()))
    return histogram


@given(VALUES, VALUES)
def test_a_merged_state_is_that_of_both_observed_in_turn(first, second):
    merged = observed(first)
    merged.merge(observed(second))
    assert merged == observed(first, second)


@given(VALUES, st.integers(1, 7))
def test_the_state_depends_neither_on_batches_nor_on_their_order(values, size):
    batches = [values[start : start + size] for start in range(0, len(values), size)]
    assert observed(*batches[::-1]) == observed(values)


@given(VALUES)
def test_every_value_is_counted_in_the_bin_that_holds_it(values):
    histogram = observed(values)
    assert histogram.total == values.size
    assert len(histogram.counts) <= BINS
    edges = histogram.edges
    for value in values.astype(np.float64):
        index = np.searchsorted(edges, value, side="right" if value > 0 else "left") - 1
        assert edges[index] <= value <= edges[index + 1]
        assert histogram.counts[index] >= 1


@given(VALUES)
def test_merging_leaves_the_other_state_alone(values):
    other = observed(values)
    before = other.parts()
    observed(np.float32([1e6])).merge(other)
    assert other.parts() == before


def test_a_wide_range_is_spread_over_at_least_half_of_the_bins():
    histogram = observed(np.linspace(-3, 5, 1000, dtype=np.float32))
    assert BINS / 2 <= len(histogram.counts) <= BINS


@pytest.mark.parametrize("value", [0.0, 1.0, -7.25, 1e-30, 1e30])
def test_a_constant_takes_one_bin(value):
    histogram = observed(np.full(5, value, np.float32))
    assert list(histogram.counts) == [5]
    assert histogram.edges[0] <= np.float32(value) <= histogram.edges[1]


def test_an_empty_histogram_has_no_range():
    assert observed().total == 0
    assert observed().minimum == math.inf
