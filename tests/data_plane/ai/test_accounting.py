"""Estimates and prices."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.ai.accounting import _sum_of_parts, cost, estimate
from data_plane.ai.providers.base import MAX_TOKENS, Usage, count
from gateway_schema.plugins.llm import ModelOptions
from gateway_schema.wire import analytics_pb2


@pytest.mark.parametrize(
    ("messages", "stream", "tokens"),
    [
        ([{"content": "one two three"}], False, 3),
        ([{"content": "one two three"}], True, 5),
        ([{"content": "a"}, {"content": [{"type": "text", "text": "b c"}, {"type": "image_url"}, 7]}], False, 3),
        ([{"content": None}, "x", {}], False, 0),
        ("nonsense", True, 0),
    ],
)
def test_a_prompt_is_estimated_by_its_words(messages: Any, stream: bool, tokens: int) -> None:
    assert estimate({"messages": messages}, 0, stream=stream).prompt_tokens == tokens


@pytest.mark.parametrize(("length", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_an_answer_is_estimated_by_its_bytes(length: int, tokens: int) -> None:
    assert estimate({}, length, stream=False).completion_tokens == tokens


def priced(usage: Usage, tier: str = "", **options: Any) -> int | None:
    return cost(usage, ModelOptions.model_validate({"input_cost": 2, "output_cost": 8, **options}), tier)


def test_without_both_prices_there_is_no_cost() -> None:
    assert cost(Usage(10, 10), ModelOptions(input_cost=1), "") is None
    assert cost(Usage(10, 10), ModelOptions(output_cost=1), "") is None
    assert cost(Usage(), ModelOptions(input_cost=1, output_cost=1), "") == 0


def test_cached_and_written_tokens_are_part_of_the_prompt_and_have_their_own_prices() -> None:
    usage = Usage(prompt_tokens=100, completion_tokens=10, cached_tokens=60, cache_write_tokens=30)

    assert priced(usage) == (100 * 2 + 10 * 8) * 1000
    assert priced(usage, cache_read_cost=1, cache_write_cost=3) == (10 * 2 + 60 * 1 + 30 * 3 + 10 * 8) * 1000


def test_writes_are_priced_by_lifetime_where_it_is_known() -> None:
    usage = Usage(30, 0, cache_write_tokens=30, cache_writes_by_ttl={"5m": 10, "1h": 5, "2h": 5})
    prices = [{"ttl": "5m", "cost": 4}, {"ttl": "1h", "cost": 6}]

    found = priced(usage, cache_write_cost=3, cache_write_cost_list=prices)

    assert found == (10 * 4 + 5 * 6 + 5 * 3 + 10 * 3) * 1000


@pytest.mark.parametrize(("prompt", "expected"), [(100, 200), (101, 404), (1001, 10010)])
def test_long_prompts_cost_more_by_the_highest_threshold_passed(prompt: int, expected: int) -> None:
    factors = [
        {"above": "1000", "input_factor": 5, "output_factor": 1},
        {"above": "100", "input_factor": 2, "output_factor": 1},
    ]

    assert priced(Usage(prompt, 0), context_window_factor=factors) == expected * 1000


@pytest.mark.parametrize(
    ("tier", "factor"), [("", 1), ("default", 1), ("Flex", 0.5), ("super_flexible", 3), ("priority", 2), ("fast", 2)]
)
def test_service_tiers_multiply_by_the_longest_word_found(tier: str, factor: float) -> None:
    factors = [
        {"tier": "flex", "factor": 0.5},
        {"tier": "FLEXIBLE", "factor": 3},
        {"tier": "priority", "factor": 2},
    ]

    assert priced(Usage(10, 0), tier, service_tier_factor=factors) == 20 * 1000 * factor


counts = st.integers(min_value=0, max_value=10**9)


@given(prompt=counts, completion=counts, cached=counts, written=counts)
def test_a_cost_is_never_negative_and_grows_with_the_answer(
    prompt: int, completion: int, cached: int, written: int
) -> None:
    less = priced(Usage(prompt, completion, cached, written))
    more = priced(Usage(prompt, completion + 1, cached, written))

    assert less is not None
    assert more is not None
    assert 0 <= less < more


@given(
    prompt=counts,
    completion=counts,
    input_cost=st.floats(0, 1e300),
    output_cost=st.floats(0, 1e6),
    other=st.sampled_from([{}, {"cache_read_cost": 1.5}, {"cache_write_cost": 3.0}]),
    tier=st.sampled_from(["", "priority"]),
)
def test_a_plain_call_costs_what_the_sum_of_all_parts_says(
    prompt: int, completion: int, input_cost: float, output_cost: float, other: dict[str, float], tier: str
) -> None:
    options = ModelOptions(input_cost=input_cost, output_cost=output_cost, **other)  # type: ignore[arg-type]
    usage = Usage(prompt, completion)
    assert cost(usage, options, tier) == _sum_of_parts(usage, options, tier, input_cost, output_cost)


@pytest.mark.parametrize("tokens", [MAX_TOKENS + 1, (1 << 63) - 1, 1 << 80, -1, 1.0, True])
def test_a_number_of_tokens_that_cannot_be_counts_as_none(tokens: Any) -> None:
    assert count(tokens) == 0
    assert count(MAX_TOKENS) == MAX_TOKENS


def test_whatever_a_price_is_a_cost_fits_an_event() -> None:
    usage = Usage(prompt_tokens=MAX_TOKENS, completion_tokens=MAX_TOKENS)
    options = ModelOptions(input_cost=1e300, output_cost=1e300)
    cost_nano_usd = cost(usage, options, "")
    assert analytics_pb2.LlmCall(cost_nano_usd=cost_nano_usd).cost_nano_usd == cost_nano_usd
