"""The express way through plugins: who is let in, what is sent, said and told is the same as in the ordinary way."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.ai.balancer import Balancer
from data_plane.express import OpenLine
from data_plane.http1.express import Line, Ride
from data_plane.plugins import HANDLERS
from data_plane.plugins.ai_prompt_decorator import AiPromptDecorator
from tests.data_plane.ai.gateways import EVENTS, bedrock, openai
from tests.data_plane.builders import document, gateway
from tests.data_plane.http1.peers import Peer, Upstream, read_request
from tests.data_plane.stage import Asked, Rides, Stage, end_turn, ordinarily, stage, unlike
from tests.data_plane.test_express import Setting, Talk, Unreliable, compare, impersonal_event, run, until
from tests.gateway_schema.datakit_lists import APPLIED

# What is configured.

PRICED = {"input_cost": 3.0, "output_cost": 15.0, "cache_read_cost": 0.3}
DECORATOR = {
    "name": "ai-prompt-decorator",
    "config": {"prompts": {"prepend": [{"role": "system", "content": "Be né."}]}, "max_request_body_size": 20_000},
}
TAG = {"name": "ai-prompt-decorator", "config": {}}
"""Becomes `Tagger`, where a test says so."""
OURS, HERS = "alice-key", "bob-key"


def target(port: int, name: str | None = "m", alias: str | None = None, **fields: Any) -> dict[str, Any]:
    options = {**PRICED, **fields.pop("options", {})}
    return openai(f"http://127.0.0.1:{port}", name, alias, options=options, **fields)


def signed(port: int) -> dict[str, Any]:
    return bedrock("us.m:0", alias="fast", options={"upstream_url": f"http://127.0.0.1:{port}", **PRICED})


def auth(**config: Any) -> dict[str, Any]:
    return {"name": "key-auth", "config": config}


def proxy(*targets: dict[str, Any], consumer: str = "", **config: Any) -> dict[str, Any]:
    plugin = {"name": "ai-proxy-advanced", "config": {"targets": list(targets), **config}}
    return {**plugin, "consumer": consumer} if consumer else plugin


def configured(
    port: int, *plugins: dict[str, Any], credentials: Sequence[dict[str, Any]] = (), read_timeout: int = 10_000
) -> bytes:
    """One route, /a, with these plugins, to the service."""
    service = {"name": "s", "url": f"http://127.0.0.1:{port}/in", "retries": 0, "read_timeout": read_timeout}
    own = [{"consumer": "alice", "key": OURS}, {"consumer": "bob", "key": HERS}]
    return document(
        services=[service],
        routes=[{"name": "r", "paths": ["/a"], "service": "s"}],
        consumers=[{"username": "alice", "custom_id": "né"}, {"username": "bob"}, {"username": "guest"}],
        keyauth_credentials=[*own, *credentials],
        plugins=[{**plugin, "route": "r"} for plugin in plugins],
    )


CONFIGURATIONS: dict[str, Callable[[int], Sequence[dict[str, Any]]]] = {
    "one target": lambda port: (auth(), DECORATOR, proxy(target(port, alias="fast"))),
    "payloads": lambda port: (
        auth(),
        proxy(target(port, alias="fast", logging={"log_payloads": True}), model_name_header=False),
    ),
    "several": lambda port: (
        auth(),
        DECORATOR,
        proxy(
            target(port, "one", "fast", weight=3),
            target(port, "two", "fast", weight=1),
            target(port, "m", "solo"),
            balancer={"failover_criteria": ["error", "timeout", "http_500", "non_idempotent"], "retries": 2},
        ),
    ),
    "any model": lambda port: (auth(), DECORATOR, proxy(target(port, None))),
    "no alias": lambda port: (auth(), proxy(target(port))),
    "tuned": lambda port: (
        auth(),
        proxy(target(port, "o1", options={"max_tokens": 7, "temperature": 0.5}), max_request_body_size=300),
    ),
    "signed": lambda port: (auth(), DECORATOR, proxy(signed(port))),
    "breaker": lambda port: (auth(), proxy(target(port), balancer={"max_fails": 2})),
    "denies streams": lambda port: (auth(), proxy(target(port), response_streaming="deny")),
    "always streams": lambda port: (auth(), proxy(target(port), response_streaming="always")),
    "service": lambda port: (auth(),),
    "shown": lambda port: (auth(hide_credentials=False),),
    "service, decorated": lambda port: (auth(), DECORATOR),
    "anonymous": lambda port: (auth(anonymous="guest"), proxy(target(port))),
    "anonymous, service": lambda port: (auth(anonymous="guest"),),
    "in bodies": lambda port: (auth(key_in_body=True), proxy(target(port))),
    "no preflight": lambda port: (auth(run_on_preflight=False),),
    "by consumer": lambda port: (
        auth(),
        {**DECORATOR, "consumer": "bob"},
        proxy(target(port)),
        proxy(target(port, "for-bob", "fast"), consumer="bob"),
    ),
    "bob's only": lambda port: (auth(), proxy(target(port), consumer="bob")),
}


# What is asked.


def chat(**fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "eins zwei drei"}], **fields}).encode()


FITTING = {
    "any model": "m",
    "one target": "fast",
    "payloads": "fast",
    "several": "solo",
    "tuned": "o1",
    "signed": "fast",
}
"""What a model is called in each configuration; in others nothing needs to be said."""


def fitting(name: str, **fields: Any) -> bytes:
    """A chat that one target only may answer."""
    return chat(**({"model": FITTING[name]} if name in FITTING else {}), **fields)


BODIES = (
    chat(model="fast"),
    chat(),
    chat(model="m"),
    chat(model="solo"),
    chat(model="fast", temperature=0.25, user="é\u2028", n=10**18),
    chat(model="fast", max_tokens=5, stream=False, stream_options={"x": 1}, top_k=3),
    chat(model="fast", stream=True),
    chat(stream=True, stream_options={"include_usage": True}),
    chat(model="fast", stream="yes"),
    chat(model="nope"),
    chat(model=7),
    chat(prompt="x"),
    b'{"prompt": "x"}',
    b'{"messages": []}',
    b'{"messages": "x", "model": "fast"}',
    b'{"messages": [1, null, {"content": [{"text": "a b"}]}], "model": "fast"}',
    b"[1]",
    b"{",
    b"",
    b"\xff\xfe",
    b'{"apikey": "alice-key", "messages": [{"role": "user", "content": "x"}]}',
    chat(padding="x" * 400),
    chat(padding="x" * 21_000),
    chat(padding="x" * 40_000),
)
IDENTITY = b"X-Consumer-Username: root\r\nx_consumer_id: 0\r\nX-Credential-Identifier: 0\r\nX-Anonymous-Consumer: false"
FIELDS = (
    b"Content-Type: application/json",
    b"Content-Type: application/json; charset=utf-8",
    b"content-type: text/plain",
    b"User-Agent: u/1",
    b"Authorization: Bearer mine",
    b"Cookie: a=b",
    b"Connection: keep-alive",
    b"X-Real-IP: 9.9.9.9",
    b"X-Forwarded-Proto: https",
    b"Kong-Debug: 1",
    IDENTITY,
)
KEYS = (
    b"apikey: alice-key",
    b"apikey: alice-key",
    b"apikey: alice-key",
    b"APIKEY: bob-key",
    b"apikey: wrong",
    b"apikey: alice-key\r\napikey: bob-key",
    b"X-None: 1",
)


def ask(body: bytes, *fields: bytes, key: bytes = KEYS[0], target: bytes = b"/a", method: bytes = b"POST") -> bytes:
    """Of methods that have no body, without one."""
    length = (b"Content-Length: %d" % len(body),) if method in (b"POST", b"PUT", b"OPTIONS") else ()
    first = method + b" " + target + b" HTTP/1.1"
    return b"\r\n".join((first, b"Host: h", key, *fields, *length, b"", body if length else b""))


@st.composite
def requests(draw: st.DrawFn, name: str) -> list[bytes]:
    """Requests with one head, but for the length; at times, another key in it from some moment on."""
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=3, unique=True))
    target = draw(st.sampled_from([b"/a", b"/a", b"/a/b?x=1", b"/a?x=1&apikey=bob-key&y=%20"]))
    method = draw(st.sampled_from([b"POST"] * 6 + [b"PUT", b"OPTIONS", b"GET", b"DELETE"]))
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=2, max_size=2))
    usual = st.sampled_from([fitting(name), fitting(name, temperature=0.25, user="é\u2028", stream=False)])
    bodies = draw(st.lists(usual | usual | st.sampled_from(BODIES), min_size=5, max_size=9))
    changes = draw(st.integers(4, 12))
    return [
        ask(body, *fields, key=keys[number >= changes], target=target, method=method)
        for number, body in enumerate([fitting(name)] * 3 + bodies)
    ]


# What is answered.


def completion(**fields: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Grüße"}, "finish_reason": "stop"}
    return json.dumps({"id": "c", "object": "chat.completion", "model": "m-1", "choices": [choice], **fields}).encode()


USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
CONVERSE = json.dumps(
    {
        "output": {"message": {"role": "assistant", "content": [{"text": "hallo"}]}},
        "stopReason": "end_turn",
        "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5},
    }
).encode()
SAID = (
    completion(usage=USAGE),
    completion(usage=USAGE, service_tier="default"),
    completion(),
    CONVERSE,
    completion(usage="x", model=None, choices=[]),
    completion(choices=[{"message": {"tool_calls": [{"function": {"arguments": "{}"}}]}}]),
    completion(padding="x" * 40_000),
    b'{"choices": null}',
    b'{"choices": [1]}',
    b'{"error": {"message": "no"}}',
    b"[]",
    b"not json",
    b"",
)
HEADS = (
    (b"Content-Type: application/json", b"Date: now"),
    (b"Content-Type: application/json", b"Date: now"),
    (b"Content-Type: application/json",),
    (b"Content-Type: application/json; x=y", b"Date: now", b"Server: theirs", b"Via: 1.0 x"),
    (b"Date: now",),
    (b"Content-Type: application/json", b"Content-Encoding: gzip", b"Date: now"),
    (b"Content-Encoding: identity", b"Date: now", b"Set-Cookie: a=b", b"X-Kong-Y: 1", b"X-Tandem-Decision: mine"),
    (b"Date: now", b"Connection: X-Drop", b"X-Drop: 1", b"x-EMPTY:", b"X-Odd: \xe9"),
    (b"Date: now", b"Connection: close"),
    (b"Date: now", b"x-amzn-requestid: theirs", b"X-Kong-LLM-Model: theirs", b"Retry-After: 5"),
)
STATUSES = (*[b"200 OK"] * 6, b"201 Made", b"429 Slow", b"500 Oops", b"401 Who", b"204 No Content", b"503 Busy")
STREAM = [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"]
STREAM += [b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS] + [b"0\r\n\r\n"]


def whole(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    length = () if status[:3] == b"204" else (b"Content-Length: %d" % len(body),)
    return b"\r\n".join((b"HTTP/1.1 " + status, *fields, *length, b"", b"" if status[:3] == b"204" else body))


@st.composite
def answers(draw: st.DrawFn, name: str) -> list[list[bytes]]:
    """Answers, each in the pieces it is written in: mostly one, others in between. Without pieces, it is a close."""
    head, usual = draw(st.sampled_from(HEADS)), CONVERSE if name == "signed" else draw(st.sampled_from(SAID[:3]))
    said = []
    for number in range(12):
        if number < 3 or draw(st.integers(0, 2)):
            said.append([whole(usual, *head)])
            continue
        body, fields = draw(st.sampled_from(SAID)), draw(st.sampled_from(HEADS))
        data = whole(body, *fields, status=draw(st.sampled_from(STATUSES)))
        kind = draw(st.sampled_from(["whole", "whole", "whole", "pieces", "chunked", "close", "cut"]))
        cut = draw(st.integers(1, len(data) - 1))
        if kind == "pieces":
            said.append([data[:cut], data[cut:]])
        elif kind == "chunked" and body:
            start = b"\r\n".join((b"HTTP/1.1 200 OK", *fields, b"Transfer-Encoding: chunked", b"", b""))
            said.append([start + b"%x\r\n%b\r\n" % (len(body), body), b"0\r\n\r\n"])
        elif kind == "close":
            said.append([])
        elif kind == "cut":
            said.append([data[:cut], b""])
        else:
            said.append([data])
    return said


class Provider(Setting):
    """A provider, or service: streams to whom asks for it. No pieces, or an empty one, are a close."""

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = b"".join(await read_request(reader))
            pieces = self._pieces(data)
            self.requests.append(data)
            for piece in pieces:
                if not piece:
                    return
                writer.write(piece)
                for _ in range(3):
                    await asyncio.sleep(0)
            if not pieces:
                return

    def _pieces(self, data: bytes) -> list[bytes]:
        pieces = self.said[len(self.requests) % len(self.said)]
        return STREAM if b'"stream":true' in data and pieces else pieces

    async def talk(self, segments: list[bytes], *, waits: bool = True) -> Talk:
        talk = await super().talk(segments, waits=waits)
        events = self.stage.node.events
        decisions = re.findall(rb"(?<=\r\nX-Tandem-Decision: )[0-9a-f]{24}", talk.client)
        told = [event for event in events if event.decision_id and event.status != 499 and not event.parent_request_id]
        assert decisions == [event.decision_id.encode() for event in told]
        port = b"X-Forwarded-Port: %d\r\n" % self.stage.node.port
        service = [request.replace(port, b"") for request in talk.service]
        return talk._replace(service=service, events=[impersonal_call(event) for event in events])


def impersonal_call(event: Any) -> str:
    """An event without what differs from exchange to exchange; that it is there does not differ."""
    copy = type(event).FromString(event.SerializeToString())
    presence = [bool(copy.decision_id), bool(copy.parent_request_id), copy.callout_us > 0]
    for name in ("decision_id", "parent_request_id", "callout_us"):
        copy.ClearField(name)
    presences = []
    for call in copy.llm_calls:
        assert 0 < call.duration_us <= event.total_us
        presences.append(call.HasField("ttft_us"))
        call.ClearField("duration_us")
        call.ClearField("ttft_us")
    return f"{impersonal_event(copy)} {presence} {presences}"


def forgetful(patch: pytest.MonkeyPatch) -> None:
    """Let no connection remember a head."""
    patch.setattr("data_plane.http1.familiar.Memory.keep", lambda self, data, size, headers, meaning: headers)


async def both_ways(
    configuration: Callable[[int], bytes],
    segments: list[bytes],
    said: list[list[bytes]],
    *,
    off: Callable[[pytest.MonkeyPatch], None] = ordinarily,
    provider: type[Provider] = Provider,
    kinds: Sequence[type[Line]] = (),
    **node_settings: Any,
) -> tuple[Talk, Talk, Rides]:
    """The same conversation in the ordinary way (`off` sees to that), and with the express way."""
    talks = []
    setting = provider(said)
    with pytest.MonkeyPatch.context() as patch:
        rides = Rides(patch, *kinds)
        patch.setattr("data_plane.ai.upstream.Balancer", lambda targets: Balancer(targets, random.Random(7)))
        async with setting.stage.server:
            for is_ordinary in (True, False):
                with patch.context() as ordinary:
                    if is_ordinary:
                        off(ordinary)
                    async with gateway(**node_settings) as node:
                        setting.stage.node = node
                        object.__setattr__(node.worker._server._limits, "half_close_is_leaving", False)
                        await node.apply(configuration(setting.stage.server.port), 1)
                        talks.append(await setting.talk(segments))
                assert not (is_ordinary and rides.boarded)
    return talks[0], talks[1], rides


def named(name: str) -> Callable[[int], bytes]:
    return lambda port: configured(port, *CONFIGURATIONS[name](port))


@settings(max_examples=250)
@given(st.data())
def test_a_conversation_is_the_same(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CONFIGURATIONS)))
    asked, said = data.draw(requests(name)), data.draw(answers(name))
    if data.draw(st.booleans()):
        asked = unlike(asked)
    trusted = data.draw(st.sampled_from([(), ("127.0.0.1",)]))
    more: dict[str, Any] = {"trusted_ips": trusted, "allow_debug_header": data.draw(st.booleans())}
    ordinary, express, _ = run(both_ways(named(name), asked, said, **more))
    compare(ordinary, express)
    heads = b"".join(request.partition(b"\r\n\r\n")[0] for request in express.service)
    if name not in LETS_PASS:
        assert b"-key" not in heads
    if name != "no preflight":
        assert b"root" not in heads


LETS_PASS = ("shown", "no preflight", "anonymous, service")
"""Configurations with which keys may reach the service: shown, unread, or one too many."""
RIDING = {
    "one target": 7,
    "payloads": 7,
    "several": 3,
    "any model": 7,
    "no alias": 7,
    "tuned": 7,
    "signed": 7,
    "breaker": 7,
    "denies streams": 7,
    "always streams": 0,
    "service": 7,
    "shown": 7,
    "service, decorated": 0,
    "anonymous": 7,
    "anonymous, service": 7,
    "in bodies": 0,
    "no preflight": 7,
    "by consumer": 7,
    "bob's only": 7,
}


def straight(name: str) -> tuple[list[bytes], list[list[bytes]]]:
    """Ten requests of which nothing is in the way of riding, as far as a configuration allows it, and answers."""
    bodies = [fitting(name)] * 10
    if name == "several":
        bodies = [chat(model=model) for model in ("solo", "solo", "solo", *("fast", "solo") * 3, "fast")]
    said = [[whole(CONVERSE if name == "signed" else completion(usage=USAGE), *HEADS[0])]]
    return [ask(body) for body in bodies], said


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_such_conversations_do_ride(name: str) -> None:
    """What the property compares would be the same without an express way, too."""
    ordinary, express, rides = run(both_ways(named(name), *straight(name)))
    compare(ordinary, express)
    assert {event.partition("\nstatus: ")[2][:3] for event in express.events} == {"200"}
    assert (rides.boarded, rides.arrived) == (RIDING[name],) * 2


STRANGERS = {name: 9 if rides else 0 for name, rides in RIDING.items()} | {"several": 5}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_so_do_those_without_two_heads_alike(name: str) -> None:
    asked, said = straight(name)
    ordinary, express, rides = run(both_ways(named(name), unlike(asked), said, kinds=(OpenLine,)))
    compare(ordinary, express)
    assert {event.partition("\nstatus: ")[2][:3] for event in express.events} == {"200"}
    assert (rides.boarded, rides.arrived) == (STRANGERS[name],) * 2


class Tagger:
    """A plugin that has no prelude, and does something to the answer."""

    def __init__(self, config: Any, supplies: Any) -> None:
        pass

    async def handle(self, exchange: Any, proceed: Any) -> Any:
        response = await proceed(exchange)
        response.headers.add("X-Tag", "1")
        return response


def tagged(plugin: dict[str, Any], port: int) -> bytes:
    return configured(port, auth(), plugin, proxy(target(port)))


def test_where_a_plugin_has_no_prelude_nobody_rides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HANDLERS, "ai-prompt-decorator", Tagger)
    for plugin in (TAG, {**TAG, "consumer": "bob"}):
        asked = [ask(chat(), key=key) for key in (KEYS[0], KEYS[3]) for _ in range(6)]
        said = [[whole(completion(usage=USAGE), *HEADS[0])]]
        ordinary, express, rides = run(both_ways(partial(tagged, plugin), asked, said))
        compare(ordinary, express)
        assert express.client.count(b"\r\nX-Tag: 1\r\n") == (6 if "consumer" in plugin else 12)
        assert rides.boarded == 0


def test_every_ride_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anybody but the models themselves has something to log."""
    logged: list[dict[str, Any]] = []

    def log(self: AiPromptDecorator, exchange: Any, record: dict[str, Any]) -> None:
        logged.append(record)

    monkeypatch.setattr(AiPromptDecorator, "log", log, raising=False)
    said = [[whole(completion(usage=USAGE), *HEADS[0])]]
    ordinary, express, rides = run(both_ways(named("one target"), [ask(chat(model="fast"))] * 8, said))
    compare(ordinary, express)
    assert rides.arrived == 5
    assert len({record["request"]["id"] for record in logged}) == len(logged) == 16
    one, *others = [impersonal_record(record) for record in logged]
    assert others == [one] * 15


def impersonal_record(record: dict[str, Any]) -> str:
    for name in ("latencies", "started_at"):
        assert record.pop(name)
    for name in ("id", "size"):
        assert record["request"].pop(name)
    assert record["response"].pop("size")
    for name in ("x-kong-request-id", "x-kong-upstream-latency", "x-kong-proxy-latency", "x-tandem-decision"):
        assert record["response"]["headers"].pop(name)
    return json.dumps(record, default=str)


# The recipe: one model chooses another, through a call of the gateway to itself.


def recipe(port: int) -> bytes:
    """The route /a, behind it the choice by /model-selection."""
    router = {"name": "route", "paths": ["/model-selection"], "service": "s"}
    smart = [target(port, "big", "smart"), target(port, "small", "fast")]
    by_route = {"r": [auth(), {"name": "datakit", "config": {"nodes": APPLIED}}, proxy(*smart)]}
    by_route["route"] = [auth(), DECORATOR, proxy(target(port, "selector"), response_streaming="deny")]
    return document(
        services=[{"name": "s", "url": "http://127.0.0.1:1/"}],
        routes=[{"name": "r", "paths": ["/a"], "service": "s"}, router],
        consumers=[{"username": name} for name in ("alice", "bob", "router")],
        keyauth_credentials=[
            {"consumer": "alice", "key": OURS},
            {"consumer": "bob", "key": HERS},
            {"consumer": "router", "key": "internal-router-key"},
        ],
        plugins=[{**plugin, "route": route} for route, plugins in by_route.items() for plugin in plugins],
    )


class Chooser(Provider):
    """Chooses as the prompt says; as a model, says what it was asked."""

    def _pieces(self, data: bytes) -> list[bytes]:
        body = json.loads(data.partition(b"\r\n\r\n")[2])
        asked = body["messages"][-1]["content"]
        if body["model"] != "selector":
            return STREAM if body["stream"] else [whole(completion(usage=USAGE, said=asked), *HEADS[0])]
        choice = {"index": 0, "message": {"role": "assistant", "content": asked.partition(" ")[0]}}
        return [whole(completion(choices=[choice], usage=USAGE), *HEADS[0])]


def prompt(text: str, **fields: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": text}], **fields)


PROMPTS = st.one_of(
    st.builds(prompt, st.sampled_from(["fast one", "smart two", "smart  ", "odd three", ""]), stream=st.booleans()),
    st.sampled_from(
        [prompt("fast\n", model="smart", metadata={"é": [1.0, 10**20]}), b"{", b"[]", b"", chat(messages=[])]
    ),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(PROMPTS, st.sampled_from(KEYS[2:]), st.sampled_from(FIELDS[:3])), min_size=2, max_size=6))
def test_the_recipe_is_the_same_with_familiar_heads(said: list[tuple[bytes, bytes, bytes]]) -> None:
    asked = [ask(body, field, key=key) for body, key, field in said for _ in range(2)]
    ordinary, express, _ = run(both_ways(recipe, asked, [[]], off=forgetful, provider=Chooser))
    compare(ordinary, express)


def test_such_recipes_choose() -> None:
    words = ("fast a", "smart b", "smart c", "fast d", "fast e")
    asked = [
        ask(prompt(word), FIELDS[0], key=key)
        for word, key in zip(words, (*KEYS[2:4], *KEYS[2:4], KEYS[4]), strict=True)
    ]
    ordinary, express, _ = run(both_ways(recipe, asked, [[]], off=forgetful, provider=Chooser))
    compare(ordinary, express)
    models = re.findall(rb"\r\nX-Kong-LLM-Model: (\w+)\r\n", express.client)
    assert models == [b"small", b"big", b"big", b"small"]
    assert re.findall(rb'"said": "(\w+ \w)"', express.client) == [word.encode() for word in words[:4]]
    assert len(express.events) == 9
    assert express.client.count(b"HTTP/1.1 401 ") == 1


# What may happen while one rides.

ANSWER = whole(completion(usage=USAGE), *HEADS[0])
ASK = ask(chat())


@pytest.fixture
def rides(monkeypatch: pytest.MonkeyPatch) -> Rides:
    return Rides(monkeypatch)


@pytest.fixture(params=["express", "ordinary"])
def is_express(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the test takes the express way; it is to see the same without."""
    if request.param == "ordinary":
        ordinarily(monkeypatch)
    return bool(request.param == "express")


@asynccontextmanager
async def scene(*plugins: Callable[[int], dict[str, Any]], **more: Any) -> AsyncIterator[Stage]:
    """A route with these plugins, made for the provider's port."""
    async with stage() as play:
        await apply(play, 2, *plugins, **more)
        yield play


async def apply(play: Stage, version: int, *plugins: Callable[[int], dict[str, Any]], **more: Any) -> None:
    port = play.server.port
    await play.node.apply(configured(port, *(plugin(port) for plugin in plugins), **more), version)


def keyed(**config: Any) -> Callable[[int], dict[str, Any]]:
    return lambda port: auth(**config)


def asking(*targets: dict[str, Any], **config: Any) -> Callable[[int], dict[str, Any]]:
    """ai-proxy-advanced; each target is a name and an alias, or more."""
    return lambda port: proxy(*(target(port, **fields) for fields in targets or ({},)), **config)


HURRIED = asking(balancer={"read_timeout": 20})


async def warm(play: Stage, request: bytes = ASK, answer: bytes = ANSWER) -> Peer:
    client = await play.warm(request, answer)
    play.node.events.clear()
    play.requests.clear()
    return client


async def warm_two(play: Stage) -> tuple[Peer, Peer]:
    """Two clients that may ride at once."""
    one, two = await play.warm(ASK, ANSWER), await play.warm(ASK, ANSWER)
    asked = [await under_way(play, client) for client in (one, two)]
    for client, heard in zip((one, two), asked, strict=True):
        heard.say(ANSWER)
        assert (await client.receive())[0] == 200
    play.node.events.clear()
    play.requests.clear()
    return one, two


async def under_way(play: Stage, client: Peer, request: bytes = ASK) -> Asked:
    await client.send(request)
    return await play.asked()


async def done(play: Stage, count: int) -> list[Any]:
    """The events, once so many are there and nothing is under way."""
    pipeline = play.node.worker.pipeline
    await until(lambda: not pipeline.runtime.exchanges and not pipeline._retired and len(play.node.events) >= count)
    assert len(play.node.events) == count
    return play.node.events


def calls(events: Sequence[Any]) -> list[list[tuple[int, str, str]]]:
    return [[(call.status, call.error_kind, call.token_source) for call in event.llm_calls] for event in events]


class TestTheProviderFails:
    async def test_who_was_asked_already_is_heard_though_it_is_out_by_now(self, rides: Rides, is_express: bool) -> None:
        """The first failure puts the target out. The second request was on its way: the model was asked, and paid."""
        balancer = {"max_fails": 1, "failover_criteria": ["error", "timeout", "http_500"]}
        async with scene(keyed(), asking(balancer=balancer)) as play:
            one, two = await warm_two(play)
            boarded = rides.boarded
            asked = [await under_way(play, client) for client in (one, two)]
            assert rides.boarded - boarded == 2 * is_express
            for client, heard, word in zip((one, two), asked, (b"first", b"second"), strict=True):
                heard.say(whole(word, b"Date: now", status=b"500 Oops"))
                assert (await client.receive())[::2] == (500, word)
            assert (await one.exchange(ASK))[0] == 500
            events = await done(play, 3)
            assert calls(events) == [[(500, "provider_error", "none")], [(500, "provider_error", "none")], []]
            assert [event.error_kind for event in events] == ["", "", "no_target"]
            assert len(play.requests) == 2

    async def test_a_success_after_a_quiet_window_forgives_what_failed_meanwhile(
        self, rides: Rides, is_express: bool
    ) -> None:
        balancer = {"max_fails": 2, "fail_timeout": 1, "failover_criteria": ["error", "http_500"]}
        async with scene(keyed(), asking(balancer=balancer)) as play:
            one, two = await warm_two(play)
            first, second = await under_way(play, one), await under_way(play, two)
            second.say(whole(b"", b"Date: now", status=b"500 Oops"))
            assert (await two.receive())[0] == 500
            (bound,) = (bound for bound in play.node.worker.pipeline.runtime.plugins if bound.name != "key-auth")
            breaker = bound.handler._models._targets[0].breaker  # type: ignore[attr-defined]
            assert breaker.failures == 1
            failed_at = time.monotonic()
            await until(lambda: time.monotonic() > failed_at + 0.001)
            arrived = rides.arrived
            first.say(ANSWER)
            assert (await one.receive())[0] == 200
            assert breaker.failures == 0
            assert rides.arrived - arrived == is_express

    async def test_one_failure_does_not_end_the_express_way(self, rides: Rides) -> None:
        async with scene(keyed(), asking(balancer={"max_fails": 2})) as play:
            client = await warm(play)
            (await under_way(play, client)).say(b"rubbish\r\n\r\n")
            assert (await client.receive())[0] == 502
            play.answer = ANSWER
            assert (await client.exchange(ASK))[0] == 200  # Makes a new connection.
            for _ in range(6):
                assert (await client.exchange(ASK))[0] == 200
            assert rides.all == (7, 6, 1, 0)

    @pytest.mark.parametrize(
        ("said", "kind"),
        [
            (b"rubbish\r\n\r\n", "protocol"),
            (ANSWER[:20], "reset"),
            (ANSWER[:-1], "reset"),
            (whole(b"not json", *HEADS[0]), "transformation"),
            (whole(completion(), b"Content-Encoding: gzip"), "encoding"),
        ],
    )
    @pytest.mark.parametrize("plan", ["one", "two"])
    async def test_each_failure_is_one_call_and_counts_once(
        self, rides: Rides, is_express: bool, said: bytes, kind: str, plan: str
    ) -> None:
        """Nobody else is asked in its place: with another alias, or after sending."""
        targets = [{"name": "m"}] if plan == "one" else [{"name": "m", "alias": "x"}, {"name": "n", "alias": "y"}]
        asked_for = ask(chat(model="m" if plan == "one" else "x"))
        async with scene(keyed(), asking(*targets, balancer={"max_fails": 2})) as play:
            client = await warm(play, asked_for)
            heard = await under_way(play, client, asked_for)
            heard.leave(said)
            status, _, _ = await client.receive()
            assert status == (500 if kind == "transformation" else 502)
            (event,) = await done(play, 1)
            assert event.error_kind == kind
            assert [call.error_kind for call in event.llm_calls] == [kind]
            assert [call.role for call in event.llm_calls] == ["selected"]
            (models,) = models_of(play)
            assert models[0].breaker.failures == (kind != "transformation")
            assert rides.all == ((1, 0, 1, 0) if is_express else (0, 0, 0, 0))
            assert len(play.requests) == 1

    async def test_one_that_closes_at_once_is_asked_again_once(self, rides: Rides, is_express: bool) -> None:
        async with scene(keyed(), asking(balancer={"max_fails": 1})) as play:
            client = await warm(play)
            (await under_way(play, client)).leave()
            (await play.asked()).say(ANSWER)
            assert (await client.receive())[0] == 200
            assert calls(await done(play, 1)) == [[(200, "", "provider")]]
            assert play.requests[0] == play.requests[1]
            assert models_of(play)[0][0].breaker.failures == 0
            assert rides.derailed == is_express

    async def test_silence_is_504_and_counts(self, rides: Rides, is_express: bool) -> None:
        async with scene(keyed(), asking(balancer={"max_fails": 1, "read_timeout": 300})) as play:
            client = await warm(play)
            heard = await under_way(play, client)
            assert (await client.receive())[0] == 504
            await heard.broken()
            assert (await client.exchange(ASK))[0] == 500
            events = await done(play, 2)
            assert calls(events) == [[(0, "timeout_read", "none")], []]
            assert events[0].llm_calls[0].duration_us >= 290_000
            assert len(play.requests) == 1
            assert rides.derailed == is_express

    async def test_of_several_the_next_is_asked_where_the_rules_allow(self, rides: Rides, is_express: bool) -> None:
        """They do not ride: which is asked is a matter of turns. Another of the plugin's models does, in between."""
        balancer = {"failover_criteria": ["http_500", "non_idempotent"], "retries": 1}
        targets = [{"name": "one", "alias": "a"}, {"name": "two", "alias": "a"}, {"name": "solo", "alias": "b"}]
        alone, either = ask(chat(model="b")), ask(chat(model="a"))
        async with scene(keyed(), asking(*targets, balancer=balancer)) as play:
            client = await warm(play, alone)
            (await under_way(play, client, alone)).say(whole(b"", b"Date: now", status=b"500 Oops"))
            assert (await client.receive())[0] == 500
            (await under_way(play, client, either)).say(whole(b"", b"Date: now", status=b"500 Oops"))
            (await play.asked()).say(ANSWER)
            assert (await client.receive())[0] == 200
            events = await done(play, 2)
            assert [[call.role for call in event.llm_calls] for event in events] == [
                ["selected"],
                ["selected", "fallback"],
            ]
            assert {call.request_model for call in events[1].llm_calls} == {"one", "two"}
            assert rides.all == ((1, 0, 1, 0) if is_express else (0, 0, 0, 0))


async def test_after_a_bad_time_the_express_way_is_tried_again(rides: Rides, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams do not ride, so after four of them none is tried; but a client may stream now and then."""
    monkeypatch.setattr("data_plane.express._REST", 3)
    streamed = ask(chat(stream=True))
    async with scene(keyed(), asking()) as play:
        client = await warm(play)
        play.answer = b"".join(STREAM)
        for _ in range(4):
            assert (await client.exchange(streamed))[0] == 200
        assert rides.boarded == 0
        play.answer = ANSWER
        boarded = []
        for _ in range(7):
            assert (await client.exchange(ASK))[0] == 200
            boarded.append(rides.boarded)
        assert boarded == [0, 0, 0, 1, 2, 3, 4]


async def test_a_connection_whose_requests_seldom_ride_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no two of its heads are alike."""
    monkeypatch.setattr("data_plane.express._REST", 3)
    tried: list[Ride] = []
    exchange_of = OpenLine._exchange

    def noted(line: OpenLine, ride: Ride) -> Any:
        tried.append(ride)
        return exchange_of(line, ride)

    monkeypatch.setattr(OpenLine, "_exchange", noted)
    async with scene(keyed(), asking()) as play:
        client = await play.connect()
        counts = []
        for said, answer in ((chat(stream=True), b"".join(STREAM)), (chat(), ANSWER)):
            play.answer = answer
            for request in unlike([ask(said)] * 12):
                assert (await client.exchange(request))[0] == 200
                counts.append(len(tried))
    in_vain = [0, 1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8]
    assert counts == [*in_vain, 8, 8, 8, *range(9, 18)]


@pytest.mark.parametrize("line", [b"HEAD /a", b"GET /a"])
async def test_what_has_no_plain_form_takes_the_ordinary_way(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    rides = Rides(monkeypatch, OpenLine)
    async with stage() as play:
        client = await play.connect()
        body = b"" if line.startswith(b"HEAD") else b"x"
        head = line + b" HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
        for request in unlike([head + body] * 5):
            await client.send(request)
            assert (await client.receive(line.split()[0].decode()))[0] == 200
        assert rides.boarded == 0


def models_of(play: Stage) -> list[Any]:
    """The targets of each ai-proxy-advanced."""
    plugins = play.node.worker.pipeline.runtime.plugins
    return [bound.handler._models._targets for bound in plugins if bound.name == "ai-proxy-advanced"]  # type: ignore[attr-defined]


SHARES = (("one", None, 3), ("two", "b", 1), ("three", "c", 1))


async def test_turns_stay_exact_whoever_rides(rides: Rides) -> None:
    """Weights 3, 1 and 1 among all; one of them is asked by its alias between any two turns, and rides."""
    targets = [{"name": name, "alias": alias, "weight": weight} for name, alias, weight in SHARES]
    body = chat(model="b")
    padded = json.dumps({"messages": json.loads(body)["messages"]}).encode()
    async with scene(keyed(), asking(*targets)) as play:
        client = await warm(play, ask(body))
        play.answer = ANSWER
        for _ in range(20):
            assert (await client.exchange(ask(body)))[0] == 200
            assert (await client.exchange(ask(padded)))[0] == 200
        events = await done(play, 40)
        by_alias, by_turn = ([event.llm_calls[0].request_model for event in events[start::2]] for start in (0, 1))
        assert by_alias == ["two"] * 20
        assert by_turn == by_turn[:5] * 4
        assert sorted(by_turn[:5]) == ["one", "one", "one", "three", "two"]
        assert rides.all == (20, 20, 0, 0)


class TestTheClientLeaves:
    @pytest.mark.parametrize("models", [True, False])
    async def test_while_it_rides(self, rides: Rides, is_express: bool, models: bool) -> None:
        async with scene(keyed(), *([asking()] if models else [])) as play:
            client = await warm(play)
            heard = await under_way(play, client)
            await client.close()
            await heard.broken()
            (event,) = await done(play, 1)
            assert (event.status, event.outcome, event.error_kind) == (499, "client_closed", "")
            assert calls([event]) == ([[(0, "client_closed", "estimated")]] if models else [[]])
            if models:
                (call,) = event.llm_calls
                assert (call.prompt_tokens, call.completion_tokens, call.cost_nano_usd) == (3, 0, 9000)
            assert event.HasField("upstream_us")
            assert event.consumer_id
            assert rides.all == ((1, 0, 0, 1) if is_express else (0, 0, 0, 0))

    @pytest.mark.parametrize("said", [whole(b"x", b"Date: now", status=b"429 Slow"), ANSWER[:30], b"".join(STREAM[:2])])
    async def test_just_when_it_derailed(self, rides: Rides, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its answer is here, but nobody has looked at it."""
        async with scene(keyed(), asking()) as play:
            client = await warm(play)
            heard = await under_way(play, client)
            (server,) = play.node.worker._server._connections
            ride = server._ride
            assert ride is not None
            ride.behind.data_received(said)
            end_turn()
            server.connection_lost(None)
            if said[9:12] == b"200":  # Else it is whole, and the connection good for others.
                await heard.broken()
            (event,) = await done(play, 1)
            assert (event.status, event.outcome) == (499, "client_closed")
            assert calls([event]) == [[(0, "client_closed", "estimated")]]
            assert (rides.derailed, rides.abandoned) == (said != ANSWER[:30], 1)


class TestShutdown:
    async def test_what_takes_too_long_is_broken_off(self, rides: Rides, is_express: bool) -> None:
        async with scene(keyed(), asking()) as play:
            client = await warm(play)
            heard = await under_way(play, client)
            await play.node.worker._server.drain(0.01)
            await heard.broken()
            (event,) = await done(play, 1)
            assert (event.status, event.outcome) == (499, "client_closed")
            assert calls([event]) == [[(0, "client_closed", "estimated")]]
            assert rides.abandoned == is_express

    async def test_a_ride_under_way_gets_its_answer(self, rides: Rides, is_express: bool) -> None:
        async with scene(keyed(), asking()) as play:
            client = await warm(play)
            heard = await under_way(play, client)
            (server,) = play.node.worker._server._connections
            stopping = asyncio.create_task(play.node.worker._server.drain(10))
            await until(lambda: server.is_draining)
            heard.say(ANSWER)
            status, fields, _ = await client.receive()
            assert (status, fields["connection"]) == (200, "close")
            await stopping
            assert calls(await done(play, 1)) == [[(200, "", "provider")]]
            assert rides.derailed == is_express


async def test_an_event_that_cannot_be_reported_harms_nobody(
    rides: Rides, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: bytes) -> None:
        raise OSError("disk full")

    async with scene(keyed(), asking()) as play:
        client = await warm(play)
        play.answer = ANSWER
        with monkeypatch.context() as patch:
            patch.setattr(play.node.worker.pipeline.reporter, "report", broken)
            assert (await client.exchange(ASK))[0] == 200
            assert "could not be reported" in caplog.text
        assert (await client.exchange(ASK))[0] == 200
        await done(play, 1)
        assert rides.arrived == 2


class TestWhoIsLetIn:
    """Each after requests with a good key on the same connection, which rode."""

    @pytest.mark.parametrize(
        "key", [b"apikey: alice-keY", b"apikey: ", b"X-Nobody: 12345", b"apikey: alice-key,alice-key"]
    )
    @pytest.mark.parametrize("models", [True, False])
    async def test_another_key_is_looked_at_anew(self, rides: Rides, key: bytes, models: bool) -> None:
        async with scene(keyed(), *([asking()] if models else [])) as play:
            client = await warm(play)
            play.answer = ANSWER
            for _ in range(2):
                assert (await client.exchange(ASK))[0] == 200
                for _ in range(3):
                    assert (await client.exchange(ask(chat(), key=key)))[0] == 401
            assert len(play.requests) == 2
            assert [event.consumer_id for event in await done(play, 8) if event.status == 401] == [""] * 6
            assert rides.boarded == 1

    @pytest.mark.parametrize("place", ["header", "query"])
    async def test_a_revoked_key_is_refused_at_once(self, rides: Rides, place: str) -> None:
        extra = {"credentials": [{"consumer": "alice", "key": "third-key"}]}
        request = ask(chat(), key=b"apikey: third-key")
        if place == "query":
            request = ask(chat(), key=b"X-None: 1", target=b"/a?x=1&apikey=third-key")
        async with scene(keyed(), asking(), **extra) as play:
            client = await warm(play, request)
            heard = await under_way(play, client, request)
            await apply(play, 3, keyed(), asking())
            heard.say(ANSWER)
            assert (await client.receive())[0] == 200  # It was let in before.
            for _ in range(6):
                assert (await client.exchange(request))[0] == 401
            await apply(play, 4, keyed(), asking(), **extra)
            play.answer = ANSWER
            for _ in range(3):
                assert (await client.exchange(request))[0] == 200
            assert len(play.requests) == 4
            assert [event.config_version for event in await done(play, 10)] == [2, *[3] * 6, *[4] * 3]
            assert not any(b"third-key" in request for request in play.requests)
            assert rides.arrived == 3

    async def test_a_key_that_changes_hands_names_its_new_owner(self, rides: Rides) -> None:
        request = ask(chat(), key=b"apikey: third-key")
        async with scene(keyed(), credentials=[{"consumer": "alice", "key": "third-key"}]) as play:
            client = await warm(play, request)
            play.answer = ANSWER
            assert (await client.exchange(request))[0] == 200
            await apply(play, 3, keyed(), credentials=[{"consumer": "bob", "key": "third-key"}])
            for _ in range(3):
                assert (await client.exchange(request))[0] == 200
            names = [said.partition(b"X-Consumer-Username: ")[2].partition(b"\r\n")[0] for said in play.requests]
            assert names == [b"alice", b"bob", b"bob", b"bob"]
            assert len({event.consumer_id for event in await done(play, 4)}) == 2
            assert rides.arrived == 3

    @pytest.mark.parametrize("said", [ANSWER, whole(b"busy", b"Date: now", status=b"429 Slow")])
    async def test_a_key_that_expires(
        self, rides: Rides, is_express: bool, monkeypatch: pytest.MonkeyPatch, said: bytes
    ) -> None:
        """Between two requests it is refused at once; while one is under way, that one ends as it would have."""
        mortal = {"consumer": "alice", "key": "mortal-key", "ttl": 60, "created_at": 1000}
        request = ask(chat(), key=b"apikey: mortal-key")
        monkeypatch.setattr(time, "time", lambda: 1059.9)
        async with scene(keyed(), asking(), credentials=[mortal]) as play:
            client = await warm(play, request)
            heard = await under_way(play, client, request)
            monkeypatch.setattr(time, "time", lambda: 1060.0)
            heard.say(said)
            assert (await client.receive())[0] == int(said[9:12])
            for _ in range(2):
                assert (await client.exchange(request))[0] == 401
            events = await done(play, 3)
            assert [len(event.llm_calls) for event in events] == [1, 0, 0]
            assert len(play.requests) == 1
            assert rides.boarded == is_express

    async def test_claims_and_keys_go_no_further(self, rides: Rides) -> None:
        request = ask(chat(), IDENTITY, b"X-Other: alice-key-not")
        for models in (True, False):
            async with scene(keyed(), *([asking()] if models else [])) as play:
                client = await warm(play, request)
                play.answer = ANSWER
                for _ in range(5):
                    assert (await client.exchange(request))[0] == 200
                for heard in play.requests:
                    assert b"root" not in heard
                    assert b"x_consumer_id" not in heard
                    assert b"alice-key\r" not in heard
                    assert (b"X-Consumer-Username: alice\r\n" in heard) != models
        assert rides.arrived == 10

    async def test_two_clients_are_never_taken_for_each_other(self, rides: Rides) -> None:
        """Turn by turn over one connection to the service, then both under way at once."""
        said = {number: ask(b"%d" % number, key=KEYS[3 * number]) for number in (0, 1)}
        async with scene(keyed()) as play:
            clients = [await play.warm(said[number], ANSWER) for number in (0, 1)]
            play.requests.clear()
            play.node.events.clear()
            for _ in range(4):
                heard = [await under_way(play, clients[number], said[number]) for number in (0, 1)]
                for number in (1, 0):
                    name = (b"alice", b"bob")[number]
                    assert b"\r\nX-Consumer-Username: " + name + b"\r\n" in heard[number].data
                    heard[number].say(whole(name, *HEADS[0]))
                    assert (await clients[number].receive())[2] == name
            play.answer = ANSWER
            events = await done(play, 8)
            assert [event.consumer_id for event in events] == [events[0].consumer_id, events[1].consumer_id] * 4
            assert events[0].consumer_id != events[1].consumer_id
            assert rides.arrived >= 6

    async def test_two_consumers_on_one_connection(self, rides: Rides) -> None:
        async with scene(keyed(), asking({"name": "m"})) as play:
            client = await warm(play)
            play.answer = ANSWER
            order = [0, 0, 3, 3, 3, 3, 0, 0, 4, 3, 3, 3]
            for number in order:
                await client.exchange(ask(chat(), key=KEYS[number]))
            events = await done(play, len(order))
            names = {0: events[0].consumer_id, 3: events[2].consumer_id, 4: ""}
            assert [event.consumer_id for event in events] == [names[number] for number in order]
            assert rides.arrived == 2 + 2 + 0 + 1


class TestMemory:
    async def test_nothing_keeps_an_old_configuration_alive(self, rides: Rides) -> None:
        """Not even a connection that is idle: neither the runtime, nor its plugins, which know all consumers."""
        for plugins in ((keyed(), asking()), (keyed(),)):
            async with scene(*plugins) as play:
                client = await warm(play)
                (await under_way(play, client)).say(ANSWER)
                assert (await client.receive())[0] == 200
                pipeline = play.node.worker.pipeline
                old: list[weakref.ref[Any]] = [
                    weakref.ref(pipeline.runtime),
                    weakref.ref(pipeline.runtime.parts.directory),
                ]
                old += [weakref.ref(bound.handler) for bound in pipeline.runtime.plugins]
                await apply(play, 3, *plugins, credentials=[{"consumer": "bob", "key": "new-key"}])
                await until(lambda: not pipeline._closing)  # noqa: B023
                gc.collect()
                assert [ref() for ref in old] == [None] * len(old)
        assert rides.arrived == 2

    @pytest.mark.parametrize("strange", [False, True])
    async def test_thousands_of_rides_leave_nothing_behind(
        self, strange: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rides = Rides(monkeypatch, *((OpenLine,) if strange else ()))
        asked = unlike([ASK] * 1000) if strange else [ASK] * 1000
        async with scene(keyed(), lambda port: DECORATOR, asking()) as play:
            client = await warm(play)
            play.answer = ANSWER
            before = rides.arrived
            (server,) = play.node.worker._server._connections
            sizes = []
            for _ in range(3):
                for request in asked:
                    await client.exchange(request)
                play.node.events.clear()
                play.requests.clear()
                gc.collect()
                sizes.append(len(gc.get_objects()))
                familiar = server._reader.memory.last
                assert familiar is not None
                assert len(familiar.head.notes) <= 16
            assert rides.arrived - before == 3000
            assert sizes[2] - sizes[1] < 200


# Many at once, and whatever goes wrong.


class Customer:
    """A client with a key of its own, which leaves now and then before it is answered."""

    def __init__(self, play: Stage, dice: random.Random, number: int, *, strange: bool) -> None:
        self._play = play
        self._strange = strange
        self._dice = dice
        self._number = number
        self.seen: dict[str, int] = {}
        """By the request's id, the status."""

    async def ask(self, count: int) -> None:
        client = await self._play.connect()
        for number in range(count):
            name = f"{self._number}/{number}"
            request = ask(chat(user=name, choices=[]), FIELDS[0], key=KEYS[3 * (self._number % 2)])
            await client.send(unlike([request] * (number + 1))[-1] if self._strange else request)
            leaves = not self._dice.randrange(8)
            if leaves:
                for _ in range(self._dice.randrange(12)):
                    await asyncio.sleep(0)
                client.writer.write_eof()
            said = await self._answer(client)
            if said is not None:
                status, fields, body = said
                self.seen[fields["x-kong-request-id"]] = status
                assert status != 200 or json.loads(body)["user"] == name
            if leaves or said is None or said[1].get("connection") == "close":
                await client.close()
                client = await self._play.connect()

    async def _answer(self, client: Peer) -> Any:
        try:
            return await client.receive("POST")
        except h11.RemoteProtocolError:
            return None  # It broke off, or nothing came.


async def many_ask(dice: random.Random, clients: int, *plugins: Callable[[int], dict[str, Any]], strange: bool) -> int:
    """Returns how many requests took the express way."""
    play = Stage()
    play.server = Upstream(Unreliable(dice).play)
    with pytest.MonkeyPatch.context() as patch:
        rides = Rides(patch, *((OpenLine,) if strange else ()))
        patch.setattr("data_plane.express._STRIKES", 1000)
        async with play.server, gateway() as node:
            play.node = node
            await apply(play, 1, *plugins, read_timeout=20)
            customers = [Customer(play, dice, number, strange=strange) for number in range(clients)]
            await asyncio.gather(*(customer.ask(20) for customer in customers))
            await play.close()
            await until(lambda: not node.worker.pipeline.runtime.exchanges)
            told = {event.request_id.hex(): event for event in node.events}
            assert len(told) == len(node.events) <= 20 * clients
            people: list[set[str]] = [set(), set()]
            for customer in customers:
                for name, status in customer.seen.items():
                    assert told[name].status == status
                    people[customer._number % 2].add(told[name].consumer_id)
            assert people[0].isdisjoint(people[1])
            assert all(len(ids) <= 1 for ids in people)
            for event in node.events:
                assert len(event.llm_calls) == (len(plugins) > 1)
                assert all(call.duration_us for call in event.llm_calls)
            ended = rides.arrived + rides.derailed
            assert ended <= rides.boarded <= ended + rides.abandoned  # One may derail and be left the same moment.
            return rides.boarded


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans(), st.booleans())
def test_however_they_fail_each_request_has_one_event_and_its_own_answer(
    seed: int, clients: int, models: bool, strange: bool
) -> None:
    run(many_ask(random.Random(seed), clients, keyed(), *([HURRIED] if models else []), strange=strange))


@pytest.mark.parametrize("strange", [False, True])
@pytest.mark.parametrize("models", [True, False])
def test_such_customers_do_ride(models: bool, strange: bool) -> None:
    assert run(many_ask(random.Random(1), 3, keyed(), *([HURRIED] if models else []), strange=strange)) > 5
