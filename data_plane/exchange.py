"""One request's life in the data plane, as typed values rather than a bag."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from data_plane.messages import Body, BufferedBody, Request, Response

if TYPE_CHECKING:
    from data_plane.ai.decision import Decision
    from data_plane.chain import Bound, Plan
    from data_plane.http1.client_connection import ClientConnection
    from data_plane.http1.limits import Timeouts
    from data_plane.router import Match
    from gateway_schema.entities import Consumer, KeyAuthCredential, Route, Service

MAX_DEPTH = 5
"""How many calls to ourselves may stand inside one another."""


class Upstream(Protocol):
    """Whatever can answer a request: a service, a group of models, a test double."""

    async def send(self, exchange: Exchange) -> Response: ...


Departure = tuple["ClientConnection", str, bytes, "Timeouts"]
"""A request about to be sent: on which connection, its method, its head and body in wire form, and how long to wait."""


class QuickUpstream(Upstream, Protocol):
    """An upstream that can be asked without waiting, where nothing unusual happens (`express`)."""

    def depart(self, exchange: Exchange) -> Departure | None:
        """What to send. None, or an error, when `send` must see to it; neither may have consequences."""

    def land(self, exchange: Exchange, response: Response) -> Response | None:
        """The answer that a whole response makes. None, or an error, when `send` must see to it; as above."""

    def forsake(self, exchange: Exchange) -> None:
        """The client left before the response came."""


@dataclass(slots=True)
class LlmCall:
    """One attempt at a model, as the analytics event tells it (`proto/analytics.proto`, LlmCall). Times in seconds."""

    plugin_id: str = ""
    provider: str = ""
    request_model: str = ""
    response_model: str = ""
    model_alias: str = ""
    stream: bool = False
    status: int = 0
    error_kind: str = ""
    role: str = "selected"
    duration: float = 0.0
    ttft: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    token_source: str = "none"  # noqa: S105 (says who counted)
    cost_nano_usd: int | None = None
    finish_reason: str = ""


@dataclass(slots=True)
class Marks:
    """Moments of an exchange on the monotonic clock, in seconds; None where it never came to that.

    Names follow `reference/analytics.md` §2.2: `received` t0, `first_attempt` t2, `upstream_started` t2' (last
    attempt), `first_byte` t4 (or when the last attempt failed), `upstream_done` t5. The chain's end sets them; an
    upstream that makes several attempts moves `upstream_started` itself. `callouts` adds up the time spent waiting for
    plugins' own calls. The proxy latency is `first_attempt - received`.
    """

    received: float
    first_attempt: float | None = None
    upstream_started: float | None = None
    first_byte: float | None = None
    upstream_done: float | None = None
    callouts: float = 0.0


_ids: Final = random.Random(int.from_bytes(os.urandom(32)))  # noqa: S311 (an id is a name, not a secret)
"""Makes ids of exchanges: the system's own source would cost a system call for each. Workers are started, never forked,
so no two draw the same."""


def new_id() -> str:
    """32 hex digits."""
    return f"{_ids.getrandbits(128):032x}"


class Exchange:
    """A request, what has become known about it, and at the end its response.

    `request` is what the client sent, as plugins have changed it so far; the upstream's own request is made from it
    by `upstream`. `route`, `service` and `match` are set by the router, `consumer` and `credential` by authentication,
    `upstream` by the route's service or by the plugin that names another.
    """

    # What an exchange begins without stands here once, not in `__init__` for every request.
    scheme: str
    """As the client used it, where a trusted proxy says so."""
    client_ip: str
    """The client's address, where a trusted proxy tells it."""
    received_body: Body
    """The body as it arrives, for the count of its bytes: plugins may put another in its place."""
    depth: int = 0
    parent_id: str = ""
    deadline: float | None = None
    trusted: bool = False
    """Whether the peer is a proxy whose X-Forwarded-* headers are believed."""
    route: Route | None = None
    service: Service | None = None
    match: Match | None = None
    consumer: Consumer | None = None
    credential: KeyAuthCredential | None = None
    upstream: Upstream | None = None
    upstream_status: int = 0
    response: Response | None = None
    error_kind: str = ""
    plugin_name: str = ""
    """Of the plugin that answered or failed."""
    plan: Plan | None = None
    """The route's plugins in their order; set with the route."""
    decision: Decision | None = None
    """How a model was chosen, when one was asked."""
    chat: Chat | None = None
    """The body parsed as JSON, when an AI plugin needed it; `body_bytes` and `set_body` keep the two in step."""

    def __init__(self, request: Request, runtime: Any, *, parent: Exchange | None = None) -> None:
        self.id = new_id()
        self.request = request
        self.runtime = runtime
        self.started_at = time.time()
        self.marks = Marks(time.monotonic())
        self.scheme = request.scheme
        self.client_ip = request.peer[0]
        self.received_body = request.body
        self.plugins: list[Bound] = []
        """The configurations chosen so far, for the log phase."""
        self.llm_calls: list[LlmCall] = []
        if parent is not None:
            self.depth = parent.depth + 1
            self.parent_id = parent.id
            self.deadline = parent.deadline

    @cached_property
    def shared(self) -> dict[str, Any]:
        """Kong's `kong.ctx.shared`."""
        return {}

    async def body_bytes(self, limit: int = 0) -> bytes:
        """The request's body as it stands now, edits of the chat included. Raises PayloadTooLarge."""
        if self.chat is not None and self.chat.dirty:
            self.request.body = BufferedBody(orjson.dumps(self.chat.body))
            self.chat.dirty = False
        return await self.request.body.read(limit)

    def set_body(self, data: bytes, content_type: str | None = None) -> None:
        """Replace the request's body; what was parsed from the old one is forgotten."""
        self.chat = None
        self.request.body = BufferedBody(data)
        headers = self.request.headers
        headers.remove("Transfer-Encoding")
        headers.remove("Content-Encoding")
        headers.set("Content-Length", str(len(data)))
        if content_type is not None:
            headers.set("Content-Type", content_type)


@dataclass(slots=True)
class Chat:
    """The request's JSON body, parsed once and shared by all AI plugins. `dirty` when it differs from the bytes."""

    body: dict[str, Any]
    dirty: bool = False


Proceed = Callable[[Exchange], Awaitable[Response]]


class Handler(Protocol):
    """A plugin at work. Built once per configuration; `handle` runs concurrently for many exchanges.

    Code before `await proceed(exchange)` sees the request, after it the response; not calling it answers at once.
    One that does nothing after the response, and seldom has to wait before it, may have `prelude(exchange)`: it does,
    without waiting, what `handle` does before it proceeds, and raises what that would raise; or it returns False when
    it would have to wait, having changed nothing, and `handle` is called. It may be called again for the same request
    (`express`), with a new exchange: what it does must have no consequences outside of its exchange, such as a count.

    A handler may also have `log(exchange, record)`, called for every handler of the route after the last byte, and
    `async close()`, called when its runtime is retired. One whose `log` does nothing but add to the record says
    `only_adds_to_log = True`: where nobody else would read the record, none is made.
    """

    async def handle(self, exchange: Exchange, proceed: Proceed) -> Response: ...


class HttpSender(Protocol):
    """Sends a request to an absolute URL: over the network, or in process when the URL names this very node."""

    async def fetch(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str | list[str]],
        body: bytes,
        *,
        parent: Exchange,
        timeout: float,
        verify: bool = True,
        server_name: str | None = None,
    ) -> Response:
        """Raises UpstreamError. `timeout` in seconds for the whole call. The response must be closed."""


@dataclass(slots=True)
class Supplies:
    """What handlers may use, given to each at its making."""

    plugin_id: str
    plugin_name: str
    instance_name: str
    consumers_by_key: Mapping[str, tuple[Consumer, KeyAuthCredential]]
    consumers: Mapping[str, Consumer]
    """By id and by username."""
    http: HttpSender
    client: Any
    """The pooled HTTP/1.1 client (`data_plane.http1.client.Client`)."""
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    node_id: str = ""
    version: str = ""
    debug_trace_allowed: bool = False
    """Operator's switch: whether Datakit may answer with its execution trace."""
