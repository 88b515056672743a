"""What the OpenAI adapter changes, beyond the golden fixtures."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.ai.providers import PROVIDERS
from data_plane.ai.providers.base import MAX_TOKENS, Usage
from data_plane.ai.providers.openai import OpenAiAdapter, read_usage
from gateway_schema.plugins.llm import ModelOptions

MESSAGES = [{"role": "user", "content": "hi"}]


def encoded(model: str, *, stream: bool = False, **chat: Any) -> dict[str, Any]:
    adapter = OpenAiAdapter(model, ModelOptions())
    return json.loads(adapter.encode({"messages": MESSAGES, **chat}, stream=stream).body)


@pytest.mark.parametrize("model", ["o1", "o1-mini", "o3-mini", "o4-mini", "gpt-5", "gpt-5.1-mini"])
def test_reasoning_models_get_their_limit_under_its_new_name(model: str) -> None:
    assert encoded(model, max_tokens=5) == {
        "messages": MESSAGES,
        "model": model,
        "stream": False,
        "max_completion_tokens": 5,
    }


def test_a_limit_under_its_new_name_is_kept_and_the_old_one_goes() -> None:
    body = encoded("o3-mini", max_tokens=5, max_completion_tokens=9)

    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1-mini", "ft:gpt-4o:me"])
def test_other_models_get_it_under_the_old_one(model: str) -> None:
    assert encoded(model, max_tokens=5)["max_tokens"] == 5


def test_unknown_fields_pass() -> None:
    assert encoded("gpt-4o", safety_identifier="x", store=True)["store"] is True


@pytest.mark.parametrize("options", [None, "nonsense", {"include_usage": False}])
def test_usage_is_always_asked_for_in_a_stream(options: Any) -> None:
    assert encoded("gpt-4o", stream=True, stream_options=options)["stream_options"]["include_usage"] is True


def test_the_address_follows_openais_own_variable() -> None:
    row = PROVIDERS["openai"]

    assert row.base_url(ModelOptions(), {}) == "https://api.openai.com/v1"
    assert row.base_url(ModelOptions(), {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1/"}) == "http://127.0.0.1:9/v1"


def test_odd_chunks_are_forwarded_and_counted_for_what_they_are() -> None:
    decoder = OpenAiAdapter("gpt-4o", ModelOptions()).stream_decoder({})
    chunks: list[Any] = [
        {"choices": [], "prompt_filter_results": [{}]},
        {"choices": [1, {"delta": None}, {"delta": {"content": "a"}}, {"index": 1, "delta": {"content": "bc"}}]},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
        {"choices": [], "usage": {"prompt_tokens": -3, "completion_tokens": True, "prompt_tokens_details": 4}},
    ]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode()

    events = decoder.feed(stream)

    assert [json.loads(event.data) for event in events] == chunks
    assert [event.usage_only for event in events] == [False, False, False, False, True]
    assert [event.content for event in events] == [False, True, True, False, False]
    assert sum(event.text_length for event in events) == 3
    assert decoder.usage is not None
    assert (decoder.usage.prompt_tokens, decoder.usage.completion_tokens) == (0, 0)


def test_an_event_over_several_lines_leaves_as_one() -> None:
    decoder = OpenAiAdapter("gpt-4o", ModelOptions()).stream_decoder({})

    (event,) = decoder.feed(b'data: {"choices":\ndata: []}\n\n')

    assert event.data == b'{"choices": []}'


@pytest.mark.parametrize("end", [b"", b"data: [DONE]", b"data: [DONE]\n", b'data: {"cut'])
def test_a_stream_whose_answer_was_finished_counts_as_complete_without_its_end_mark(end: bytes) -> None:
    decoder = OpenAiAdapter("gpt-4o", ModelOptions()).stream_decoder({})
    decoder.feed(b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n' + end)

    (event,) = decoder.close()

    assert event.data == b"[DONE]"
    assert decoder.done


NUMBERS: Any = st.sampled_from([None, True, 0, 1, -1, 21, 1.5, "7", MAX_TOKENS, MAX_TOKENS + 1, [], {}])
DETAILS = st.none() | st.just([1]) | st.fixed_dictionaries({}, optional={"cached_tokens": NUMBERS})
USAGES: Any = (
    st.none()
    | st.just([])
    | st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": NUMBERS,
            "completion_tokens": NUMBERS,
            "prompt_tokens_details": DETAILS,
            "completion_tokens_details": st.none() | st.fixed_dictionaries({"reasoning_tokens": NUMBERS}),
        },
    )
)


@given(USAGES)
def test_a_usage_record_is_read_number_by_number(usage: Any) -> None:
    read = read_usage(usage)
    if not isinstance(usage, dict):
        assert read is None
        return

    def number(*path: str) -> int:
        value: Any = usage
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if type(value) is int and 0 < value <= MAX_TOKENS else 0

    assert read == Usage(
        prompt_tokens=number("prompt_tokens"),
        completion_tokens=number("completion_tokens"),
        cached_tokens=number("prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=number("completion_tokens_details", "reasoning_tokens"),
    )


def message_text(choice: Any) -> str:
    """All the text that was generated for a choice."""
    message = (choice or {}).get("message", {})
    return "".join([message.get("content", ""), *(c["function"]["arguments"] for c in message.get("tool_calls", ()))])


@given(
    st.sampled_from([None, "m", 1, []]),
    st.lists(
        st.sampled_from(
            [
                None,
                {},
                {"finish_reason": "stop"},
                {"finish_reason": 3, "message": {"content": "é"}},
                {"message": {"content": "abc", "tool_calls": [{"function": {"arguments": "{}"}}]}},
            ]
        ),
        max_size=3,
    ),
    USAGES,
)
def test_an_odd_answer_is_taken_for_what_it_is(name: Any, choices: list[Any], usage: Any) -> None:
    answer = {"model": name, "service_tier": name, "choices": choices, "usage": usage}
    decoded = OpenAiAdapter("gpt-4o", ModelOptions()).decode(json.dumps(answer).encode(), {})
    assert decoded.body is None
    assert decoded.model == decoded.service_tier == ("m" if name == "m" else "")
    assert decoded.finish_reason == ("stop" if choices and choices[0] == {"finish_reason": "stop"} else "")
    sizes = [len(message_text(choice).encode()) for choice in choices]
    assert decoded.text_length == (0 if isinstance(usage, dict) else sum(sizes))
    assert (decoded.usage is not None) == isinstance(usage, dict)
