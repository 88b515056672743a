"""Ranges and granularities of analytics queries: what a query asked for, and the true bounds of its answer.

Usage is kept per minute, so bounds fall on minutes and the finest granularity is one. The start is floored to the
granularity in the zone of the query; days are days of that zone, weeks start on Monday, and a day of 23 or 25 hours is
one bucket. Granularities under a day are counted from local midnight. The last bucket may be partial.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

GRANULARITIES: Mapping[str, int] = {
    "tenSecondly": 10,
    "thirtySecondly": 30,
    "minutely": 60,
    "fiveMinutely": 300,
    "tenMinutely": 600,
    "thirtyMinutely": 1_800,
    "hourly": 3_600,
    "twoHourly": 7_200,
    "twelveHourly": 43_200,
    "daily": 86_400,
    "weekly": 604_800,
}
"""Seconds of each; a longer range may be answered more coarsely than asked."""

CALENDAR = ("current_week", "current_month", "previous_week", "previous_month")
MINUTE, DAY, WEEK = 60, 86_400, 604_800
MAX_BUCKETS = 5_000
_UNITS = {"m": 60, "h": 3_600, "d": DAY, "w": WEEK}
_RELATIVE = re.compile(r"([1-9]\d{0,5})([mhdw])")
_EARLIEST = 0
_DEFAULTS = ((3_600, 60), (6 * 3_600, 300), (12 * 3_600, 600), (DAY, 1_800), (WEEK, 7_200), (400 * DAY, DAY))


class InvalidRange(ValueError):
    """A time range that cannot be read; `field` says which part of it."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Span:
    """What was asked for: Unix seconds, the end exclusive."""

    start: float
    end: float
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Frame:
    """What is answered. `granularity` is None for one row over the whole range."""

    start: int
    end: float
    zone: tzinfo
    granularity: int | None

    @property
    def last_minute(self) -> int:
        """The first minute that is no longer part of it."""
        return -(-int(self.end * 1000) // (MINUTE * 1000)) * MINUTE

    def bucket_of(self, second: int) -> int:
        """Start of the bucket that holds a second."""
        if self.granularity is None:
            return self.start
        return max(self.start, floor(second, self.granularity, self.zone))

    def buckets(self) -> list[int]:
        """All bucket starts, in order."""
        found: list[int] = []
        second = self.start
        while second < self.end:
            found.append(second)
            second = self.bucket_end(second)
        return found

    def bucket_end(self, start: int) -> int:
        """Where the bucket ends in full, be it in the future."""
        if self.granularity is None:
            return self.last_minute
        local = datetime.fromtimestamp(start, self.zone)
        midnight = local.replace(hour=0, minute=0, second=0, microsecond=0)
        if self.granularity >= DAY:
            # Days are added on the calendar: one may have 23 or 25 hours.
            return int(
                (midnight.replace(tzinfo=None) + timedelta(seconds=self.granularity))
                .replace(tzinfo=self.zone)
                .timestamp()
            )
        tomorrow = (midnight.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=self.zone)
        return min(start + self.granularity, int(tomorrow.timestamp()))

    def elapsed_minutes(self, start: int) -> float:
        """Minutes of a bucket that have passed: what rates divide by."""
        return (min(self.bucket_end(start), self.end) - start) / 60


def frame_of(span: Span, granularity: str | None, with_time: bool) -> Frame:
    """The bounds of an answer. Without the dimension `time` the range is one bucket."""
    start = int(span.start) // MINUTE * MINUTE
    if not with_time:
        return Frame(start, span.end, span.zone, None)
    length = span.end - span.start
    step = GRANULARITIES[granularity] if granularity else next((g for limit, g in _DEFAULTS if length <= limit), WEEK)
    step = max(step, MINUTE)
    for coarser in GRANULARITIES.values():
        if length / step > MAX_BUCKETS:
            step = max(step, coarser)
    return Frame(floor(start, step, span.zone), span.end, span.zone, step)


def floor(second: int, granularity: int, zone: tzinfo) -> int:
    """The start of the granule in the zone's calendar that holds a second."""
    midnight = datetime.fromtimestamp(second, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    if granularity >= WEEK:
        monday = midnight.replace(tzinfo=None) - timedelta(days=midnight.weekday())
        return int(monday.replace(tzinfo=zone).timestamp())
    start = int(midnight.replace(fold=0).timestamp())
    return start if granularity >= DAY else start + (second - start) // granularity * granularity


def zone_of(name: str | None, field: str = "time_range.tz") -> tzinfo:
    """Raises InvalidRange for a zone nobody knows."""
    if not name or name in ("UTC", "Etc/UTC", "Z"):
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidRange(field, f"unknown time zone '{name[:64]}'") from None


def relative(name: str, zone: tzinfo, now: float) -> Span:
    """`15m`, `24h`, `30d`, any such length, or a calendar name. Raises InvalidRange."""
    if name in CALENDAR:
        return _calendar(name, zone, now)
    match = _RELATIVE.fullmatch(name.lower())
    if match is None:
        names = ", ".join(CALENDAR)
        raise InvalidRange("time_range.time_range", f"expected a length such as 15m, 24h or 7d, or one of: {names}")
    length = int(match[1]) * _UNITS[match[2]]
    return Span(max(now - length, _EARLIEST), now, zone)


def absolute(start: str | None, end: str | None, zone: tzinfo, now: float) -> Span:
    """RFC 3339 bounds; naive ones are in the zone. A missing end is now. Raises InvalidRange."""
    if start is None:
        raise InvalidRange("time_range.start", "required for an absolute range")
    first = _moment(start, zone, "time_range.start")
    last = _moment(end, zone, "time_range.end") if end is not None else now
    if first >= last:
        raise InvalidRange("time_range.end", "must be later than time_range.start")
    return Span(first, last, zone)


def _moment(text: str, zone: tzinfo, field: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
        seconds = moment.timestamp()
    except (ValueError, OverflowError):
        raise InvalidRange(field, "expected a date and time such as 2026-01-31T12:00:00Z") from None
    if not _EARLIEST <= seconds <= 250_000_000_000:
        raise InvalidRange(field, "expected a date after 1970")
    return seconds


def _calendar(name: str, zone: tzinfo, now: float) -> Span:
    today = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    unit = name.split("_")[1]
    begin = today - timedelta(days=today.weekday()) if unit == "week" else today.replace(day=1)
    if name.startswith("current"):
        return Span(begin.replace(tzinfo=zone).timestamp(), now, zone)
    before = begin - timedelta(days=7) if unit == "week" else (begin - timedelta(days=1)).replace(day=1)
    return Span(before.replace(tzinfo=zone).timestamp(), begin.replace(tzinfo=zone).timestamp(), zone)
