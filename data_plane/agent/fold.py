"""Folding: many events become one additive delta per minute and key, so that a full queue loses detail, never counts.

Requests, bytes, tokens and cost add up exactly; latencies go into mergeable sketches; only the single rows of the
request log are gone. Only events that were never sent may be folded: a batch that was sent may have been stored though
its acknowledgement was lost, and its events would then count twice.

When there are more keys than memory is meant for, new ones lose detail in steps, but still no counts: first who the
consumer was, then which route and service (`OTHER`).
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from gateway_schema.sketch import Sketch
from gateway_schema.wire import analytics_pb2 as pb

OTHER = "____OTHER____"
"""Stands for every consumer, route or service beyond those that are kept apart."""
MAX_KEYS = 20_000
MAX_MODELS = 200
"""Models kept apart within one key: their names come from clients, who could invent them."""
MINUTE = 60

_UsageKey = tuple[int, str, str, str, int, str]
_LlmKey = tuple[str, str, str, int, bool]


class _Distribution:
    __slots__ = ("count", "max_us", "sketch", "sum_us")

    def __init__(self) -> None:
        self.count = 0
        self.sum_us = 0
        self.max_us = 0
        self.sketch = Sketch()

    def add(self, value_us: int) -> None:
        self.count += 1
        self.sum_us += value_us
        self.max_us = max(self.max_us, value_us)
        self.sketch.add(value_us)

    def merge(self, other: pb.Distribution) -> None:
        """Raises ValueError when the other's sketch is damaged; nothing has been added then."""
        sketch = Sketch.decode(other.sketch)
        self.sketch.merge(sketch)
        self.count += other.count
        self.sum_us += other.sum_us
        self.max_us = max(self.max_us, other.max_us)

    def write(self, into: pb.Distribution) -> None:
        if self.count:
            into.count, into.sum_us, into.max_us = self.count, self.sum_us, self.max_us
            into.sketch = self.sketch.encode()


_LLM_SUMS = (
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "estimated_calls",
    "unpriced_calls",
    "cost_nano_usd",
)
_USAGE_SUMS = ("requests", "request_size", "response_size", "incomplete")


class _Llm:
    __slots__ = ("duration", "sums", "ttft")

    def __init__(self) -> None:
        self.sums = dict.fromkeys(_LLM_SUMS, 0)
        self.duration = _Distribution()
        self.ttft = _Distribution()

    def add(self, call: pb.LlmCall) -> None:
        sums = self.sums
        sums["calls"] += 1
        sums["prompt_tokens"] += call.prompt_tokens
        sums["completion_tokens"] += call.completion_tokens
        sums["cached_tokens"] += call.cached_tokens
        sums["cache_write_tokens"] += call.cache_write_tokens
        sums["reasoning_tokens"] += call.reasoning_tokens
        sums["estimated_calls"] += call.token_source == "estimated"  # noqa: S105 (says who counted)
        sums["unpriced_calls"] += not call.HasField("cost_nano_usd")
        sums["cost_nano_usd"] += call.cost_nano_usd
        self.duration.add(call.duration_us)
        if call.HasField("ttft_us"):
            self.ttft.add(call.ttft_us)

    def merge(self, other: pb.LlmDelta) -> None:
        self.duration.merge(other.duration)
        self.ttft.merge(other.ttft)
        for name in _LLM_SUMS:
            self.sums[name] += getattr(other, name)

    def write(self, key: _LlmKey, into: pb.LlmDelta) -> None:
        into.provider, into.request_model, into.response_model, into.status, into.stream = key
        for name, value in self.sums.items():
            setattr(into, name, value)
        self.duration.write(into.duration)
        self.ttft.write(into.ttft)


class _Usage:
    __slots__ = ("gateway", "llm", "sums", "total", "upstream")

    def __init__(self) -> None:
        self.sums = dict.fromkeys(_USAGE_SUMS, 0)
        self.total = _Distribution()
        self.upstream = _Distribution()
        self.gateway = _Distribution()
        self.llm: dict[_LlmKey, _Llm] = {}

    def add(self, event: pb.RequestEvent) -> None:
        sums = self.sums
        sums["requests"] += 1
        sums["request_size"] += event.request_size
        sums["response_size"] += event.response_size
        sums["incomplete"] += event.outcome != "complete"
        self.total.add(event.total_us)
        self.gateway.add(event.gateway_us)
        if event.HasField("upstream_us"):
            self.upstream.add(event.upstream_us)
        for call in event.llm_calls:
            self._llm(call).add(call)

    def merge(self, other: pb.UsageDelta) -> None:
        self.total.merge(other.total)
        self.upstream.merge(other.upstream)
        self.gateway.merge(other.gateway)
        for name in _USAGE_SUMS:
            self.sums[name] += getattr(other, name)
        for delta in other.llm:
            self._llm(delta).merge(delta)

    def _llm(self, of: pb.LlmCall | pb.LlmDelta) -> _Llm:
        key = (of.provider, of.request_model, of.response_model, of.status, of.stream)
        llm = self.llm.get(key)
        if llm is None and len(self.llm) >= MAX_MODELS:
            key = (of.provider, OTHER, OTHER, of.status, of.stream)
            llm = self.llm.get(key)
        if llm is None:
            llm = self.llm[key] = _Llm()
        return llm

    def write(self, key: _UsageKey) -> pb.UsageDelta:
        delta = pb.UsageDelta()
        delta.minute, delta.service_id, delta.route_id, delta.consumer_id, delta.status, delta.source = key
        for name, value in self.sums.items():
            setattr(delta, name, value)
        self.total.write(delta.total)
        self.upstream.write(delta.upstream)
        self.gateway.write(delta.gateway)
        for llm_key, llm in self.llm.items():
            llm.write(llm_key, delta.llm.add())
        return delta


class Fold:
    """An accumulator of events and deltas. `step` is the width of a bucket in seconds, a multiple of a minute.

    `consumers` False keeps no consumer apart, which is how a very long outage is made to fit.
    """

    def __init__(self, *, step: int = MINUTE, max_keys: int = MAX_KEYS, consumers: bool = True) -> None:
        self._step = step
        self._max_keys = max_keys
        self._consumers = consumers
        self._usages: dict[_UsageKey, _Usage] = {}
        self.requests = 0
        """How many events stand behind what was folded."""

    def __bool__(self) -> bool:
        return bool(self._usages)

    def add_serialised(self, event: bytes) -> bool:
        """Fold one serialised RequestEvent; False when it is none."""
        try:
            self.add(pb.RequestEvent.FromString(event))
        except DecodeError:  # whoever calls counts it as lost
            return False
        return True

    def add(self, event: pb.RequestEvent) -> None:
        second = event.finished_us // 1_000_000
        usage = self._usage(second, event.service_id, event.route_id, event.consumer_id, event.status, event.source)
        usage.add(event)
        self.requests += 1

    def merge(self, delta: pb.UsageDelta) -> None:
        """Raises ValueError when one of the delta's sketches is damaged."""
        _check(delta)
        usage = self._usage(
            delta.minute, delta.service_id, delta.route_id, delta.consumer_id, delta.status, delta.source
        )
        usage.merge(delta)
        self.requests += delta.requests

    def merge_batch(self, batch: pb.Batch) -> int:
        """Fold all that a batch holds; returns how many events were damaged beyond that."""
        lost = 0
        for event in batch.events:
            self.add(event)
        for delta in batch.deltas:
            try:
                self.merge(delta)
            except ValueError:
                lost += delta.requests
        return lost

    def deltas(self) -> list[pb.UsageDelta]:
        """What was folded, oldest minute first."""
        return [self._usages[key].write(key) for key in sorted(self._usages)]

    def _usage(self, second: int, service: str, route: str, consumer: str, status: int, source: str) -> _Usage:
        minute = second - second % self._step
        if not self._consumers and consumer:
            consumer = OTHER
        for key in self._candidates((minute, service, route, consumer, status, source)):
            usage = self._usages.get(key)
            if usage is not None:
                return usage
            if len(self._usages) < self._max_keys:
                break
        usage = self._usages[key] = _Usage()
        return usage

    @staticmethod
    def _candidates(key: _UsageKey) -> Iterable[_UsageKey]:
        """The key itself, then ever coarser ones. The last is used even beyond the limit: it holds the few left."""
        minute, service, route, consumer, status, source = key
        yield key
        if consumer:
            yield (minute, service, route, OTHER, status, source)
        yield (minute, OTHER, OTHER, OTHER, status, source)


def _check(delta: pb.UsageDelta) -> None:
    """A delta counts whole or not at all, so its sketches are read before anything is added."""
    for distribution in (delta.total, delta.upstream, delta.gateway):
        Sketch.decode(distribution.sketch)
    for llm in delta.llm:
        Sketch.decode(llm.duration.sketch)
        Sketch.decode(llm.ttft.sketch)
