"""How large the numbers of a batch may be. What no node can have counted is cut to that, and the log says so.

Refusing the batch would make the node send it again for ever, and hold back what it counted since. The limits leave
room below 2⁶³, in which the database counts: a single absurd number must not fill a sum that others belong to.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from gateway_schema.wire import analytics_pb2

_log = logging.getLogger(__name__)

MAX_TOKENS = 1 << 40
MAX_AMOUNT = 1 << 50
"""Of one exchange: bytes, microseconds, nano-USD."""
MAX_SUM = 1 << 53
"""Of many, folded."""

_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")
_LIMITS: Mapping[type[Any], Mapping[str, int]] = {
    analytics_pb2.RequestEvent: dict.fromkeys(
        ("request_size", "response_size", "total_us", "upstream_us", "gateway_us", "callout_us", "receive_us"),
        MAX_AMOUNT,
    ),
    analytics_pb2.LlmCall: {
        **dict.fromkeys(_TOKENS, MAX_TOKENS),
        **dict.fromkeys(("duration_us", "ttft_us", "cost_nano_usd"), MAX_AMOUNT),
    },
    analytics_pb2.UsageDelta: dict.fromkeys(("requests", "request_size", "response_size", "incomplete"), MAX_SUM),
    analytics_pb2.LlmDelta: dict.fromkeys(
        (*_TOKENS, "calls", "estimated_calls", "unpriced_calls", "cost_nano_usd"), MAX_SUM
    ),
    analytics_pb2.Distribution: {"count": MAX_SUM, "sum_us": MAX_SUM, "max_us": MAX_AMOUNT},
}


def bound(batch: analytics_pb2.Batch, node_id: str) -> None:
    """Cut what is beyond reason, in the batch itself."""
    cut = [text for message in _messages(batch) for text in _bounded(message)]
    if cut:
        _log.warning(
            "batch %d of node %s: %d numbers that cannot be are cut to what can; the first is %s",
            *(batch.sequence, node_id, len(cut), cut[0]),
        )


def _messages(batch: analytics_pb2.Batch) -> Iterator[Any]:
    for event in batch.events:
        yield event
        yield from event.llm_calls
    for delta in batch.deltas:
        yield delta
        yield from (delta.total, delta.upstream, delta.gateway)
        for folded in delta.llm:
            yield from (folded, folded.duration, folded.ttft)


def _bounded(message: Any) -> Iterator[str]:
    for name, most in _LIMITS[type(message)].items():
        value = getattr(message, name)
        if not 0 <= value <= most:
            setattr(message, name, min(max(value, 0), most))
            yield f"{name} {value}"
