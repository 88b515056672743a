"""The simulator's HTTP face: the providers' routes, and its own for the ledger and for faults."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cli.simulator import bedrock, openai
from cli.simulator.faults import Fault, Faults
from cli.simulator.ledger import Call, Ledger
from cli.simulator.signature import Secret, SignatureRefused, verify


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """What the simulated providers accept. None: any credential will do."""

    openai_authorization: str | None = None
    """The whole Authorization header, scheme included."""
    aws: Secret | None = None


class BrokenOff(Exception):
    """Raised inside a response's body to drop the connection, on purpose."""


class Simulator:
    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self.ledger = Ledger()
        self.faults = Faults()
        self._numbers = itertools.count(1)

    async def openai_chat(self, request: Request) -> Response:
        call, body, fault = await self._begin(request, openai.PROVIDER)
        try:
            openai.check_token(self._settings.openai_authorization, request.headers.get("authorization"))
            if fault.status:
                raise openai.OpenAiError(fault.status, "A simulated failure.", "server_error")
            completion = openai.Completion(_json(body), next(self._numbers))
        except openai.OpenAiError as error:
            return self._refuse(call, error.status, JSONResponse(error.body, error.status))
        call.model, call.stream = completion.model, completion.stream
        if not completion.stream:
            return self._whole(call, fault, completion.answer, completion.whole())
        failure = openai.error_event("A simulated failure in the middle of the stream.")
        stream = self._stream(call, fault, completion, failure)
        return StreamingResponse(stream, media_type="text/event-stream")

    async def bedrock_converse(self, request: Request) -> Response:
        call, body, fault = await self._begin(request, bedrock.PROVIDER)
        call.model = unquote(request.scope["raw_path"].decode().split("/")[2])
        call.stream = request.url.path.endswith("/converse-stream")
        try:
            self._check_signature(request, body)
            if fault.status:
                raise bedrock.BedrockError(fault.status, "ThrottlingException", "A simulated failure.")
            conversation = bedrock.Conversation(_json(body), call.model)
        except bedrock.BedrockError as error:
            headers = {"x-amzn-errortype": error.error_type}
            return self._refuse(call, error.status, JSONResponse({"message": str(error)}, error.status, headers))
        if not call.stream:
            return self._whole(call, fault, conversation.answer, conversation.whole())
        failure = bedrock.exception("modelStreamErrorException", "A simulated failure in the middle of the stream.")
        stream = self._stream(call, fault, conversation, failure)
        return StreamingResponse(stream, media_type=bedrock.EVENT_STREAM)

    def _check_signature(self, request: Request, body: bytes) -> None:
        if self._settings.aws is None:
            return
        scope = request.scope
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path, query = scope["raw_path"].decode().partition("?")[0], scope["query_string"].decode()
        try:
            verify(self._settings.aws, request.method, path, query, headers, body, datetime.now(UTC))
        except SignatureRefused as refusal:
            raise bedrock.BedrockError(403, refusal.error_type, str(refusal)) from None

    async def _begin(self, request: Request, provider: str) -> tuple[Call, bytes, Fault]:
        body = await request.body()
        fault = self.faults.take(provider)
        if fault.delay:
            await asyncio.sleep(fault.delay)
        call = Call(provider, headers=dict(request.headers), body=body.decode("utf-8", "replace"))
        return call, body, fault

    def _refuse(self, call: Call, status: int, response: Response) -> Response:
        call.status, call.outcome = status, "refused"
        self.ledger.record(call)
        return response

    def _whole(self, call: Call, fault: Fault, answer: Any, body: bytes) -> Response:
        call.status = 200
        if fault.cut_after == 0:
            call.outcome = "cut"
            self.ledger.record(call)
            return StreamingResponse(_break_off(), media_type="application/json")
        call.outcome = "answered"
        call.prompt_tokens, call.completion_tokens = answer.prompt_tokens, answer.completion_tokens
        self.ledger.record(call)
        return Response(body, media_type="application/json")

    async def _stream(self, call: Call, fault: Fault, source: Any, failure: bytes) -> AsyncIterator[bytes]:
        """The events of an answer. What was said before a break is what the ledger counts."""
        call.status, call.outcome, call.prompt_tokens = 200, "cut", source.answer.prompt_tokens
        self.ledger.open_calls += 1
        events: Iterator[tuple[bytes, bool]] = source.events()
        try:
            for data, counts in events:
                if counts:
                    if call.completion_tokens == fault.cut_after:
                        raise BrokenOff
                    if call.completion_tokens == fault.error_after:
                        yield failure
                        return
                    if fault.chunk_delay:
                        await asyncio.sleep(fault.chunk_delay)
                yield data
                call.completion_tokens += counts
            call.completion_tokens = source.answer.completion_tokens
            call.outcome = "answered"
        finally:
            self.ledger.open_calls -= 1
            self.ledger.record(call)

    async def show_ledger(self, request: Request) -> Response:
        details = request.query_params.get("details") is not None
        return Response(orjson.dumps(self.ledger.summary(details=details)), media_type="application/json")

    async def clear_ledger(self, request: Request) -> Response:
        self.ledger.clear()
        return Response(status_code=204)

    async def add_fault(self, request: Request) -> Response:
        try:
            self.faults.add(Fault.read(_json(await request.body())))
        except ValueError as error:
            return JSONResponse({"message": str(error)}, 400)
        return Response(status_code=204)

    async def clear_faults(self, request: Request) -> Response:
        self.faults.clear()
        return Response(status_code=204)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})


async def _break_off() -> AsyncIterator[bytes]:
    raise BrokenOff
    yield b""


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def create_app(settings: SimulatorSettings) -> Starlette:
    simulator = Simulator(settings)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", simulator.openai_chat, methods=["POST"]),
            Route("/model/{model:path}/converse", simulator.bedrock_converse, methods=["POST"]),
            Route("/model/{model:path}/converse-stream", simulator.bedrock_converse, methods=["POST"]),
            Route("/ledger", simulator.show_ledger, methods=["GET"]),
            Route("/ledger", simulator.clear_ledger, methods=["DELETE"]),
            Route("/faults", simulator.add_fault, methods=["POST"]),
            Route("/faults", simulator.clear_faults, methods=["DELETE"]),
            Route("/health", simulator.health, methods=["GET"]),
        ]
    )
