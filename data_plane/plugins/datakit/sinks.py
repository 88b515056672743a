"""The implicit nodes that can be written: the request that goes on, and the response that goes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from data_plane.exchange import Exchange
from data_plane.messages import BufferedBody, Head, Response
from data_plane.plugins.datakit.state import Inputs, State
from data_plane.plugins.datakit.values import (
    NULL,
    Constant,
    Value,
    apply_headers,
    write_body,
    write_headers,
    write_query,
)

Written = Mapping[str, list[str] | None]
"""Headers to set, or to remove."""


_NOTHING: Final[Written] = {}


class RequestSink:
    """The node `service_request`."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def write(self, exchange: Exchange, state: State) -> None:
        """Raises NodeError. Headers are written last, so that theirs is the last word on the content type."""
        if not self._inputs:
            return
        inputs = self._inputs.read(state)
        headers = inputs.get("headers", NULL)
        written = self._headers(headers)
        query = inputs.get("query")
        arguments = None if query is None or query.is_null else write_query(query)
        body = inputs.get("body")
        data, is_json = (None, False) if body is None or body.is_null else write_body(body)
        if arguments is not None:
            path = exchange.request.path
            exchange.request.target = f"{path}?{arguments}" if arguments else path
        if written is not _NOTHING and not isinstance(headers, Constant):
            _write_message(exchange, data, is_json, written)
        elif data is not None or written:
            self._write_familiar(exchange, data, is_json, written)

    def _write_familiar(self, exchange: Exchange, data: bytes | None, is_json: bool, written: Written) -> None:
        """Write what changes every head in the same way: what comes of a familiar one is noted with it."""
        request = exchange.request
        origin = request.headers.origin
        if origin is None:
            _write_message(exchange, data, is_json, written)
            return
        whose = (self, bool(written), data is None, is_json)
        derived: Head | None = origin.notes.get(whose)
        if derived is None:
            _write_message(exchange, data, is_json, written)
            headers = request.headers
            if len(headers.get_all("content-length")) > 1:
                return
            derived = Head(headers.raw, headers.index)
            origin.note(whose, derived)
        elif data is not None:
            exchange.chat = None
            request.body = BufferedBody(data)
        length = request.headers.get("content-length") or "" if data is None else str(len(data))
        request.headers = derived.headers(length)

    def _headers(self, value: Value) -> Written:
        if value.is_null:
            return _NOTHING
        if not isinstance(value, Constant):
            return write_headers(value)
        written: Written | None = value.notes.get(self)
        if written is None:
            written = value.notes[self] = write_headers(value)
        return written


def _write_message(exchange: Exchange, data: bytes | None, is_json: bool, written: Written) -> None:
    if data is not None:
        exchange.set_body(data, "application/json" if is_json else None)
    apply_headers(exchange.request.headers, written)


class ResponseSink:
    """The node `response`."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    async def write(self, response: Response, state: State) -> None:
        """Raises NodeError. A new body means that the old one is not read on."""
        inputs = self._inputs.read(state)
        body, headers = (inputs.get(name, NULL) for name in ("body", "headers"))
        written = _NOTHING if headers.is_null else write_headers(headers)
        if not body.is_null:
            data, is_json = write_body(body)
            await response.close()
            response.body = data
            for name in ("Transfer-Encoding", "Content-Encoding"):
                response.headers.remove(name)
            response.headers.set("Content-Length", str(len(data)))
            if is_json:
                response.headers.set("Content-Type", "application/json")
        apply_headers(response.headers, written)
