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
from data_plane.ai.chat import check_is_chat, read_chat
from data_plane.ai.decision import HEADER, Decision
from data_plane.ai.providers.base import EncodedRequest
from data_plane.ai.relay import Relay
from data_plane.ai.targets import IdentityFailed, Target
from data_plane.errors import ConfigError, GatewayError, InvalidResponse, LlmError, PayloadTooLarge, UpstreamError
from data_plane.exchange import Exchange
from data_plane.http1.client import Client
from data_plane.http1.limits import Timeouts
from data_plane.messages import Headers, Response
from gateway_schema.plugins.ai_proxy_advanced import AiProxyAdvancedConfig

log = logging.getLogger(__name__)

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of a whole answer that are read to be converted."""

MODEL_HEADER: Final = "X-Kong-LLM-Model"

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


@dataclass(slots=True)
class _Question:
    """What one exchange wants of the models."""

    chat: dict[str, Any]
    model: str | None
    by_alias: bool
    stream: bool
    shows_usage: bool


@dataclass(slots=True)
class _Outcome:
    """What came of an attempt: a response to hand over, or an error to raise; `failure` when another may try."""

    response: Response | None = None
    error: GatewayError | None = None
    failure: Failure | None = None
    verdict: str = "answered"

    @property
    def was_not_reached(self) -> bool:
        """Whether the target refused the connection, so that another try is harmless and might succeed."""
        failure, error = self.failure, self.error
        return failure is not None and not failure.sent and error is not None and error.kind in ("refused", "reset")


@dataclass(slots=True)
class _Prepared:
    """An attempt with the bytes it will send."""

    attempt: Attempt
    encoded: EncodedRequest


class ModelUpstream:
    """Implements `exchange.Upstream` over the targets of one ai-proxy-advanced."""

    def __init__(
        self, config: AiProxyAdvancedConfig, client: Client, environment: Mapping[str, str], plugin_id: str, agent: str
    ) -> None:
        """Raises ConfigError, naming the field, for what this version cannot run."""
        _check(config)
        self._config = config
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
        decision = exchange.decision = Decision(targets=self._targets)
        try:
            question, group = await self._ask(exchange, decision)
            response = await self._try_targets(exchange, question, group, decision)
        except GatewayError as error:
            error.headers = {**error.headers, HEADER: decision.id}
            raise
        response.headers.add(HEADER, decision.id)
        return response

    async def close(self) -> None:
        for target in self._targets:
            await target.close()

    # What is asked, and of whom.

    async def _ask(self, exchange: Exchange, decision: Decision) -> tuple[_Question, Group[Target]]:
        config = self._config
        chat = await read_chat(exchange, config.max_request_body_size)
        check_is_chat(chat)
        wants_stream = bool(chat.get("stream"))
        if wants_stream and config.response_streaming == "deny":
            raise LlmError(400, "response streaming is not enabled for this LLM", kind="streaming_denied")
        model = chat.get("model")
        named = model if isinstance(model, str) and model else None
        group, by_alias = self._balancer.candidates(named)
        decision.asked_for, decision.by_alias, decision.candidates = named or "", by_alias, group.targets
        options = chat.get("stream_options")
        return _Question(
            chat=chat,
            model=named,
            by_alias=by_alias,
            stream=wants_stream or config.response_streaming == "always",
            shows_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        ), group

    async def _try_targets(
        self, exchange: Exchange, question: _Question, group: Group[Target], decision: Decision
    ) -> Response:
        tried: list[Target] = []
        last: _Outcome | None = None
        for _ in range(self._config.balancer.retries + 1):
            target = self._next_target(group, tried, last)
            if target is None:
                break
            tried.append(target)
            attempt = self._prepare(exchange, question, target, decision)
            if attempt is None:
                continue
            if last is not None and last.response is not None:
                await last.response.close()
            last = await self._attempt(exchange, question, attempt)
            decision.note(target, last.verdict)
            if last.failure is None or not self._rule.allows(last.failure):
                break
        self._note_passed(group, tried, decision)
        if last is None:
            raise LlmError(500, "no model is available: every target failed too often lately", kind="no_target")
        if last.response is not None:
            return last.response
        assert last.error is not None
        raise last.error

    def _next_target(self, group: Group[Target], tried: list[Target], last: _Outcome | None) -> Target | None:
        """A target that was not tried; when all were and the last was not even reached, the round begins anew."""
        now = time.monotonic()
        target = group.pick(tried, now)
        if target is None and last is not None and last.was_not_reached:
            tried.clear()
            return group.pick(tried, now)
        return target

    def _note_passed(self, group: Group[Target], tried: list[Target], decision: Decision) -> None:
        now = time.monotonic()
        for target in group.targets:
            if target not in tried and not target.breaker.allows(now):
                decision.pass_over(target, "failed too often lately")

    # One attempt.

    def _prepare(self, exchange: Exchange, question: _Question, target: Target, decision: Decision) -> _Prepared | None:
        """Encode for a target. What the first target cannot say is the client's fault (LlmError 400); when a later one
        cannot say it, it is no candidate for this question (None).
        """
        try:
            ready = target.ready(exchange, question.model, by_alias=question.by_alias)
            chat = ready.tuned(question.chat)
            encoded = ready.adapter.encode(chat, stream=question.stream)
        except LlmError as error:
            if not exchange.llm_calls:
                raise
            decision.pass_over(target, error.message)
            return None
        attempt = Attempt(exchange, self._plugin_id, target, ready, chat, question.stream)
        if attempt.payload is not None:
            attempt.payload.request = encoded.body
        decision.last = attempt
        return _Prepared(attempt, encoded)

    async def _attempt(self, exchange: Exchange, question: _Question, prepared: _Prepared) -> _Outcome:
        attempt = prepared.attempt
        try:
            return await self._send(exchange, question, attempt, prepared.encoded)
        except asyncio.CancelledError:
            attempt.abandoned()
            raise
        except Exception as error:
            attempt.end(None, kind=getattr(error, "kind", "internal"))
            raise

    async def _send(
        self, exchange: Exchange, question: _Question, attempt: Attempt, encoded: EncodedRequest
    ) -> _Outcome:
        target, ready = attempt.target, attempt.ready
        exchange.marks.upstream_started = time.monotonic()
        try:
            request = await target.request(ready, encoded, exchange, stream=question.stream)
            response = await self._client.send(ready.origin, request, self._timeouts)
            exchange.marks.first_byte = time.monotonic()
            exchange.upstream_status = attempt.call.status = response.status
            if response.status != 200:
                return self._refused(attempt, response)
            answer = self._streamed if question.stream else self._whole
            outcome = await answer(exchange, question, attempt, response)
        except IdentityFailed as error:
            log.error("exchange %s: %s", exchange.id, error.detail)
            return self._failed(attempt, error, Failure("error", sent=False))
        except UpstreamError as error:
            if error.detail:
                log.warning("exchange %s: %s: %s (%s)", exchange.id, ready.model, error.kind, error.detail)
            return self._failed(attempt, error, Failure.of(error))
        target.breaker.succeeded(time.monotonic())
        return outcome

    def _failed(self, attempt: Attempt, error: GatewayError, failure: Failure) -> _Outcome:
        attempt.end(None, kind=error.kind)
        attempt.target.breaker.failed(time.monotonic())
        return _Outcome(error=error, failure=failure, verdict=error.kind)

    def _refused(self, attempt: Attempt, response: Response) -> _Outcome:
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
            Headers(_kept(response.headers, with_body=True)),
            response.body,
            source="upstream",
            reason=response.reason,
        )
        passed.on_close(response.close)
        return _Outcome(response=passed, failure=failure, verdict=f"status {response.status}")

    async def _whole(self, exchange: Exchange, question: _Question, attempt: Attempt, response: Response) -> _Outcome:
        try:
            _check_encoding(response)
            body = await response.read(MAX_ANSWER)
        except PayloadTooLarge:
            raise InvalidResponse("too_large", f"an answer of more than {MAX_ANSWER} bytes", sent=True) from None
        finally:
            await response.close()
        decoded = attempt.ready.adapter.decode(body, response.headers)
        headers = _kept(response.headers, with_body=False)
        if decoded.body is None:
            headers.append(("Content-Type", response.headers.get("content-type") or "application/json"))
        else:
            body = orjson.dumps(decoded.body)
            headers.append(("Content-Type", "application/json"))
        if attempt.payload is not None:
            attempt.payload.response = body
        attempt.answered(decoded.usage, decoded.text_length, decoded.model, decoded.finish_reason, decoded.service_tier)
        return _Outcome(response=self._answer(attempt, headers, body))

    async def _streamed(
        self, exchange: Exchange, question: _Question, attempt: Attempt, response: Response
    ) -> _Outcome:
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
        relay = Relay(exchange, attempt, decoder, response, shows_usage=question.shows_usage)
        headers = [*_kept(response.headers, with_body=False), ("Content-Type", "text/event-stream")]
        answer = self._answer(attempt, headers, relay)
        answer.on_close(relay.close)
        return _Outcome(response=answer)

    def _answer(self, attempt: Attempt, headers: list[tuple[str, str]], body: Any) -> Response:
        if self._config.model_name_header:
            headers.append((MODEL_HEADER, attempt.ready.model))
        return Response(200, Headers(headers), body, source="upstream")


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
