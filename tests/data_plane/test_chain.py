from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane import chain
from data_plane.chain import Bound, OrderingError, Plan, make_slots
from data_plane.errors import Forbidden, NoService
from data_plane.exchange import Exchange, Handler, Proceed
from data_plane.messages import Headers, Response
from gateway_schema.entities import Consumer
from tests.data_plane.builders import entity_id, exchange

ALICE = Consumer(id=entity_id("alice"), username="alice")


class Recorder:
    """A handler that writes down what happens to it."""

    def __init__(self, name: str, trace: list[str]) -> None:
        self.name = name
        self.trace = trace

    async def handle(self, exchange: Exchange, proceed: Proceed) -> Response:
        self.trace.append(f"+{self.name}")
        response = await proceed(exchange)
        self.trace.append(f"-{self.name}")
        return response

    def log(self, exchange: Exchange, record: dict[str, Any]) -> None:
        self.trace.append(f"log {self.name}")


class Inline:
    """A handler made of a function."""

    def __init__(self, function: Callable[[Exchange, Proceed], Any]) -> None:
        self._function = function

    async def handle(self, exchange: Exchange, proceed: Proceed) -> Response:
        response: Response = await self._function(exchange, proceed)
        return response


class Upstream:
    async def send(self, exchange: Exchange) -> Response:
        return Response(200, Headers(), b"from upstream", source="upstream")


def bound(name: str, priority: int = 0, handler: Handler | None = None, **fields: Any) -> Bound:
    handler = handler or Recorder(name, [])
    fields.setdefault("id", name)
    phases = {phase: getattr(handler, phase, None) for phase in ("log", "prelude")}
    return Bound(name=name, priority=priority, handler=handler, **phases, **fields)


def order(*plugins: Bound) -> list[str]:
    return [slot.name for slot in make_slots(plugins)]


class TestOrder:
    def test_highest_priority_first_and_greater_names_first_among_equals(self) -> None:
        plugins = [bound("ai-proxy", 770), bound("key-auth", 1250), bound("ai-proxy-advanced", 770)]
        assert order(*plugins) == ["key-auth", "ai-proxy-advanced", "ai-proxy"]

    def test_before_pulls_a_plugin_forward_and_leaves_the_others(self) -> None:
        plugins = [
            bound("auth", 1000),
            bound("limit", 900),
            bound("transform", 800, before=frozenset({"auth"})),
        ]
        assert order(*plugins) == ["transform", "auth", "limit"]

    def test_after_holds_a_plugin_back_and_leaves_the_others(self) -> None:
        plugins = [
            bound("auth", 1000, after=frozenset({"transform"})),
            bound("limit", 900),
            bound("transform", 800),
            bound("last", 1),
        ]
        assert order(*plugins) == ["limit", "transform", "auth", "last"]

    def test_both_kinds_together(self) -> None:
        plugins = [
            bound("a", 5, after=frozenset({"c"})),
            bound("b", 4),
            bound("c", 3, after=frozenset({"e"})),
            bound("d", 2, before=frozenset({"b"})),
            bound("e", 1),
        ]
        found = order(*plugins)
        assert found.index("d") < found.index("b")
        assert found.index("e") < found.index("c") < found.index("a")
        assert len(found) == 5

    def test_names_that_are_not_on_the_route_are_ignored(self) -> None:
        assert order(bound("a", 2), bound("b", 1, before=frozenset({"zz"}), after=frozenset({"b"}))) == ["a", "b"]

    def test_a_contradiction_names_its_circle(self) -> None:
        plugins = [bound("a", 2, before=frozenset({"b"})), bound("b", 1, before=frozenset({"a"}))]
        with pytest.raises(OrderingError) as caught:
            make_slots(plugins)
        assert set(caught.value.names) == {"a", "b"}


class TestPrecedence:
    SCOPES = (
        {"consumer_id": ALICE.id, "route_id": "r", "service_id": "s"},
        {"consumer_id": ALICE.id, "route_id": "r"},
        {"consumer_id": ALICE.id, "service_id": "s"},
        {"route_id": "r", "service_id": "s"},
        {"consumer_id": ALICE.id},
        {"route_id": "r"},
        {"service_id": "s"},
        {},
    )
    """From the most to the least specific (`reference/gateway.md` §3.2)."""

    @pytest.mark.parametrize("first", range(8))
    def test_the_most_specific_configuration_that_applies_wins(self, first: int) -> None:
        plugins = [bound("p", id=str(number), **scope) for number, scope in enumerate(self.SCOPES)][first:]
        (slot,) = make_slots(plugins)
        someone = exchange()
        anonymous = next((p.id for p in plugins if not p.consumer_id), None)
        chosen = slot.choose(someone)
        assert (chosen.id if chosen else None) == anonymous
        someone.consumer = ALICE
        chosen = slot.choose(someone)
        assert chosen is not None
        assert chosen.id == str(first)

    def test_another_consumers_configuration_is_not_used(self) -> None:
        (slot,) = make_slots([bound("p", consumer_id="somebody")])
        other = exchange()
        other.consumer = ALICE
        assert slot.choose(other) is None

    async def test_the_choice_is_made_when_the_slot_is_reached(self) -> None:
        """A plugin above authentication cannot use a consumer's configuration; one below can."""

        async def name_alice(exchange: Exchange, proceed: Proceed) -> Response:
            exchange.consumer = ALICE
            return await proceed(exchange)

        trace: list[str] = []
        plugins = [
            bound("auth", 10, Inline(name_alice)),
            bound("early", 20, Recorder("early global", trace)),
            bound("early", 20, Recorder("early alice", trace), consumer_id=str(ALICE.id)),
            bound("late", 1, Recorder("late global", trace)),
            bound("late", 1, Recorder("late alice", trace), consumer_id=str(ALICE.id)),
        ]
        await walk(plugins)
        assert [entry for entry in trace if entry[0] == "+"] == ["+early global", "+late alice"]


async def walk(plugins: list[Bound], subject: Exchange | None = None) -> tuple[Response, Exchange, Plan]:
    plan = Plan(make_slots(plugins), Upstream())
    subject = subject or exchange()
    subject.upstream = plan.upstream
    return await chain.run(plan, subject), subject, plan


class TestWalk:
    async def test_the_response_unwinds_in_reverse(self) -> None:
        trace: list[str] = []
        response, _, _ = await walk([bound(name, 9 - n, Recorder(name, trace)) for n, name in enumerate("abc")])
        assert response.body == b"from upstream"
        assert trace == ["+a", "+b", "+c", "-c", "-b", "-a"]

    async def test_a_plugin_may_answer_and_is_named(self) -> None:
        async def answer(exchange: Exchange, proceed: Proceed) -> Response:
            return Response(418)

        trace: list[str] = []
        plugins = [bound("a", 3, Recorder("a", trace)), bound("b", 2, Inline(answer)), bound("c", 1)]
        response, subject, _ = await walk(plugins)
        assert (response.status, subject.plugin_name) == (418, "b")
        assert trace == ["+a", "-a"]

    async def test_log_runs_for_all_plugins_of_the_route_also_after_an_early_answer(self) -> None:
        async def answer(exchange: Exchange, proceed: Proceed) -> Response:
            return Response(418)

        trace: list[str] = []
        plugins = [
            bound("a", 3, Recorder("a", trace)),
            bound("b", 2, Inline(answer)),
            bound("c", 1, Recorder("c", trace)),
            bound("c", 1, Recorder("c of nobody here", trace), consumer_id="nobody"),
        ]
        _, subject, plan = await walk(plugins)
        trace.clear()
        chain.run_log_phase(plan, subject, {})
        assert trace == ["log a", "log c"]

    async def test_a_record_that_nobody_reads_is_not_made(self) -> None:
        class Contributor(Recorder):
            only_adds_to_log = True

        contributor = bound("a", 2, Contributor("a", []))
        _, _, plan = await walk([contributor])
        assert plan.log_slots == ()
        _, _, plan = await walk([contributor, bound("b", 1, Recorder("b", []))])
        assert [slot.name for slot in plan.log_slots] == ["a", "b"]

    async def test_a_failing_log_does_not_keep_the_others_from_theirs(self, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(Recorder):
            def log(self, exchange: Exchange, record: dict[str, Any]) -> None:
                raise RuntimeError("broken")

        trace: list[str] = []
        _, subject, plan = await walk([bound("a", 2, Broken("a", trace)), bound("b", 1, Recorder("b", trace))])
        chain.run_log_phase(plan, subject, {})
        assert trace[-1] == "log b"
        assert subject.id in caplog.text

    async def test_a_plugin_that_raises_closes_the_door(self, caplog: pytest.LogCaptureFixture) -> None:
        async def fail(exchange: Exchange, proceed: Proceed) -> Response:
            raise RuntimeError("the secret is hunter2")

        with caplog.at_level(logging.ERROR):
            response, subject, _ = await walk([bound("a", 2), bound("b", 1, Inline(fail))])
        assert response.status == 500
        assert b"An unexpected error occurred" in response.body  # type: ignore[operator]
        assert b"hunter2" not in response.body  # type: ignore[operator]
        assert (subject.plugin_name, subject.error_kind, response.source) == ("b", "internal", "gateway_error")
        assert subject.id in caplog.text

    async def test_a_refusal_is_the_plugins_answer(self) -> None:
        async def refuse(exchange: Exchange, proceed: Proceed) -> Response:
            raise Forbidden

        response, subject, _ = await walk([bound("a", 2), bound("b", 1, Inline(refuse))])
        assert (response.status, response.source, subject.plugin_name) == (403, "plugin", "b")

    async def test_a_plugin_after_its_upstream_failed_still_sees_the_error(self) -> None:
        async def rescue(exchange: Exchange, proceed: Proceed) -> Response:
            try:
                return await proceed(exchange)
            except NoService:
                return Response(200, Headers(), b"rescued")

        plan = Plan(make_slots([bound("a", 1, Inline(rescue))]), None)
        response = await chain.run(plan, exchange())
        assert response.body == b"rescued"

    async def test_without_service_and_answer_it_is_503(self) -> None:
        response = await chain.run(Plan(make_slots([bound("a", 1)]), None), exchange())
        assert response.status == 503
        assert b"no Service found with those values" in response.body  # type: ignore[operator]


class Before(Recorder):
    """A plugin that only does something before it proceeds; `acts` says what: nothing, `refuse`, `break`, `wait`."""

    def __init__(self, name: str, trace: list[str], acts: str) -> None:
        super().__init__(name, trace)
        self._acts = acts

    async def handle(self, exchange: Exchange, proceed: Proceed) -> Response:
        self._act()
        return await proceed(exchange)

    def _act(self) -> None:
        self.trace.append(f"+{self.name}")
        if self._acts == "refuse":
            raise Forbidden("no")
        if self._acts == "break":
            raise ValueError("broken")


class Ahead(Before):
    """The same with a prelude."""

    def prelude(self, exchange: Exchange) -> bool:
        if self._acts == "wait":
            return False
        self._act()
        return True


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "", "wait", "refuse", "break"])), max_size=6), st.booleans()
)
async def test_a_prelude_does_what_handle_would_have_done(kinds: list[tuple[bool, str]], upstream_fails: bool) -> None:
    found = []
    for kind in (Before, Ahead):
        trace: list[str] = []
        plugins = [
            bound(f"p{n}", -n, kind(f"p{n}", trace, acts) if only_before else Recorder(f"p{n}", trace))
            for n, (only_before, acts) in enumerate(kinds)
        ]
        subject = exchange()
        subject.upstream = Failing() if upstream_fails else Upstream()
        response = await chain.run(Plan(make_slots(plugins), subject.upstream), subject)
        chosen = [one.name for one in subject.plugins]
        found.append((trace, chosen, response.status, response.source, subject.plugin_name, subject.error_kind))
    assert found[0] == found[1]


class Failing:
    async def send(self, exchange: Exchange) -> Response:
        raise Forbidden("the upstream's own refusal")
