"""datakit: runs a workflow before the service is called and, where nodes wait for its response, another after it."""

from __future__ import annotations

import logging

import orjson

from data_plane.errors import InternalError, PayloadTooLarge
from data_plane.exchange import Exchange, Proceed, Supplies
from data_plane.messages import Headers, Response
from data_plane.plugins.datakit.engine import NodeFailure, Stage, Step, run_stage
from data_plane.plugins.datakit.nodes import KINDS
from data_plane.plugins.datakit.programs import EvaluatorPool
from data_plane.plugins.datakit.sinks import RequestSink, ResponseSink
from data_plane.plugins.datakit.sources import RequestSource, ResponseSource
from data_plane.plugins.datakit.state import Inputs, State
from data_plane.plugins.datakit.trace import HEADER, Trace, wanted
from data_plane.plugins.datakit.values import NodeError
from gateway_schema.plugins.datakit import DatakitConfig

log = logging.getLogger(__name__)

MAX_BODY = 16 * 1024 * 1024
"""Bytes of a request's or a response's body that a workflow reads."""


class Datakit:
    def __init__(self, config: DatakitConfig, supplies: Supplies) -> None:
        self._debug = config.debug
        self._supplies = supplies
        self._plan = plan = config.plan
        steps = [Step(node, KINDS[node.kind](config.nodes[node.index - 1], node)) for node in plan.nodes]
        self._before = Stage([step for step in steps if not step.plan.in_response])
        self._after = Stage([step for step in steps if step.plan.in_response])
        self._request = RequestSink(Inputs(plan.sinks["service_request"]))
        self._response = ResponseSink(Inputs(plan.sinks["response"])) if plan.sinks["response"] else None
        self._changes_response = plan.has_response_phase or self._response is not None
        self._pool = EvaluatorPool()

    async def handle(self, exchange: Exchange, proceed: Proceed) -> Response:
        trace = self._trace(exchange) if self._debug else None
        state = State(exchange, self._supplies, self._pool, trace)
        try:
            response = await self._access(exchange, state)
        except NodeFailure as failure:
            return self._failed(exchange, failure, trace)
        if response is None:
            response = await proceed(exchange)
            if not self._changes_response and state.status is None and trace is None:
                return response
            try:
                response = await self._respond(exchange, state, response)
            except NodeFailure as failure:
                await response.close()
                return self._failed(exchange, failure, trace)
            except BaseException:
                await response.close()
                raise
        if trace is not None:
            await response.close()
            return _json(200, trace.body("complete"))
        return response

    async def close(self) -> None:
        await self._pool.close()

    # Before the service is called

    async def _access(self, exchange: Exchange, state: State) -> Response | None:
        body = await exchange.body_bytes(MAX_BODY) if self._plan.reads_request_body else b""
        state.sources["request"] = RequestSource(exchange, body)
        response = await run_stage(self._before, state)
        if response is not None:
            return response
        try:
            self._request.write(exchange, state)
        except NodeError as error:
            raise NodeFailure(0, "service_request", "service_request", str(error)) from None
        if self._plan.reads_response_body:
            # What nodes read must not come compressed.
            exchange.request.headers.remove("Accept-Encoding")
        return None

    # After it has answered

    async def _respond(self, exchange: Exchange, state: State, response: Response) -> Response:
        """What goes to the client. A streamed response is passed on unread unless nodes want its body; one of events
        (`text/event-stream`) always is: it may never end, and as in Kong the response phase does not run for it."""
        if self._plan.has_response_phase:
            if self._plan.reads_response_body and _is_event_stream(response):
                return response
            given = await self._run_response_phase(exchange, state, response)
            if given is not None:
                await response.close()
                return given
        if self._response is not None:
            try:
                await self._response.write(response, state)
            except NodeError as error:
                raise NodeFailure(0, "response", "response", str(error)) from None
        if state.status is not None:
            response.status = state.status
            response.reason = ""
        return response

    async def _run_response_phase(self, exchange: Exchange, state: State, response: Response) -> Response | None:
        body: bytes | None = None
        if self._plan.reads_response_body:
            try:
                body = await response.read(MAX_BODY)
            except PayloadTooLarge:
                reason = f"the body is longer than {MAX_BODY} bytes"
                raise NodeFailure(0, "service_response", "service_response", reason) from None
        exchange.response = response
        state.sources["service_response"] = ResponseSource(response, body)
        return await run_stage(self._after, state)

    # Failures and traces

    def _failed(self, exchange: Exchange, failure: NodeFailure, trace: Trace | None) -> Response:
        """The answer to a request whose workflow failed: 500, in detail only where `debug` says so."""
        log.error("exchange %s: %s", exchange.id, failure)
        if not self._debug:
            raise InternalError()
        exchange.plugin_name = exchange.plugin_name or self._supplies.plugin_name
        exchange.error_kind = "internal"
        if trace is not None:
            return _json(500, trace.body("fail"))
        details = {
            "message": "node execution error",
            "request_id": exchange.id,
            "error": failure.reason,
            "node": {"index": failure.index, "name": failure.name, "type": failure.kind},
        }
        response = _json(500, orjson.dumps(details))
        response.source = "gateway_error"
        return response

    def _trace(self, exchange: Exchange) -> Trace | None:
        if not self._supplies.debug_trace_allowed or not wanted(exchange.request.headers.get(HEADER)):
            return None
        return Trace([(node.name, node.kind) for node in self._plan.nodes])


def _is_event_stream(response: Response) -> bool:
    kind = response.headers.get("content-type") or ""
    return kind.partition(";")[0].strip().lower() == "text/event-stream" and not isinstance(response.body, bytes)


def _json(status: int, body: bytes) -> Response:
    return Response(status, Headers([("Content-Type", "application/json; charset=utf-8")]), body)
