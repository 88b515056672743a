"""What a call used and what that cost: estimates where the provider does not say, prices from the target's options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from data_plane.ai.providers.base import Usage
from gateway_schema.plugins.llm import ModelOptions

_STREAM_FACTOR: Final = 1.8
_BYTES_PER_TOKEN: Final = 4

_NANO_PER_UNIT_PRICE: Final = 1000
"""A price is USD per million tokens, so one token at price 1 costs a thousand nano-USD."""
_MAX_COST: Final = 1 << 50
"""Prices have no limit, an event's numbers do."""


def estimate(chat: Mapping[str, Any], text_length: int, *, stream: bool) -> Usage:
    """Kong's estimate (`reference/ai-plugins.md` §4.3): words of the messages, a token per four bytes of answer."""
    words = 0
    messages = chat.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            words += _words(message.get("content"))
    prompt = math.floor(words * (_STREAM_FACTOR if stream else 1.0) + 0.5)
    return Usage(prompt_tokens=prompt, completion_tokens=-(-text_length // _BYTES_PER_TOKEN))


def _words(content: Any) -> int:
    if isinstance(content, str):
        return len(content.split())
    words = 0
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            words += len(part["text"].split())
    return words


def cost(usage: Usage, options: ModelOptions, service_tier: str) -> int | None:
    """Nano-USD, each kind of token rounded for itself; None when the target does not have both prices.

    Cached and cache-written tokens are part of the prompt; without a price of their own they cost what input costs.
    """
    input_cost, output_cost = options.input_cost, options.output_cost
    if input_cost is None or output_cost is None:
        return None
    if (
        usage.cached_tokens
        or usage.cache_write_tokens
        or usage.cache_writes_by_ttl
        or options.context_window_factor
        or options.service_tier_factor
    ):
        return _sum_of_parts(usage, options, service_tier, input_cost, output_cost)
    prompt = min(_MAX_COST, usage.prompt_tokens * input_cost * _NANO_PER_UNIT_PRICE)
    completion = min(_MAX_COST, usage.completion_tokens * output_cost * _NANO_PER_UNIT_PRICE)
    return min(_MAX_COST, round(prompt) + round(completion))


def _sum_of_parts(usage: Usage, options: ModelOptions, service_tier: str, input_cost: float, output_cost: float) -> int:
    input_factor, output_factor = _context_factors(usage.prompt_tokens, options)
    tier = _tier_factor(service_tier, options)
    plain = max(0, usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens)
    read_cost = input_cost if options.cache_read_cost is None else options.cache_read_cost
    parts = (
        (plain, input_cost * input_factor),
        (usage.cached_tokens, read_cost * input_factor),
        *((tokens, price * input_factor) for tokens, price in _cache_writes(usage, options)),
        (usage.completion_tokens, output_cost * output_factor),
    )
    costs = (min(_MAX_COST, tokens * price * tier * _NANO_PER_UNIT_PRICE) for tokens, price in parts)
    return min(_MAX_COST, sum(map(round, costs)))


def _cache_writes(usage: Usage, options: ModelOptions) -> list[tuple[int, float]]:
    """Tokens and price of each lifetime; what the provider did not break down has the general price."""
    general = options.input_cost if options.cache_write_cost is None else options.cache_write_cost
    assert general is not None
    prices = {entry.ttl: entry.cost for entry in options.cache_write_cost_list or ()}
    by_ttl = dict(usage.cache_writes_by_ttl or {})
    unlabelled = max(0, usage.cache_write_tokens - sum(by_ttl.values()))
    return [(tokens, prices.get(ttl, general)) for ttl, tokens in by_ttl.items()] + [(unlabelled, general)]


def _context_factors(prompt_tokens: int, options: ModelOptions) -> tuple[float, float]:
    """Those of the highest threshold that the prompt has passed."""
    passed = [entry for entry in options.context_window_factor or () if int(entry.above) < prompt_tokens]
    if not passed:
        return 1.0, 1.0
    highest = max(passed, key=lambda entry: int(entry.above))
    return highest.input_factor, highest.output_factor


def _tier_factor(service_tier: str, options: ModelOptions) -> float:
    """The longest word found in the provider's tier decides; `priority` also answers to `fast`."""
    reported = service_tier.lower()
    if not reported:
        return 1.0
    best_length, best = 0, 1.0
    for entry in options.service_tier_factor or ():
        word = entry.tier.lower()
        if (word in reported or (word == "priority" and "fast" in reported)) and len(word) > best_length:
            best_length, best = len(word), entry.factor
    return best
