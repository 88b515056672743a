from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_schema.sketch import ACCURACY, Sketch

values = st.lists(st.integers(1, 24 * 3600 * 1_000_000), min_size=1, max_size=300)


def sketch_of(numbers: list[int]) -> Sketch:
    sketch = Sketch()
    for number in numbers:
        sketch.add(number)
    return sketch


@given(values, st.floats(0, 1))
def test_a_quantile_is_within_one_percent_of_the_true_one(numbers: list[int], q: float) -> None:
    exact = sorted(numbers)[max(0, math.ceil(q * len(numbers)) - 1)]
    estimate = sketch_of(numbers).quantile(q)
    assert estimate is not None
    assert abs(estimate - exact) <= exact * ACCURACY * 1.0001


@given(values, values)
def test_merging_equals_adding_everything_to_one(left: list[int], right: list[int]) -> None:
    merged = sketch_of(left)
    merged.merge(sketch_of(right))
    assert merged.encode() == sketch_of(left + right).encode()


@given(st.lists(st.integers(-5, 10**12), max_size=100))
def test_encoding_loses_nothing(numbers: list[int]) -> None:
    sketch = sketch_of(numbers)
    assert Sketch.decode(sketch.encode()).bins == sketch.bins
    assert sketch.count == len(numbers)


@given(st.binary(max_size=60))
def test_foreign_bytes_are_a_sketch_or_a_value_error(data: bytes) -> None:
    try:
        sketch = Sketch.decode(data)
    except ValueError:
        return
    assert Sketch.decode(sketch.encode()).bins == sketch.bins


def test_an_empty_sketch_has_no_quantiles() -> None:
    assert Sketch().quantile(0.5) is None


def test_zeros_have_a_bin_of_their_own() -> None:
    assert sketch_of([0, 0, 0]).quantile(0.5) == pytest.approx(0)


def test_a_high_percentile_of_a_few_values_is_their_largest() -> None:
    assert sketch_of([1_000, 10_000]).quantile(0.99) == pytest.approx(10_000, rel=ACCURACY)
