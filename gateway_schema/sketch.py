"""A mergeable sketch of latencies (DDSketch, accuracy 1 %): quantiles whose error is bounded, sums that lose nothing.

Values are whole microseconds. A value v falls into bin ceil(log_γ v) with γ = (1+α)/(1−α); the bin answers for all its
values with an error of at most α. Merging adds bins, in any order. Source: DDSketch, arXiv:1908.10693.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

ACCURACY = 0.01
_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(_GAMMA)
_MAX_US = 24 * 3600 * 1_000_000
ZERO_BIN = 0


class Sketch:
    """Counts per bin. Bin 0 holds zeros; bin k ≥ 1 holds the values of (γ^(k−2), γ^(k−1)]."""

    __slots__ = ("bins",)

    def __init__(self, bins: Mapping[int, int] | None = None) -> None:
        self.bins: dict[int, int] = dict(bins or {})

    def add(self, value_us: int, count: int = 1) -> None:
        key = bin_of(value_us)
        self.bins[key] = self.bins.get(key, 0) + count

    def merge(self, other: Sketch) -> None:
        for key, count in other.bins.items():
            self.bins[key] = self.bins.get(key, 0) + count

    @property
    def count(self) -> int:
        return sum(self.bins.values())

    def quantile(self, q: float) -> float | None:
        """The q-quantile in microseconds (0 ≤ q ≤ 1) by nearest rank: the smallest value that at least that share of
        all values does not exceed, so that p99 of a few is their largest. None when nothing was added."""
        total = self.count
        if not total:
            return None
        rank = max(0, math.ceil(q * total) - 1)
        seen = 0
        for key in sorted(self.bins):
            seen += self.bins[key]
            if seen > rank:
                return value_of(key)
        return value_of(max(self.bins))

    def encode(self) -> bytes:
        """Ascending (gap, count) pairs as varints: small, and equal sketches give equal bytes."""
        out = bytearray()
        previous = 0
        for key in sorted(self.bins):
            _put_varint(out, key - previous)
            _put_varint(out, self.bins[key])
            previous = key
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes) -> Sketch:
        """The inverse of `encode`. Raises ValueError for bytes that are no sketch."""
        numbers = list(_varints(data))
        if len(numbers) % 2:
            raise ValueError("a sketch has pairs of numbers; this one ends in the middle")
        bins: dict[int, int] = {}
        key = 0
        for gap, count in zip(numbers[::2], numbers[1::2], strict=True):
            key += gap
            bins[key] = bins.get(key, 0) + count
        return cls(bins)


def bin_of(value_us: int) -> int:
    if value_us <= 0:
        return ZERO_BIN
    return 1 + math.ceil(math.log(min(value_us, _MAX_US)) / _LOG_GAMMA)


def value_of(key: int) -> float:
    """The value, in microseconds, that stands for a bin."""
    return 0.0 if key == ZERO_BIN else 2 * _GAMMA ** (key - 1) / (_GAMMA + 1)


def _put_varint(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _varints(data: bytes) -> list[int]:
    numbers: list[int] = []
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise ValueError("a number of a sketch is too long")
        if not byte & 0x80:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ValueError("a sketch ends in the middle of a number")
    return numbers
