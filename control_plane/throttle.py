"""Wrong tokens slow down whoever keeps presenting them.

Two counts go up with each refused token: one for the client's address, one for the beginning of the token's digest (a
revoked token that many machines still use). The first `FREE` refusals cost nothing; each further one doubles the time
in which the next is answered 429. Counts fall by themselves, one in `FORGIVEN_AFTER` seconds.

A valid token is looked up first and always passes, whatever its neighbours behind the same address do. So this is no
lock: what makes tokens unguessable is their 256 bits. It keeps a guesser noisy, its answers uniform, and the audit log
short: `tells` says of each kind of event, once a minute, that it is worth a line.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

FREE = 10
"""Refusals in a row that are answered 401."""
FORGIVEN_AFTER = 30.0
"""Seconds after which one refusal is forgotten."""
LONGEST = 300.0
"""Seconds: the longest wait."""
_FIRST_WAIT = 1.0
_MOST_COUNTED = FREE + 12
"""Beyond this a count does not grow: silence then clears it in some ten minutes."""
_TELL_AGAIN = 60.0
MOST_TOLD = 100
"""Events of one kind that are told in a minute: a guesser with many addresses must not fill the log."""
_MOST_KEYS = 10_000
"""Addresses, digests and events that are remembered; the least recent goes first."""


@dataclass(slots=True)
class _Record:
    refusals: float
    at: float
    """When `refusals` was right."""
    closed_until: float = 0.0


class Throttle:
    """Counts refusals. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._told: OrderedDict[str, float] = OrderedDict()
        self._lately: defaultdict[str, deque[float]] = defaultdict(partial(deque[float], maxlen=MOST_TOLD))

    def refused(self, address: str, digest: str) -> float:
        """Count a refused token. Returns the seconds to wait that it is answered with: 0 for a plain 401.

        An attempt inside the wait is not counted again, or a client that retries blindly would never come out.
        """
        return max(self._count(key) for key in _keys(address, digest))

    def tells(self, kind: str, event: str) -> bool:
        """Whether this event should be told: the first like it in a minute, in which not too many of its kind were.

        Strangers with many addresses use up what is told of strangers, and nothing else.
        """
        now = self._clock()
        last = self._told.get(f"{kind} {event}")
        if last is not None and now - last < _TELL_AGAIN:
            return False
        lately = self._lately[kind]
        if len(lately) == MOST_TOLD and now - lately[0] < _TELL_AGAIN:
            return False
        lately.append(now)
        self._told[f"{kind} {event}"] = now
        self._told.move_to_end(f"{kind} {event}")
        _trim(self._told)
        return True

    def _count(self, key: str) -> float:
        now = self._clock()
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = _Record(0.0, now)
            _trim(self._records)
        self._records.move_to_end(key)
        if now < record.closed_until:
            return record.closed_until - now
        record.refusals = min(max(0.0, record.refusals - (now - record.at) / FORGIVEN_AFTER) + 1, _MOST_COUNTED)
        record.at = now
        if record.refusals <= FREE:
            return 0.0
        wait = min(_FIRST_WAIT * 2.0 ** int(record.refusals - FREE), LONGEST)
        record.at = record.closed_until = now + wait  # nothing is forgiven before the wait is over
        return wait


def _keys(address: str, digest: str) -> Iterable[str]:
    return f"address {address}", f"token {digest[:8]}"


def _trim(known: OrderedDict[str, _Record] | OrderedDict[str, float]) -> None:
    while len(known) > _MOST_KEYS:
        known.popitem(last=False)
