"""Events are written field by field: they are what a message of protobuf's own making would say."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane import analytics
from data_plane.ai.decision import Decision
from data_plane.analytics import event_of, status_of
from data_plane.exchange import Exchange, LlmCall, Marks
from data_plane.http1.server import Sent
from data_plane.messages import BufferedBody, Head, Headers, Request, Response
from gateway_schema.wire import analytics_pb2 as pb
from tests.data_plane.builders import entity_id, exchange

NOW = 1_000.0
KINDS = ("service", "route", "consumer", "credential")


@dataclass
class Named:
    """An entity, as far as events name it; or a runtime."""

    id: str = ""
    version: int = 0


def us(seconds: float) -> int:
    return int(seconds * 1_000_000) if seconds > 0 else 0


def text(value: str, longest: int) -> str:
    return value[:longest].encode("latin-1").decode("utf-8", "replace")


def call_of(call: LlmCall) -> pb.LlmCall:
    """A call as protobuf makes it."""
    given = {name: getattr(call, name) for name in LlmCall.__slots__ if name not in ("duration", "ttft")}
    return pb.LlmCall(duration_us=us(call.duration), ttft_us=None if call.ttft is None else us(call.ttft), **given)


def message_of(subject: Exchange, response: Response, sent: Sent) -> pb.RequestEvent:
    """The event as protobuf makes it, field by field."""
    marks, request, headers = subject.marks, subject.request, subject.request.headers
    total = NOW - marks.received
    started = int(subject.started_at * 1_000_000)
    body: Any = subject.received_body
    event = pb.RequestEvent(
        request_id=bytes.fromhex(subject.id),
        started_us=started,
        finished_us=started + us(total),
        config_version=subject.runtime.version,
        method=request.method[:16],
        scheme=subject.scheme[:8],
        host=text((headers.get("host") or "").lower().rpartition(":")[0] or (headers.get("host") or "").lower(), 255),
        path=text(request.target.partition("?")[0], 1024),
        user_agent=text(headers.get("user-agent") or "", 256),
        client_ip=subject.client_ip,
        status=status_of(response, sent),
        upstream_status=subject.upstream_status,
        source=response.source,
        error_kind=subject.error_kind,
        plugin_name=subject.plugin_name,
        request_size=request.size + (body.received if hasattr(body, "received") else len(body.data)),
        response_size=sent.bytes_sent,
        total_us=us(total),
        callout_us=us(marks.callouts),
        outcome=sent.outcome,
        parent_request_id=subject.parent_id,
        llm_calls=[call_of(call) for call in subject.llm_calls],
        decision_id=subject.decision.id if subject.decision is not None else "",
    )
    for kind in KINDS:
        entity = getattr(subject, kind)
        if entity is not None:
            setattr(event, f"{kind}_id", entity.id)
    if marks.first_attempt is None or marks.upstream_started is None:
        event.gateway_us = us(total)
        return event
    first_byte = NOW if marks.first_byte is None else marks.first_byte
    done = NOW if marks.upstream_done is None else marks.upstream_done
    event.upstream_us = us(first_byte - marks.upstream_started)
    event.receive_us = us(done - first_byte)
    event.gateway_us = us(total - (done - marks.first_attempt))
    return event


class Arriving:
    """A body of which only a part came."""

    length = 100

    def __init__(self, received: int) -> None:
        self.received = received


tokens = st.integers(0, 1 << 40) | st.integers(0, 200)
names = st.text(max_size=200) | st.sampled_from(["", "gpt-4o"])
calls = st.builds(
    LlmCall,
    plugin_id=names,
    provider=names,
    request_model=names,
    response_model=names,
    model_alias=names,
    stream=st.booleans(),
    status=st.sampled_from([0, 200, 429]),
    error_kind=st.sampled_from(["", "timeout"]),
    role=st.sampled_from(["selected", "fallback"]),
    duration=st.floats(-1, 10_000),
    ttft=st.none() | st.floats(-1, 100),
    prompt_tokens=tokens,
    completion_tokens=tokens,
    cached_tokens=tokens,
    cache_write_tokens=tokens,
    reasoning_tokens=tokens,
    token_source=st.sampled_from(["none", "provider"]),
    cost_nano_usd=st.none() | st.integers(-(1 << 50), 1 << 50),
    finish_reason=names,
)
moments = st.floats(0, NOW)
marks = st.builds(
    Marks, moments, st.none() | moments, st.none() | moments, st.none() | moments, st.none() | moments, st.floats(0, 9)
)
latin = st.text(st.characters(max_codepoint=0xFF), max_size=20) | st.sampled_from(["é" * 700, "a" * 3000, "\xff\xfe"])
hosts = st.sampled_from(["", "A.example", "a.example:80", "\xc3\xa9.example:8443", "x" * 300])
entities = st.none() | st.builds(Named, st.sampled_from([entity_id("a"), entity_id("b")]))


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    target = "/" + draw(latin) + draw(st.sampled_from(["", "?secret=1"]))
    headers = Headers([("Host", draw(hosts)), ("User-Agent", draw(latin))])
    size = draw(st.integers(0, 1 << 34))
    request = Request(draw(st.sampled_from(["GET", "X" * 20])), target, headers, BufferedBody(b"1" * 300), size=size)
    subject = Exchange(request, Named(version=draw(st.integers(0, 1 << 60))))
    if draw(st.booleans()):
        subject.received_body = Arriving(draw(st.integers(0, 1 << 40)))  # type: ignore[assignment]
    subject.started_at = draw(st.floats(0, 1e11) | st.floats(1.7e9, 1.9e9))
    subject.marks = draw(marks)
    subject.scheme, subject.client_ip = draw(st.sampled_from([("http", "127.0.0.1"), ("https", "::1")]))
    for kind in KINDS:
        setattr(subject, kind, draw(entities))
    subject.upstream_status = draw(st.sampled_from([0, 200]))
    subject.error_kind, subject.plugin_name = draw(st.sampled_from([("", ""), ("timeout_read", "key-auth")]))
    subject.parent_id = draw(st.sampled_from(["", "0" * 32]))
    subject.decision = draw(st.none() | st.builds(Decision))
    subject.llm_calls = draw(st.lists(calls, max_size=3))
    return subject


sents = st.builds(
    Sent, st.booleans(), st.integers(0, 1 << 50), st.sampled_from(["complete", "client_closed", "gateway_abort"])
)


@given(exchanges(), sents, st.sampled_from(["upstream", "plugin"]))
def test_an_event_says_what_protobuf_would_have_written(subject: Exchange, sent: Sent, source: str) -> None:
    response = Response(200, source=source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: NOW)
        first, again = event_of(subject, response, sent), event_of(subject, response, sent)
    assert pb.RequestEvent.FromString(first) == message_of(subject, response, sent)
    assert again == first, "what was remembered is what was made"


def test_what_is_noted_of_a_head_is_of_that_head() -> None:
    subject = exchange()
    subject.runtime = Named()
    first, second = (Head([("Host", name), ("User-Agent", f"test/{name}")]) for name in ("a", "b"))
    seen = []
    for head in (first, second, first):
        subject.request.headers = head.headers("")
        seen.append(pb.RequestEvent.FromString(event_of(subject, Response(200), Sent())))
    assert [(event.host, event.user_agent) for event in seen] == [("a", "test/a"), ("b", "test/b"), ("a", "test/a")]


def test_what_is_remembered_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analytics, "_MAX_REMEMBERED", 5)
    for version in range(20):
        subject = exchange()
        subject.runtime = Named(version=version)
        subject.llm_calls.append(LlmCall(response_model=f"m{version}"))
        event = pb.RequestEvent.FromString(event_of(subject, Response(200), Sent()))
        assert (event.config_version, event.llm_calls[0].response_model) == (version, f"m{version}")
    assert len(analytics._commons) <= 5
    assert len(analytics._commons_of_calls) <= 5


@given(st.integers(0, (1 << 63) - 1))
def test_a_moment_is_written_as_any_number(us: int) -> None:
    assert analytics._moment(us) == analytics._varint(us)
    parsed = pb.RequestEvent.FromString(analytics._STARTED + analytics._moment(us))
    assert parsed.started_us == us
