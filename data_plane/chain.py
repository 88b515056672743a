"""The chain of plugins that an exchange walks.

Theory. A route has one *slot* per plugin name. Slots stand in order of priority, highest first, greater names first
among equals; `ordering` then moves a slot in front of, or behind, the ones it names, and leaves the rest as they are.
Which configuration fills a slot is decided when the slot is reached: the most specific one that applies, knowing the
consumer whom an earlier slot may just have named. All that does not depend on the consumer is decided at build time.

The chain is an onion: a plugin runs code before and after `await proceed(exchange)`, so responses unwind in reverse
order, where Kong would run every phase forward. A plugin that does not proceed answers; one that raises a GatewayError
refuses; one that raises anything else closes the door (500), and the cause goes to the log with the exchange's id.

Logging is a phase of its own: after the last byte, `log` is called for every configuration that was chosen and, when
somebody answered early, for those that would have been.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from data_plane.error_bodies import error_page
from data_plane.errors import ClientDisconnected, GatewayError, InternalError, NoService, UpstreamError
from data_plane.exchange import Exchange, Handler, Upstream
from data_plane.messages import Response

log = logging.getLogger(__name__)

Log = Callable[[Exchange, dict[str, Any]], None]
Prelude = Callable[[Exchange], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A plugin entity at work: its handler, and where it applies (ids; empty: everywhere)."""

    id: str
    name: str
    priority: int
    handler: Handler
    log: Log | None = None
    prelude: Prelude | None = None
    service_id: str = ""
    route_id: str = ""
    consumer_id: str = ""
    before: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()

    @property
    def specificity(self) -> int:
        """Kong's precedence of scopes as a number, greater wins: C+R+S, C+R, C+S, R+S, C, R, S, global."""
        scope = (bool(self.consumer_id), bool(self.route_id), bool(self.service_id))
        return _PRECEDENCE.index(scope)


_PRECEDENCE = (
    (False, False, False),
    (False, False, True),
    (False, True, False),
    (True, False, False),
    (False, True, True),
    (True, False, True),
    (True, True, False),
    (True, True, True),
)


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One plugin's place on one route: who fills it for anybody, and for particular consumers."""

    name: str
    priority: int
    anybody: Bound | None
    by_consumer: Mapping[str, Bound] = field(default_factory=dict)

    def choose(self, exchange: Exchange) -> Bound | None:
        if self.by_consumer and exchange.consumer is not None:
            return self.by_consumer.get(str(exchange.consumer.id), self.anybody)
        return self.anybody

    @property
    def candidates(self) -> list[Bound]:
        return [*self.by_consumer.values(), *([self.anybody] if self.anybody is not None else [])]


class OrderingError(Exception):
    """`ordering` that contradicts itself; names the plugins of the circle."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(f"contradictory ordering: {' -> '.join(names)}")


class Proceeding(Protocol):
    async def __call__(self, exchange: Exchange) -> Response: ...


class Plan:
    """What happens on one route: its slots in order, linked into a chain, and the upstream at the end.

    `bounds`: the plugins that the slots were made of.
    """

    __slots__ = ("bounds", "everybodys", "first", "is_prompt", "log_slots", "slots", "upstream")

    def __init__(self, slots: Sequence[Slot], upstream: Upstream | None, bounds: Sequence[Bound] = ()) -> None:
        self.bounds = tuple(bounds)
        self.slots = tuple(slots)
        self.upstream = upstream
        self.log_slots = _log_slots(slots)
        self.is_prompt = all(bound.prelude is not None for slot in slots for bound in slot.candidates)
        """Whether no plugin has more than a prelude."""
        self.everybodys: list[Bound] | None = None
        """The plugins in their order, where all consumers have the same; to be read only."""
        if not any(slot.by_consumer for slot in self.slots):
            self.everybodys = [slot.anybody for slot in self.slots if slot.anybody is not None]
        first: Proceeding = _proceed_upstream
        for slot in reversed(self.slots):
            first = _Step(slot, first)
        self.first = first


def _log_slots(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """The slots with a log phase; none when all of them would only add to a record that nobody reads."""
    loggers = [(slot, bound) for slot in slots for bound in slot.candidates if bound.log is not None]
    if all(getattr(bound.handler, "only_adds_to_log", False) for _, bound in loggers):
        return ()
    return tuple(dict.fromkeys(slot for slot, _ in loggers))


class _Step:
    """A slot with what comes behind it; being callable, it is the `proceed` of the slot in front."""

    __slots__ = ("_next", "_slot")

    def __init__(self, slot: Slot, following: Proceeding) -> None:
        self._slot = slot
        self._next = following

    async def __call__(self, exchange: Exchange) -> Response:
        """Plugins that only have a prelude are run in a row: a coroutine for each would cost more than most of them."""
        step: _Step = self
        innermost = ""
        try:
            while True:
                bound = step._slot.choose(exchange)
                following = step._next
                if bound is not None:
                    exchange.plugins.append(bound)
                    innermost = bound.name
                    if bound.prelude is None or not bound.prelude(exchange):
                        return await bound.handler.handle(exchange, following)
                if type(following) is not _Step:
                    return await following(exchange)
                step = following
        except (UpstreamError, NoService):
            raise
        except Exception:
            # The innermost plugin that the error passes is the one that failed.
            exchange.plugin_name = exchange.plugin_name or innermost
            raise


async def _proceed_upstream(exchange: Exchange) -> Response:
    """The end of every chain: ask the upstream, whoever named it, and take the time."""
    upstream = exchange.upstream
    if upstream is None:
        raise NoService
    marks = exchange.marks
    marks.first_attempt = marks.upstream_started = time.monotonic()
    marks.first_byte = marks.upstream_done = None
    try:
        response = await upstream.send(exchange)
    except BaseException:
        marks.first_byte = marks.upstream_done = time.monotonic()
        raise
    now = time.monotonic()
    if marks.first_byte is None:
        marks.first_byte = now
    if isinstance(response.body, bytes):
        marks.upstream_done = now
    return response


async def run(plan: Plan, exchange: Exchange) -> Response:
    """Walk the chain; whatever goes wrong becomes an answer. Only cancellation passes."""
    try:
        response = await plan.first(exchange)
    except GatewayError as error:
        response = error_response(error, exchange)
        if exchange.plugin_name and error.status < 500:
            response.source = "plugin"
        return response
    except ClientDisconnected:
        # Its body broke off while somebody read it. Nobody is left to see the answer; the event will tell.
        exchange.error_kind = "client_closed"
        return Response(499, source="gateway_error")
    except Exception:
        log.exception("exchange %s failed in %s", exchange.id, exchange.plugin_name or "the gateway")
        return error_response(InternalError(), exchange)
    if response.source == "plugin" and exchange.plugins and not exchange.plugin_name:
        exchange.plugin_name = exchange.plugins[-1].name
    return response


def error_response(error: GatewayError, exchange: Exchange) -> Response:
    """An error as the client gets it; what the analytics want to know is noted on the exchange."""
    exchange.error_kind = error.kind
    if isinstance(error, UpstreamError) and error.detail:
        log.warning("exchange %s: %s (%s)", exchange.id, error.kind, error.detail)
    return error_page(error, exchange.id, exchange.request.headers, exchange.request.method)


def run_log_phase(plan: Plan, exchange: Exchange, record: dict[str, Any]) -> None:
    """Let every plugin of the route see how it ended. One that fails is logged; the exchange is over anyway."""
    for slot in plan.log_slots:
        bound = next((b for b in exchange.plugins if b.name == slot.name), None) or slot.choose(exchange)
        if bound is None or bound.log is None:
            continue
        try:
            bound.log(exchange, record)
        except Exception:
            log.exception("exchange %s: %s failed in its log phase", exchange.id, bound.name)


def make_slots(plugins: Iterable[Bound]) -> list[Slot]:
    """The slots of one route, in order. `plugins` are all that apply there to somebody. Raises OrderingError."""
    by_name: dict[str, list[Bound]] = {}
    for bound in sorted(plugins, key=lambda bound: bound.specificity):
        by_name.setdefault(bound.name, []).append(bound)
    slots = [_slot(name, bounds) for name, bounds in by_name.items()]
    slots.sort(key=lambda slot: (slot.priority, slot.name), reverse=True)
    return _arranged(slots) if any(bound.before or bound.after for s in slots for bound in s.candidates) else slots


def _slot(name: str, bounds: Sequence[Bound]) -> Slot:
    """`bounds` from the least to the most specific."""
    anybody = next((bound for bound in reversed(bounds) if not bound.consumer_id), None)
    by_consumer = {bound.consumer_id: bound for bound in bounds if bound.consumer_id}
    if anybody is not None:
        floor = anybody.specificity
        by_consumer = {key: bound for key, bound in by_consumer.items() if bound.specificity > floor}
    return Slot(name, bounds[0].priority, anybody, by_consumer)


def _arranged(slots: Sequence[Slot]) -> list[Slot]:
    """Apply `ordering`: walk the static order, pulling forward what must come before, holding back what must wait."""
    by_name = {slot.name: slot for slot in slots}
    pulled: dict[str, list[str]] = {name: [] for name in by_name}
    earlier: dict[str, set[str]] = {name: set() for name in by_name}
    for slot in slots:
        for bound in slot.candidates:
            for other in sorted(bound.before & by_name.keys() - {slot.name}):
                earlier[other].add(slot.name)
                pulled[other].append(slot.name)
            earlier[slot.name] |= bound.after & by_name.keys() - {slot.name}
    _refuse_circles(earlier)
    placed: dict[str, Slot] = {}
    held: list[str] = []

    def place(name: str) -> None:
        if name in placed:
            return
        for other in pulled[name]:
            place(other)
        if not earlier[name] <= placed.keys():
            if name not in held:
                held.append(name)
            return
        if name in placed:  # placed meanwhile: one of those it pulled released it
            return
        placed[name] = by_name[name]
        for waiting in [other for other in held if other not in placed and earlier[other] <= placed.keys()]:
            place(waiting)

    for slot in slots:
        place(slot.name)
    return list(placed.values())


def _refuse_circles(earlier: Mapping[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            raise OrderingError([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(earlier[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in earlier:
        visit(name, ())
