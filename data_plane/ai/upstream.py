"""Models behind a route, as one upstream: pick a target, ask it, and where the rules allow ask another.

Kept in this order for every attempt: encode for the target's provider, authorise, send, look at the status. A 200 is
decoded, whole or as it streams; any other status passes to the client as it came, unless the failover rule lets
another target try. Nothing is tried again once the answer's head has been handed over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson

from data_plane.ai.balancer import ALGORITHMS, Balancer, FailoverRule, Failure, Group
from data_plane.ai.calls import Attempt
from data_plane.ai.chat import chat_at_hand, check_is_chat, read_chat
from data_plane.ai.decision import HEADER, Decision
from data_plane.ai.providers.base import EncodedRequest
from data_plane.ai.relay import Relay
from data_plane.ai.targets import IdentityFailed, Target
from data_plane.errors import ConfigError, GatewayError, InvalidResponse, LlmError, PayloadTooLarge, UpstreamError
from data_plane.exchange import Departure, Exchange
from data_plane.http1.client import Client
from data_plane.http1.limits import Timeouts
from data_plane.messages import Head, Headers, Response
from gateway_schema.plugins.ai_proxy_advanced import AiProxyAdvancedConfig

log = logging.getLogger(__name__)

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of a whole answer that are read to be converted."""

_BETWEEN_HOPS: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""What of a provider's headers is none of the client's business; its cookies would be set for the gateway's host."""
_BODY_HEADERS: Final = frozenset({"content-length", "content-type", "content-encoding"})
_OURS: Final = ("x-kong-", "x-tandem-")
_KEPT, _OF_BODY, _DROPPED = range(3)


class _Question:
    """What one exchange wants of the models."""

    __slots__ = ("by_alias", "chat", "decision", "exchange", "model", "shows_usage", "stream")

    def __init__(self, exchange: Exchange, chat: dict[str, Any], decision: Decision, always_streams: bool) -> None:
        model, stream = chat.get("model"), bool(chat.get("stream"))
        self.exchange = exchange
        self.chat = chat
        self.decision = decision
        self.model = model if type(model) is str and model else None
        self.by_alias = False
        self.stream = stream or always_streams
        self.shows_usage = False
        if self.stream:
            options = chat.get("stream_options")
            self.shows_usage = isinstance(options, dict) and bool(options.get("include_usage"))


@dataclass(slots=True)
class _Failed:
    """What came of an attempt without success: an error to raise or a response to hand over, if no other may try."""

    failure: Failure
    verdict: str
    error: GatewayError | None = None
    response: Response | None = None

    @property
    def was_not_reached(self) -> bool:
        """Whether the target refused the connection, so that another try is harmless and might succeed."""
        return not self.failure.sent and self.error is not None and self.error.kind in ("refused", "reset")


class ModelUpstream:
    """Implements `exchange.Upstream` over the targets of one ai-proxy-advanced."""

    def __init__(
        self, config: AiProxyAdvancedConfig, client: Client, environment: Mapping[str, str], plugin_id: str, agent: str
    ) -> None:
        """Raises ConfigError, naming the field, for what this version cannot run."""
        _check(config)
        self._limit = config.max_request_body_size
        self._denies_streams = config.response_streaming == "deny"
        self._always_streams = config.response_streaming == "always"
        self._names_model = config.model_name_header
        self._rounds = range(config.balancer.retries + 1)
        self._client = client
        self._plugin_id = plugin_id
        balancer = config.balancer
        self._targets = [
            Target(number, target, balancer, environment, agent) for number, target in enumerate(config.targets)
        ]
        self._balancer = Balancer(self._targets)
        self._rule = FailoverRule(balancer)
        self._timeouts = Timeouts(
            balancer.connect_timeout / 1000, balancer.write_timeout / 1000, balancer.read_timeout / 1000
        )

    async def send(self, exchange: Exchange) -> Response:
        """Raises LlmError for what the gateway answers itself, UpstreamError when no provider gave an answer."""
        decision = exchange.decision = Decision(self._targets)
        try:
            chat = chat_at_hand(exchange, self._limit)
            if chat is None:
                chat = await read_chat(exchange, self._limit)
            check_is_chat(chat)
            if self._denies_streams and chat.get("stream"):
                raise LlmError(400, "response streaming is not enabled for this LLM", kind="streaming_denied")
            question = _Question(exchange, chat, decision, self._always_streams)
            return await self._try_targets(question, self._candidates(question))
        except GatewayError as error:
            error.headers = {**error.headers, HEADER: decision.id}
            raise

    async def close(self) -> None:
        for target in self._targets:
            await target.close()

    # Without waiting (`exchange.QuickUpstream`).

    def depart(self, exchange: Exchange) -> Departure | None:
        """For questions that one target only may answer, whole: choosing among several counts, and streams differ."""
        chat = chat_at_hand(exchange, self._limit) if exchange.chat is None else exchange.chat.body
        if chat is None or self._always_streams or chat.get("stream"):
            return None
        check_is_chat(chat)
        decision = exchange.decision = Decision(self._targets)
        question = _Question(exchange, chat, decision, False)
        targets = self._candidates(question).targets
        if len(targets) != 1:
            return None
        breaker = targets[0].breaker
        if breaker.failures and not breaker.allows(time.monotonic()):
            return None
        prepared = self._prepare(question, targets[0])
        if prepared is None:
            return None
        attempt, encoded = prepared
        data, pool = targets[0].wire_at_once(attempt.ready, encoded), self._client.pool(attempt.ready.origin)
        behind = pool.take() if pool is not None and data is not None else None
        if behind is None or data is None:
            return None
        return behind, encoded.method, data, self._timeouts

    def land(self, exchange: Exchange, response: Response) -> Response | None:
        decision = exchange.decision
        if response.status != 200 or decision is None or decision.last is None or type(response.body) is not bytes:
            return None
        attempt = decision.last
        exchange.upstream_status = 200
        answer = self._answered(decision, attempt, response, response.body)
        decision.attempts.append((attempt.target, "answered"))
        breaker = attempt.target.breaker
        if breaker.failures:
            breaker.succeeded(time.monotonic())
        return answer

    def forsake(self, exchange: Exchange) -> None:
        if exchange.decision is not None and exchange.decision.last is not None:
            exchange.decision.last.abandoned()

    # Who is asked.

    def _candidates(self, question: _Question) -> Group[Target]:
        decision = question.decision
        group, question.by_alias = self._balancer.candidates(question.model)
        decision.asked_for = question.model or ""
        decision.by_alias, decision.candidates = question.by_alias, group.targets
        return group

    async def _try_targets(self, question: _Question, group: Group[Target]) -> Response:
        """A question that was sent already (`Request.ride`) has asked its only target, be that out by now."""
        attempts = question.decision.attempts
        tried: list[Target] = []
        last: _Failed | None = None
        for _ in self._rounds:
            target = group.pick(tried, time.monotonic()) if question.exchange.request.ride is None else group.targets[0]
            if target is None and last is not None and last.was_not_reached:
                # All were tried and the last was not even reached: the round begins anew.
                tried.clear()
                target = group.pick(tried, time.monotonic())
            if target is None:
                break
            tried.append(target)
            prepared = self._prepare(question, target)
            if prepared is None:
                continue
            if last is not None and last.response is not None:
                await last.response.close()
            outcome = await self._attempt(question, *prepared)
            if type(outcome) is Response:
                attempts.append((target, "answered"))
                if len(tried) < len(group.targets):
                    _note_passed(group, tried, question.decision)
                return outcome
            assert type(outcome) is _Failed
            last = outcome
            attempts.append((target, last.verdict))
            if not self._rule.allows(last.failure):
                break
        _note_passed(group, tried, question.decision)
        return _conclude(last)

    # One attempt.

    def _prepare(self, question: _Question, target: Target) -> tuple[Attempt, EncodedRequest] | None:
        """Encode for a target. What the first target cannot say is the client's fault (LlmError 400); when a later one
        cannot say it, it is no candidate for this question (None).
        """
        exchange, decision, chat = question.exchange, question.decision, question.chat
        try:
            ready = target.ready(exchange, question.model, by_alias=question.by_alias)
            asked = ready.tuned(chat) if ready.tuning else chat
            encoded = ready.adapter.encode(asked, stream=question.stream)
        except LlmError as error:
            if not exchange.llm_calls:
                raise
            decision.passed_over.append((target, error.message))
            return None
        attempt = Attempt(exchange, self._plugin_id, target, ready, asked, question.stream)
        if attempt.payload is not None:
            attempt.payload.request = encoded.body
        decision.last = attempt
        return attempt, encoded

    async def _attempt(self, question: _Question, attempt: Attempt, encoded: EncodedRequest) -> Response | _Failed:
        exchange, ready = question.exchange, attempt.ready
        exchange.marks.upstream_started = attempt.started
        try:
            request = attempt.target.request_at_once(ready, encoded, question.stream)
            if request is None:
                request = await attempt.target.request(ready, encoded, exchange, stream=question.stream)
            ride = exchange.request.ride
            if ride is not None:
                request.ride, exchange.request.ride = ride, None
                attempt.started = exchange.marks.first_attempt = exchange.marks.upstream_started = ride.sent_at
            response = await self._client.send(ready.origin, request, self._timeouts)
            exchange.marks.first_byte = time.monotonic()
            exchange.upstream_status = attempt.call.status = response.status
            if response.status != 200:
                return self._refused(question, attempt, response)
            body = response.body
            if question.stream:
                answer = await self._streamed(question, attempt, response)
            elif type(body) is bytes and not response.is_held:
                answer = self._answered(question.decision, attempt, response, body)
            else:
                answer = await self._whole(question, attempt, response)
        except IdentityFailed as error:
            log.error("exchange %s: %s", exchange.id, error.detail)
            return self._failed(attempt, error, Failure("error", sent=False))
        except UpstreamError as error:
            if error.detail:
                log.warning("exchange %s: %s: %s (%s)", exchange.id, ready.model, error.kind, error.detail)
            return self._failed(attempt, error, Failure.of(error))
        except asyncio.CancelledError:
            attempt.abandoned()
            raise
        except Exception as error:
            attempt.end(None, kind=getattr(error, "kind", "internal"))
            raise
        breaker = attempt.target.breaker
        if breaker.failures:
            breaker.succeeded(time.monotonic())
        return answer

    def _failed(self, attempt: Attempt, error: GatewayError, failure: Failure) -> _Failed:
        attempt.end(None, kind=error.kind)
        attempt.target.breaker.failed(time.monotonic())
        return _Failed(failure, error.kind, error=error)

    def _refused(self, question: _Question, attempt: Attempt, response: Response) -> _Failed:
        """Another status than 200: it passes unchanged, if no other target may try."""
        attempt.refused(response.status)
        failure = Failure(f"http_{response.status}", sent=True)
        breaker, now = attempt.target.breaker, time.monotonic()
        if self._rule.trips(failure):
            breaker.failed(now)
        else:
            breaker.succeeded(now)
        passed = Response(
            response.status,
            Headers.adopt([*_kept(response.headers, with_body=True), (HEADER, question.decision.id)]),
            response.body,
            source="upstream",
            reason=response.reason,
        )
        passed.on_close(response.close)
        return _Failed(failure, f"status {response.status}", response=passed)

    async def _whole(self, question: _Question, attempt: Attempt, response: Response) -> Response:
        """An answer that is still arriving, or must be given back."""
        try:
            _check_encoding(response)
            body = await response.read(MAX_ANSWER)
        except PayloadTooLarge:
            raise InvalidResponse("too_large", f"an answer of more than {MAX_ANSWER} bytes", sent=True) from None
        finally:
            await response.close()
        return self._answered(question.decision, attempt, response, body)

    def _answered(self, decision: Decision, attempt: Attempt, response: Response, body: bytes) -> Response:
        """A whole answer in OpenAI's shape. Raises InvalidResponse for one that is compressed."""
        origin, adapter = response.headers.origin, attempt.ready.adapter
        onward: Head | None = None if origin is None else origin.notes.get(adapter)
        if onward is None:
            _check_encoding(response)
        decoded = adapter.decode(body, response.headers)
        if decoded.body is not None:
            body = orjson.dumps(decoded.body)
        if onward is None:
            onward = Head(self._onward(attempt, response.headers, converted=decoded.body is not None))
            if origin is not None:
                origin.note(adapter, onward)
        if attempt.payload is not None:
            attempt.payload.response = body
        attempt.answered(decoded.usage, decoded.text_length, decoded.model, decoded.finish_reason, decoded.service_tier)
        return Response(200, onward.followed_by((HEADER, decision.id)), body, source="upstream")

    def _onward(self, attempt: Attempt, headers: Headers, *, converted: bool) -> list[tuple[str, str]]:
        """The fields that go on with a whole answer. Which answers an adapter converts is always the same."""
        fields = _kept(headers, with_body=False)
        given = None if converted else headers.get("content-type")
        fields.append(("Content-Type", given or "application/json"))
        if self._names_model:
            fields.append(attempt.ready.model_field)
        return fields

    async def _streamed(self, question: _Question, attempt: Attempt, response: Response) -> Response:
        adapter = attempt.ready.adapter
        given = (response.headers.get("content-type") or "").partition(";")[0].strip().lower()
        try:
            _check_encoding(response)
            if given != adapter.stream_type:
                raise LlmError(500, "empty or unsupported transformer response", kind="transformation")
        except GatewayError:
            await response.close()
            raise
        decoder = adapter.stream_decoder(response.headers)
        relay = Relay(question.exchange, attempt, decoder, response, shows_usage=question.shows_usage)
        fields = [*_kept(response.headers, with_body=False), ("Content-Type", "text/event-stream")]
        if self._names_model:
            fields.append(attempt.ready.model_field)
        fields.append((HEADER, question.decision.id))
        answer = Response(200, Headers.adopt(fields), relay, source="upstream")
        answer.on_close(relay.close)
        return answer


def _note_passed(group: Group[Target], tried: list[Target], decision: Decision) -> None:
    now = time.monotonic()
    for target in group.targets:
        if target.breaker.failures and target not in tried and not target.breaker.allows(now):
            decision.passed_over.append((target, "failed too often lately"))


def _conclude(last: _Failed | None) -> Response:
    """What the client gets when no target answered."""
    if last is None:
        raise LlmError(500, "no model is available: every target failed too often lately", kind="no_target")
    if last.response is not None:
        return last.response
    assert last.error is not None
    raise last.error


def _check_encoding(response: Response) -> None:
    """We ask for identity; a provider that compresses all the same cannot be read."""
    encoding = response.headers.get("content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise InvalidResponse("encoding", f"the provider compressed its answer ({encoding[:32]})", sent=True)


def _kept(headers: Headers, *, with_body: bool) -> list[tuple[str, str]]:
    """A provider's headers as the client gets them; those that describe its body only if that goes along unchanged."""
    if with_body:
        return [pair for pair in headers.raw if _fate(pair[0]) != _DROPPED]
    return [pair for pair in headers.raw if _fate(pair[0]) == _KEPT]


@lru_cache(maxsize=1024)
def _fate(name: str) -> int:
    lowered = name.lower()
    if lowered in _BETWEEN_HOPS or lowered.startswith(_OURS):
        return _DROPPED
    return _OF_BODY if lowered in _BODY_HEADERS else _KEPT


def _check(config: AiProxyAdvancedConfig) -> None:
    """Refuse what the schema knows and this version does not do."""
    if config.llm_format != "openai":
        raise ConfigError(
            f"'{config.llm_format}' is not available in this version (has: openai)", field="config.llm_format"
        )
    if config.balancer.algorithm not in ALGORITHMS:
        available = ", ".join(sorted(ALGORITHMS))
        raise ConfigError(
            f"'{config.balancer.algorithm}' is not available in this version (has: {available})",
            field="config.balancer.algorithm",
        )
    if config.acls is not None and (config.acls.allow or config.acls.deny):
        raise ConfigError("rules are not available in this version", field="config.acls")
