"""key-auth: name the consumer whose key the request carries, or refuse it (`reference/gateway.md` §4.1)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

import orjson

from data_plane.errors import ConfigError, GatewayError, InternalError, PayloadTooLarge, Unauthorized
from data_plane.exchange import Exchange, Proceed, Supplies
from data_plane.messages import Head, Request, Response
from gateway_schema.entities import Consumer, KeyAuthCredential
from gateway_schema.plugins.key_auth import KeyAuthConfig

MAX_BODY = 1024 * 1024
"""Bytes of a body that is searched for a key; a longer one holds none."""

_IDENTITY_HEADERS = (
    "X-Consumer-ID",
    "X-Consumer-Custom-ID",
    "X-Consumer-Username",
    "X-Credential-Identifier",
    "X-Anonymous-Consumer",
)
_CLAIMS = frozenset(
    spelling for name in _IDENTITY_HEADERS for spelling in (name.lower(), name.lower().replace("-", "_"))
)
"""Underscores reach some services as hyphens: that spelling must not smuggle a claim past us either."""
_NO_KEY = "No API key found in request"


class DuplicateKey(Exception):
    """A name that stands more than once in one place."""


class _Admission:
    """What became of a head that was let in, noted with it: the same head is let in again in the same way.

    It came with the request target `target`, which may have held the key, and went on with `new_target`.
    """

    __slots__ = ("head", "key", "new_target", "owner", "target")

    def __init__(
        self, target: str, key: str, owner: tuple[Consumer, KeyAuthCredential], head: Head, new_target: str
    ) -> None:
        self.target = target
        self.key = key
        self.owner = owner
        self.head = head
        """Without the key where it is hidden, without claims, with the identity."""
        self.new_target = new_target


class KeyAuth:
    """Finds the key, hides it, and sets or clears what tells the service who called."""

    def __init__(self, config: KeyAuthConfig, supplies: Supplies) -> None:
        if config.principals is not None and config.principals.enabled:
            raise ConfigError("Kong Identity is not available in this gateway", field="config.principals.enabled")
        self._config = config
        self._owners = supplies.consumers_by_key
        self._consumers = supplies.consumers
        self._hidden = {name: _CLAIMS | {name.lower()} for name in config.key_names}
        self._whose = object()
        """Whose notes on heads are ours. Not ourselves: a connection that is idle would keep all consumers alive."""
        names = {name.lower() for name in config.key_names}
        self._takes_notes = not config.key_in_body and "content-length" not in names
        self._challenge = f'Key realm="{_quoted(config.realm)}"' if config.realm else "Key"

    async def handle(self, exchange: Exchange, proceed: Proceed) -> Response:
        self._enter(exchange, await _read_fields(exchange) if self._config.key_in_body else None)
        return await proceed(exchange)

    def prelude(self, exchange: Exchange) -> bool:
        if self._config.key_in_body:
            return False
        self._enter(exchange, None)
        return True

    def _enter(self, exchange: Exchange, body: _Fields | None) -> None:
        config = self._config
        if exchange.request.method == "OPTIONS" and not config.run_on_preflight:
            return
        if config.anonymous and exchange.credential is not None:
            return  # another authentication plugin has named the consumer already
        request = exchange.request
        origin = request.headers.origin
        if origin is not None:
            known: _Admission | None = origin.notes.get(self._whose)
            if known is not None and known.target == request.target and self._owners.get(known.key) is known.owner:
                consumer, credential = known.owner
                if not (credential.ttl and _expired(credential, exchange)):  # the one thing that time alone decides
                    exchange.consumer = consumer
                    exchange.credential = credential
                    request.headers = known.head.headers(request.headers.get("content-length") or "")
                    request.target = known.new_target
                    return
        try:
            self._authenticate(exchange, origin, body)
        except Unauthorized:
            if not config.anonymous:
                raise
            self._admit_anonymous(exchange, config.anonymous)

    def _authenticate(self, exchange: Exchange, origin: Head | None, body: _Fields | None) -> None:
        request = exchange.request
        target = request.target
        try:
            key = self._take_key(exchange, body)
        except DuplicateKey:
            raise self._refusal("Duplicate API key found") from None
        if key is None:
            raise self._refusal(_NO_KEY)
        owner = self._owners.get(key)
        if owner is None or _expired(owner[1], exchange):
            raise self._refusal("Unauthorized")
        if not self._config.hide_credentials:
            request.headers.remove_all(_CLAIMS)
        _admit(exchange, *owner)
        if origin is not None and self._takes_notes:
            self._note(origin, request, target, key, owner)

    def _note(
        self, origin: Head, request: Request, target: str, key: str, owner: tuple[Consumer, KeyAuthCredential]
    ) -> None:
        """Remember with the head what became of it, and let those behind us note things on what it became."""
        headers = request.headers
        head = Head(headers.raw.copy())
        origin.note(self._whose, _Admission(target, key, owner, head, request.target))
        request.headers = head.headers(headers.get("content-length") or "")

    def _refusal(self, message: str) -> GatewayError:
        return Unauthorized(message, challenge=self._challenge)

    def _take_key(self, exchange: Exchange, body: _Fields | None) -> str | None:
        """The first key under the configured names: header, then query, then body, name by name."""
        config = self._config
        for name in config.key_names:
            key = None
            if config.key_in_header:
                headers = exchange.request.headers
                key = _only(headers.get_all(name)) if headers.has_repeats else headers.get(name) or None
            if key is None and config.key_in_query:
                key = _only(_query_values(exchange.request.query, name))
            if key is None and body is not None:
                key = body.find(name)
            if key is not None:
                if config.hide_credentials:
                    self._hide(exchange, name, body)
                return key
        return None

    def _hide(self, exchange: Exchange, name: str, body: _Fields | None) -> None:
        """Remove what was found under a name wherever it stands, and the client's claims in the same pass."""
        request = exchange.request
        request.headers.remove_all(self._hidden[name])
        path, mark, query = request.target.partition("?")
        if mark and query:
            kept = [part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != name]
            request.target = f"{path}?{'&'.join(kept)}" if kept else path
        if body is not None and body.remove(name):
            exchange.set_body(body.encode(), body.content_type)

    def _admit_anonymous(self, exchange: Exchange, who: str) -> None:
        consumer = self._consumers.get(who)
        if consumer is None:
            raise InternalError(f"anonymous consumer {who} is configured but doesn't exist")
        exchange.request.headers.remove_all(_CLAIMS)
        _admit(exchange, consumer, None)


def _admit(exchange: Exchange, consumer: Consumer, credential: KeyAuthCredential | None) -> None:
    """Set the headers of identity. A client must not be able to claim one: all of them have been removed before."""
    exchange.consumer = consumer
    exchange.credential = credential
    exchange.request.headers.extend(
        _identity(
            consumer.id,
            consumer.custom_id,
            consumer.username,
            None if credential is None else credential.id,
            credential is None,
        )
    )


@lru_cache(maxsize=4096)
def _identity(
    consumer: str | None, custom: str | None, username: str | None, credential: str | None, is_anonymous: bool
) -> tuple[tuple[str, str], ...]:
    """The headers that tell a service who calls."""
    values = (consumer, custom, username, credential, "true" if is_anonymous else None)
    named = zip(_IDENTITY_HEADERS, values, strict=True)
    return tuple((name, _latin(value)) for name, value in named if value is not None)


def _latin(value: str) -> str:
    """UTF-8 bytes as the latin-1 text that headers are here."""
    return value if value.isascii() else value.encode().decode("latin-1")


def _expired(credential: KeyAuthCredential, exchange: Exchange) -> bool:
    """In a snapshot, `created_at` is when the `ttl` was last written. The control plane deletes what is over; a node
    that does not hear of it must refuse the key all the same.

    What counts is when the exchange began: one that was let in (`express`) and is looked at again later stays in."""
    return bool(credential.ttl) and exchange.started_at >= (credential.created_at or 0) + (credential.ttl or 0)


def _only(values: list[str]) -> str | None:
    if len(values) > 1:
        raise DuplicateKey
    return values[0] if values and values[0] else None


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _query_values(query: str, name: str) -> list[str]:
    if name not in query and "%" not in query:
        return []
    return [value for key, value in parse_qsl(query, True, encoding="latin-1") if key == name]


class _Fields:
    """A body's top-level fields, JSON or form."""

    def __init__(self, content_type: str, values: dict[str, Any] | list[tuple[str, str]]) -> None:
        self.content_type = content_type
        self._values = values

    def find(self, name: str) -> str | None:
        if isinstance(self._values, dict):
            value = self._values.get(name)
            if isinstance(value, list):
                raise DuplicateKey
            return _latin(value) if isinstance(value, str) and value else None
        return _only([value for key, value in self._values if key == name])

    def remove(self, name: str) -> bool:
        if isinstance(self._values, dict):
            return self._values.pop(name, self) is not self
        kept = [pair for pair in self._values if pair[0] != name]
        changed = len(kept) < len(self._values)
        self._values = kept
        return changed

    def encode(self) -> bytes:
        if isinstance(self._values, dict):
            return orjson.dumps(self._values)
        return urlencode(self._values, encoding="latin-1").encode()


async def _read_fields(exchange: Exchange) -> _Fields | None:
    """The fields of a body; None for one that is of another type, or not what its type says."""
    content_type = exchange.request.headers.get("content-type") or ""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in ("application/json", "application/x-www-form-urlencoded"):
        return None
    try:
        data = await exchange.body_bytes(MAX_BODY)
    except PayloadTooLarge:  # nobody's key is that far in; how long a body may be is not for this plugin to say
        return None
    if kind != "application/json":
        return _Fields(content_type, parse_qsl(data.decode("latin-1"), True, encoding="latin-1"))
    try:
        values = orjson.loads(data)
    except orjson.JSONDecodeError:  # like a body of another type: it holds no key
        return None
    return _Fields(content_type, values) if isinstance(values, dict) else None
