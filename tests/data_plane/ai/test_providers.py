"""The contract of providers' adapters, held against every fixture of every provider in the table."""

from __future__ import annotations

import json
from dataclasses import astuple

import pytest

from data_plane.ai.providers import PROVIDERS
from data_plane.errors import LlmError
from gateway_schema.plugins.llm import ModelOptions
from tests.data_plane.ai.golden_cases import CASES, Case, run, timeless

WHOLE = [case for case in CASES if not case.streams]
STREAMS = [case for case in CASES if case.streams]
REQUIRED = {"plain", "stream", "tools", "image", "usage", "cut_off", "error"}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_has_the_whole_set_of_fixtures(provider: str) -> None:
    assert {case.name for case in CASES if case.provider == provider} >= REQUIRED


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_chat_is_encoded_as_the_provider_wants_it(case: Case) -> None:
    before = json.dumps(case.spec["chat"])

    encoded = case.adapter.encode(case.spec["chat"], stream=case.streams)

    assert encoded.path == case.spec["request"]["path"]
    assert json.loads(encoded.body) == case.spec["request"]["body"]
    assert encoded.method == "POST"
    assert json.dumps(case.spec["chat"]) == before, "the chat is shared and must not be changed"


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_an_answer_becomes_a_chat_completion(case: Case) -> None:
    decoded = case.adapter.decode(case.wire, case.spec.get("headers", {}))

    expected = case.spec["completion"]
    if expected is None:
        assert decoded.body is None, "the provider's bytes are the answer"
    else:
        assert timeless(decoded.body) == timeless(expected)
    assert decoded.usage == case.usage
    assert decoded.model == case.spec["response_model"]
    assert decoded.finish_reason == case.spec["finish_reason"]
    assert decoded.service_tier == case.spec.get("service_tier", "")


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_stream_becomes_chunks(case: Case) -> None:
    decoder = case.decoder()

    events = run(decoder, [case.wire])

    assert decoder.done is case.spec["done"]
    last = events.pop()
    if decoder.done:
        assert last.data == b"[DONE]"
    else:
        assert last.error
        assert json.loads(last.data) == {"error": case.spec["error"]}
    assert [timeless(json.loads(event.data)) for event in events] == [timeless(c) for c in case.spec["chunks"]]
    assert [n for n, event in enumerate(events) if event.usage_only] == case.spec["usage_only"]
    assert [n for n, event in enumerate(events) if event.content] == case.spec["content"]
    assert not any(event.error for event in events)
    assert decoder.usage == case.usage
    assert decoder.model == case.spec["response_model"]
    assert decoder.finish_reason == case.spec["finish_reason"]
    if "text_length" in case.spec:
        assert sum(event.text_length for event in events) == case.spec["text_length"]


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_stream_means_the_same_wherever_it_is_cut(case: Case) -> None:
    whole = case.decoder()
    expected = [_fact(*astuple(event)) for event in run(whole, [case.wire])]

    for position in range(len(case.wire) + 1):
        decoder = case.decoder()
        found = run(decoder, [case.wire[:position], case.wire[position:]])
        assert [_fact(*astuple(event)) for event in found] == expected, f"cut at byte {position}"
        assert decoder.usage == whole.usage

    bytewise = run(case.decoder(), [case.wire[n : n + 1] for n in range(len(case.wire))])
    assert [_fact(*astuple(event)) for event in bytewise] == expected


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_a_stream_that_ends_early_says_so_and_never_says_done(case: Case) -> None:
    """Every prefix either holds the whole answer, or ends in one error frame."""
    for length in range(len(case.wire)):
        decoder = case.decoder()
        events = run(decoder, [case.wire[:length]])
        assert events[-1].error is not decoder.done
        assert (events[-1].data == b"[DONE]") is decoder.done
        assert sum(event.error for event in events) + decoder.done == 1
        assert decoder.done is False or decoder.finish_reason


@pytest.mark.parametrize("case", STREAMS, ids=str)
def test_what_comes_after_the_end_is_ignored(case: Case) -> None:
    decoder = case.decoder()
    run(decoder, [case.wire])

    assert list(decoder.feed(case.wire)) == []
    assert list(decoder.close()) == []


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"null", b"<html>", b'{"choices":1}', b'{"output":[]}', b"\xff"])
def test_an_answer_that_is_none_is_a_500_that_names_the_provider(provider: str, body: bytes) -> None:
    adapter = PROVIDERS[provider].adapter("m", ModelOptions())

    with pytest.raises(LlmError, match=f"transformation failed from type {provider}://llm/v1/chat") as caught:
        adapter.decode(body, {})

    assert caught.value.status == 500


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(
    "garbage", [b"\x00" * 64, b"data: {\n\n", b"data: 1\n\n", b"\xff" * 12, b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_a_stream_of_garbage_ends_in_an_error_frame(provider: str, garbage: bytes) -> None:
    decoder = PROVIDERS[provider].adapter("m", ModelOptions()).stream_decoder({})

    events = run(decoder, [garbage])

    assert [event.error for event in events] == [True]
    assert "error" in json.loads(events[0].data)


def _fact(data: bytes, *rest: object) -> tuple[object, ...]:
    try:
        return (json.dumps(timeless(json.loads(data))), *rest)
    except json.JSONDecodeError:
        return (data, *rest)
