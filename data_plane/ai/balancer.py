"""Which of several targets answers: candidates by alias, a wheel of weights, a breaker per target. No I/O.

Candidates follow `reference/ai-plugins.md` §1.6: a request that names an alias gets the targets of that alias, one that
names none gets all, and one that names anything else gets the targets without alias, if there are any. Among them a
wheel turns on which every target has as many places as its weight says; who is out (breaker) or was tried is passed.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from data_plane.errors import LlmError, UpstreamError, UpstreamTimeout
from gateway_schema.plugins.ai_proxy_advanced import Balancer as BalancerConfig

ALGORITHMS: Final = frozenset({"round-robin"})
"""What this version can balance by."""

_MAX_WHEEL: Final = 65_536
"""Places on a wheel; weights that ask for more are scaled down, each keeping at least one."""


class Breaker:
    """Counts a target's failures and keeps it out for a while when there were too many.

    A success does not forgive earlier failures, unless the target has been quiet for a whole window: then one success
    clears it, and one more failure keeps it out for another window.
    """

    __slots__ = ("_last_failure", "_max_fails", "_window", "failures")

    def __init__(self, max_fails: int, window: float) -> None:
        """`max_fails` 0 switches it off; `window` in seconds."""
        self._max_fails = max_fails
        self._window = window
        self.failures = 0
        """As long as there are none, all is well: nobody need ask `allows` or say `succeeded`."""
        self._last_failure = -math.inf

    def allows(self, now: float) -> bool:
        return self.failures < self._max_fails or not self._max_fails or now - self._last_failure >= self._window

    def failed(self, now: float) -> None:
        self.failures += 1
        self._last_failure = now

    def succeeded(self, now: float) -> None:
        if self.failures and now - self._last_failure >= self._window:
            self.failures = 0

    def state(self, now: float) -> str:
        """`off`, `closed` (in use), `open` (out) or `probing` (offered again, not yet proven)."""
        if not self._max_fails:
            return "off"
        if self.failures < self._max_fails:
            return "closed"
        return "probing" if self.allows(now) else "open"


class Balanced(Protocol):
    """What the balancer must know of a target."""

    @property
    def alias(self) -> str | None: ...

    @property
    def weight(self) -> int: ...

    @property
    def breaker(self) -> Breaker: ...


TargetT = TypeVar("TargetT", bound=Balanced)


class Group(Generic[TargetT]):
    """Equal targets on one wheel."""

    def __init__(self, targets: Sequence[TargetT], shuffler: random.Random) -> None:
        self.targets = tuple(targets)
        self._wheel = _wheel([target.weight for target in targets], shuffler)
        self._position = 0

    def pick(self, tried: Collection[TargetT], now: float) -> TargetT | None:
        """The next target that was not tried and is not out; None when there is none."""
        targets = self.targets
        if len(targets) == 1:
            breaker = targets[0].breaker
            is_in = not breaker.failures or breaker.allows(now)
            return targets[0] if is_in and targets[0] not in tried else None
        eligible = [target not in tried and target.breaker.allows(now) for target in targets]
        if not any(eligible):
            return None
        wheel, position = self._wheel, self._position
        while not eligible[wheel[position]]:
            position = (position + 1) % len(wheel)
        self._position = (position + 1) % len(wheel)
        return targets[wheel[position]]


def _wheel(weights: Sequence[int], shuffler: random.Random) -> array[int]:
    divisor = math.gcd(*weights)
    places = [weight // divisor for weight in weights]
    total = sum(places)
    if total > _MAX_WHEEL:
        places = [max(1, round(count * _MAX_WHEEL / total)) for count in places]
    wheel = array("L")
    for number, count in enumerate(places):
        wheel.extend(array("L", [number]) * count)
    shuffler.shuffle(wheel)
    return wheel


class Balancer(Generic[TargetT]):
    """All groups of one plugin's targets."""

    def __init__(self, targets: Sequence[TargetT], shuffler: random.Random | None = None) -> None:
        shuffler = shuffler or random.Random()  # noqa: S311 (spreads load, guards nothing)
        self.everybody = Group(targets, shuffler)
        aliases = dict.fromkeys(target.alias for target in targets if target.alias is not None)
        self._by_alias: Mapping[str, Group[TargetT]] = {
            alias: Group([target for target in targets if target.alias == alias], shuffler) for alias in aliases
        }
        without = [target for target in targets if target.alias is None]
        self._without_alias = Group(without, shuffler) if without else None

    def candidates(self, model: str | None) -> tuple[Group[TargetT], bool]:
        """The targets for a request that names `model`, and whether it named them by alias.

        Raises LlmError(400) when it names none of the aliases and every target has one.
        """
        if not model:
            return self.everybody, False
        group = self._by_alias.get(model)
        if group is not None:
            return group, True
        if self._without_alias is None:
            raise LlmError(400, "model not configured", kind="model_not_configured")
        return self._without_alias, False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt did not succeed: `criterion` in the words of `failover_criteria`, and whether it was sent."""

    criterion: str
    sent: bool

    @classmethod
    def of(cls, error: UpstreamError) -> Failure:
        if isinstance(error, UpstreamTimeout):
            return cls("timeout", error.sent)
        return cls("invalid_header" if error.kind == "protocol" else "error", error.sent)


class FailoverRule:
    """nginx's `proxy_next_upstream`: which failures let another target try, and which count against the first."""

    def __init__(self, config: BalancerConfig) -> None:
        self._criteria = frozenset(config.failover_criteria)
        self._repeats_sent = "non_idempotent" in self._criteria

    def allows(self, failure: Failure) -> bool:
        """Chats are POST: once sent, they are repeated only where `non_idempotent` says so."""
        return failure.criterion in self._criteria and (self._repeats_sent or not failure.sent)

    def trips(self, failure: Failure) -> bool:
        """Whether the breaker counts it: faults of the wire always, 429 and 5xx when listed, 403 and 404 never."""
        if not failure.criterion.startswith("http_"):
            return True
        return failure.criterion in self._criteria and failure.criterion not in ("http_403", "http_404")
