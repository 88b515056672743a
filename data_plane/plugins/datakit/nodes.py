"""The kinds of nodes at work. Each is built once per configuration and runs for many requests at a time.

`run` gives the node's output, or an awaitable of it for work that others need not wait for, or an `Exit`; it raises
NodeError when the node fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from data_plane.errors import PayloadTooLarge, UpstreamError
from data_plane.messages import Headers, Response
from data_plane.plugins.datakit import properties
from data_plane.plugins.datakit.programs import evaluate
from data_plane.plugins.datakit.simple import Simple, compiled
from data_plane.plugins.datakit.sources import Answer, Fixed, Output
from data_plane.plugins.datakit.state import Inputs, State
from data_plane.plugins.datakit.values import (
    NULL,
    Constant,
    NodeError,
    Value,
    apply_headers,
    kind_of,
    loads,
    object_of,
    read_body,
    write_body,
    write_form,
    write_headers,
    write_query,
)
from data_plane.upstream import CallHeaders
from gateway_schema.plugins.datakit import BranchNode, CallNode, ExitNode, JqNode, PropertyNode, StaticNode, is_http_url
from gateway_schema.plugins.datakit_graph import Feed, NodePlan

CALL_TIMEOUT = 60.0
"""Seconds, for calls that say nothing else."""
MAX_CALL_BODY = 16 * 1024 * 1024
"""Bytes of a call's response body."""


class Exit:
    """The end of a request: this is its answer."""

    __slots__ = ("response",)

    def __init__(self, response: Response) -> None:
        self.response = response


Outcome = Output | Exit


class Kind(Protocol):
    asynchronous: ClassVar[bool]
    """Whether it always waits for something: such nodes are started before others get their turn."""

    def run(self, state: State) -> Outcome | Awaitable[Output]: ...


class Call:
    """An HTTP request to anywhere, this node's own routes included."""

    asynchronous: ClassVar[bool] = True

    def __init__(self, node: CallNode, plan: NodePlan) -> None:
        self._node = node
        self._inputs = Inputs(plan.feeds)
        self._timeout = node.timeout / 1000 if node.timeout else CALL_TIMEOUT
        self._no_headers = _Given({}, CallHeaders())
        moves = any(feed.field in (None, "url", "query") for feed in plan.feeds)
        self._fixed_url = node.url if node.ssl_verify and not moves else None
        """Where nothing can come of looking at it again."""

    async def run(self, state: State) -> Output:
        inputs = self._inputs.read(state)
        url = self._fixed_url or self._url(inputs)
        body, headers = self._message(inputs)
        left = state.remaining()
        state.begin_call()
        try:
            response = await state.supplies.http.fetch(
                self._node.method,
                url,
                headers,
                body,
                parent=state.exchange,
                timeout=min(self._timeout, left),
                verify=self._node.ssl_verify,
                server_name=self._node.ssl_server_name,
            )
            try:
                if not 200 <= response.status <= 299:
                    raise NodeError(f"non-2XX response code: {response.status}")
                raw = response.body if type(response.body) is bytes else await _read(response)
                return Answer(read_body(raw, response.headers.get("content-type")), raw, response)
            finally:
                await response.close()
        except UpstreamError as error:
            raise NodeError(_reason(error)) from None
        finally:
            state.end_call()

    def _url(self, inputs: Mapping[str, Value]) -> str:
        given = inputs.get("url")
        url = (None if given is None else _string(given, "url")) or self._node.url
        if not url:
            raise NodeError("no URL: inputs.url is null, and none is configured")
        if given is not None and not is_http_url(url):
            raise NodeError("the URL is not an http or https URL with a host")
        if not self._node.ssl_verify and urlsplit(url).scheme == "https":
            raise NodeError("ssl_verify: false is not allowed for https URLs on this node")
        query = inputs.get("query", NULL)
        arguments = "" if query.is_null else write_query(query)
        if not arguments:
            return url
        base, mark, fragment = url.partition("#")
        return f"{base}{'&' if '?' in base else '?'}{arguments}{mark}{fragment}"

    def _message(self, inputs: Mapping[str, Value]) -> tuple[bytes, dict[str, str | list[str]]]:
        given = self._headers(inputs.get("headers", NULL))
        value = inputs.get("body", NULL)
        if value.is_null:
            return b"", given.headers
        if given.says_form:
            return (write_form(value) if kind_of(value) == "object" else write_body(value)[0]), given.headers
        body, is_ours = write_body(value)
        return body, given.as_json if is_ours else given.headers

    def _headers(self, value: Value) -> _Given:
        if value.is_null:
            return self._no_headers
        if not isinstance(value, Constant):
            return _Given(write_headers(value), {})
        known: _Given | None = value.notes.get(self)
        if known is None:
            known = value.notes[self] = _Given(write_headers(value), CallHeaders())
        return known


async def _read(response: Response) -> bytes:
    try:
        return await response.read(MAX_CALL_BODY)
    except PayloadTooLarge:
        raise NodeError(f"the response's body is longer than {MAX_CALL_BODY} bytes") from None


class _Given:
    """A call's headers, as a node's map gives them."""

    __slots__ = ("_typed", "headers", "says_form")

    def __init__(self, written: Mapping[str, list[str] | None], headers: dict[str, str | list[str]]) -> None:
        """`headers`: what they are put into; those that will be given again are worth `CallHeaders`."""
        self.headers = headers
        content_type = ""
        for name, values in written.items():
            # Host follows from the URL. A response in an encoding that we would have to undo is not asked for.
            if values and name.lower() not in {"host", "accept-encoding"}:
                self.headers[name] = values[0] if len(values) == 1 else values
                if name.lower() == "content-type":
                    content_type = values[0]
        self.says_form = content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded"
        self._typed = self.headers if content_type else None

    @property
    def as_json(self) -> dict[str, str | list[str]]:
        """The same with a content type for JSON that we wrote, unless they have one."""
        if self._typed is None:
            self._typed = type(self.headers)(self.headers)
            self._typed["Content-Type"] = "application/json"
        return self._typed


def _reason(error: UpstreamError) -> str:
    """Why a call failed, by the error's kind: its detail may name what only the log should."""
    return f"the call failed: {error.kind.replace('_', ' ')}"


def _string(value: Value, what: str) -> str | None:
    data = value.data
    if data is None or isinstance(data, str):
        return data
    if isinstance(data, int | float) and not isinstance(data, bool):
        return value.text
    raise NodeError(f"{what}: expected a string, got {kind_of(value)}")


class Jq:
    asynchronous: ClassVar[bool] = False

    def __init__(self, node: JqNode, plan: NodePlan) -> None:
        assert plan.program is not None
        self._program = plan.program
        self._feeds = plan.feeds
        self._simple = simple = compiled(plan.program.source)
        self._constant: Constant | None = None
        if simple is not None and simple.constant and all(map(_cannot_fail, plan.feeds)):
            self._constant = _constant(simple)

    def run(self, state: State) -> Value | Awaitable[Value]:
        if self._constant is not None:
            return self._constant
        inputs = state.gather(self._feeds)
        whole = inputs.get(None) if inputs else NULL
        if self._simple is not None:
            known = self._simple.of_members(inputs) if whole is None else self._simple.of(whole)
            if known is not None:
                return known
        if whole is None:
            whole = object_of((name, given) for name, given in inputs.items() if name is not None)
        return evaluate(self._program, whole, state.pool)


def _constant(program: Simple) -> Constant:
    result = program.of(NULL)
    assert result is not None
    return Constant(result.data, None, result.data)


def _cannot_fail(feed: Feed) -> bool:
    """Whether reading it always gives a value, and one that jq can read: a body may be neither."""
    return feed.source == "request" and feed.source_field not in (None, "body")


class Static:
    asynchronous: ClassVar[bool] = False

    def __init__(self, node: StaticNode, plan: NodePlan) -> None:
        self._values = Fixed((name, Constant(value)) for name, value in node.values.items())

    def run(self, state: State) -> Output:
        return self._values


class ExitNow:
    asynchronous: ClassVar[bool] = False

    def __init__(self, node: ExitNode, plan: NodePlan) -> None:
        self._status = node.status
        self._inputs = Inputs(plan.feeds)

    def run(self, state: State) -> Exit:
        inputs = self._inputs.read(state)
        response = Response(self._status, Headers())
        value = inputs.get("body", NULL)
        if not value.is_null:
            response.body, is_json = write_body(value)
            if is_json:
                response.headers.set("Content-Type", "application/json")
        headers = inputs.get("headers", NULL)
        if not headers.is_null:
            apply_headers(response.headers, {name: v for name, v in write_headers(headers).items() if v})
        return Exit(response)


class Property:
    asynchronous: ClassVar[bool] = False

    def __init__(self, node: PropertyNode, plan: NodePlan) -> None:
        self._node = node
        self._feeds = plan.feeds

    def run(self, state: State) -> Value:
        value = self._set(state) if self._feeds else self._get(state)
        return value

    def _set(self, state: State) -> Value:
        (value,) = state.gather(self._feeds).values()
        self._refuse_null(value)
        encoded = self._is_json and not value.is_null
        properties.set_(self._node.property, value.text if encoded else value.data, state)
        return value

    def _get(self, state: State) -> Value:
        data: Any = properties.get(self._node.property, state)
        if self._is_json and isinstance(data, str):
            try:
                data = loads(data)
            except ValueError:
                raise NodeError(f"property {self._node.property} is not JSON") from None
        value = Value(data)
        self._refuse_null(value)
        return value

    @property
    def _is_json(self) -> bool:
        return self._node.content_type == "application/json"

    def _refuse_null(self, value: Value) -> None:
        if self._node.non_nil and value.is_null:
            raise NodeError(f"property {self._node.property} is null")


class Branch:
    asynchronous: ClassVar[bool] = False

    def __init__(self, node: BranchNode, plan: NodePlan) -> None:
        self._then = node.then or []
        self._else = node.else_ or []
        self._feeds = plan.feeds

    def run(self, state: State) -> Value:
        value = next(iter(state.gather(self._feeds).values()), NULL)
        if value.data is not True and value.data is not False:
            raise NodeError(f"input: expected a boolean, got {kind_of(value)}")
        state.chosen.update(self._then if value.data else self._else)
        return NULL


KINDS: Mapping[str, Callable[[Any, NodePlan], Kind]] = {
    "branch": Branch,
    "call": Call,
    "exit": ExitNow,
    "jq": Jq,
    "property": Property,
    "static": Static,
}
