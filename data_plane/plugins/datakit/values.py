"""The values that flow between nodes, and how they come from and become HTTP messages.

A value is JSON, as text or as Python data; whichever it was made from, the other is made when somebody asks. A request
body thus goes through jq programs into a call without being decoded here, and keeps `[]` and `{}`, `1` and `1.0`, order
of keys and integers of any length. Bytes that are no text stay bytes until a jq program wants to see them.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_plus

import orjson

from data_plane.messages import Headers
from gateway_schema.plugins.datakit_jq import INLINE_INPUT


class NodeError(Exception):
    """A node that failed, and why. The message may reach the client (`debug: true`) and the log: no secrets."""


UNREAD: Final = object()


class Value:
    """One JSON value; immutable as far as its users are concerned."""

    __slots__ = ("_data", "_text", "parsed", "plain")

    def __init__(self, data: Any = None, text: str | None = None, parsed: Any = UNREAD) -> None:
        self._data = data
        self._text = text
        self.parsed = parsed
        """What orjson makes of the text, where it is known: unlike the data, it has floats for the longest integers."""
        self.plain: Any = None
        """What `simple` found out about the value."""

    @classmethod
    def of_text(cls, text: str, parsed: Any = UNREAD) -> Value:
        """A value known as valid JSON text."""
        return cls(UNREAD, text, parsed)

    @property
    def data(self) -> Any:
        """As Python data: dict, list, str, bytes (a string that is no text), int, float, bool or None."""
        if self._data is UNREAD:
            assert self._text is not None
            self._data = loads(self._text)
        return self._data

    @property
    def text(self) -> str:
        """As JSON text."""
        if self._text is None:
            self._text = dumps(self._data)
        return self._text

    @property
    def encoded(self) -> bytes:
        """The text, in UTF-8."""
        if self._text is not None:
            return self._text.encode()
        try:
            return orjson.dumps(self._data, default=_shown)
        except TypeError:  # see `dumps`
            return self.text.encode()

    @property
    def is_written(self) -> bool:
        """Whether the text is there."""
        return self._text is not None

    @property
    def is_null(self) -> bool:
        return self._text == "null" if self._data is UNREAD else self._data is None

    def __repr__(self) -> str:
        """The kind only: values may hold secrets."""
        return f"Value({kind_of(self)})"


class Constant(Value):
    """A value that the configuration tells, the same for every request.

    Whoever works something out from it alone notes it here, under itself, and finds it the next time.
    """

    __slots__ = ("notes",)

    def __init__(self, data: Any = None, text: str | None = None, parsed: Any = UNREAD) -> None:
        super().__init__(data, text, parsed)
        self.notes: dict[object, Any] = {}


NULL: Final = Value(None)
_LONG_NUMBER: Final = re.compile(r"[0-9][0-9]{16}")  # not [0-9]{17}: it is found faster


def loads(text: str | bytes) -> Any:
    """JSON to data, with integers of any length. Raises ValueError."""
    if _LONG_NUMBER.search(text if isinstance(text, str) else text.decode("utf-8", "replace")):
        orjson.loads(text)  # the standard library accepts more than JSON (NaN); this does not
        return json.loads(text)
    return orjson.loads(text)


def dumps(data: Any) -> str:
    """Data to JSON text; bytes are shown as text, with replacement characters where they are none."""
    try:
        return orjson.dumps(data, default=_shown).decode()
    except TypeError:  # an integer beyond 64 bits, which orjson refuses
        return json.dumps(data, default=_shown, ensure_ascii=False, separators=(",", ":"))


def _shown(data: Any) -> Any:
    if isinstance(data, bytes):
        return data.decode("utf-8", "replace")
    raise TypeError(type(data).__name__)


def kind_of(value: Value) -> str:
    """jq's name of a value's type."""
    data = value.data
    if data is None:
        return "null"
    if isinstance(data, bool):
        return "boolean"
    if isinstance(data, str | bytes):
        return "string"
    if isinstance(data, dict):
        return "object"
    return "array" if isinstance(data, list) else "number"


def object_of(members: Iterable[tuple[str, Value]]) -> Value:
    """The JSON object with these members, composed of their texts."""
    return Value.of_text("{" + ",".join(f"{dumps(name)}:{value.text}" for name, value in members) + "}")


# Bodies

_JSON_TYPE: Final = re.compile(r"application/(?:[\w.+-]+\+)?json\s*(?:;|$)", re.IGNORECASE)


def is_json(content_type: str | None) -> bool:
    if content_type is None or content_type == "application/json":
        return content_type is not None
    return _JSON_TYPE.match(content_type.strip()) is not None


def read_body(raw: bytes, content_type: str | None) -> Value:
    """Nothing is null, a JSON type is decoded, everything else a string. Raises NodeError for JSON that is none."""
    if not raw:
        return NULL
    if not is_json(content_type):
        return read_string(raw)
    try:
        text = (raw[3:] if raw.startswith(BOM_UTF8) else raw).decode()
        data = orjson.loads(text)
    except ValueError:
        raise NodeError("the body is not valid JSON, though its content type says so") from None
    return Value.of_text(text, data if len(text) <= INLINE_INPUT else UNREAD)


def read_string(raw: bytes) -> Value:
    try:
        return Value(raw.decode())
    except UnicodeDecodeError:
        return Value(raw)


def write_body(value: Value) -> tuple[bytes, bool]:
    """A body's bytes, and whether they are JSON that we wrote: strings go as they are."""
    data = value.data
    if isinstance(data, str):
        return data.encode("utf-8", "surrogatepass"), False
    return (data, False) if isinstance(data, bytes) else (value.encoded, True)


def write_form(value: Value) -> bytes:
    """An object as application/x-www-form-urlencoded."""
    return encode_query(_map(value, "body")).encode()


# Headers

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
FRAMING: Final = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that belong to one connection or frame its body: never taken from a node's map."""


def read_headers(headers: Headers) -> Value:
    """Names as they came; a repeated field is an array."""
    found: dict[str, Any] = {}
    spellings: dict[str, str] = {}
    for name, wire in headers.raw:
        value = _from_wire(wire)
        first = spellings.setdefault(name.lower(), name)
        known = found.get(first)
        if known is None:
            found[first] = value
        else:
            found[first] = [*known, value] if isinstance(known, list) else [known, value]
    return Value(found)


def write_headers(value: Value) -> dict[str, list[str] | None]:
    """A map of headers to set (None: to remove). Raises NodeError for what cannot be one."""
    written: dict[str, list[str] | None] = {}
    for name, member in _map(value, "headers").items():
        if not _NAME.fullmatch(name):
            raise NodeError(f"headers: {name[:64]!r} is not a header name")
        if name.lower() in FRAMING:
            continue
        if member is None:
            written[name] = None
        else:
            members = member if isinstance(member, list) else [member]
            written[name] = [_to_wire(name, one) for one in members if one is not None]
    return written


def apply_headers(headers: Headers, written: Mapping[str, list[str] | None]) -> None:
    """Merge: what is named is replaced or removed, everything else stays."""
    for name, values in written.items():
        if not values:
            headers.remove(name)
            continue
        headers.set(name, values[0])
        for value in values[1:]:
            headers.add(name, value)


def _from_wire(value: str) -> str:
    """Header text is latin-1 here, UTF-8 for those who wrote it, mostly."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _to_wire(name: str, value: Any) -> str:
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str | int | float):
        text = str(value)
    else:
        raise NodeError(f"headers: the value of {name} is neither a string nor an array of strings")
    if _UNSAFE.search(text):
        raise NodeError(f"headers: the value of {name} has control characters")
    return text if text.isascii() else text.encode("utf-8", "replace").decode("latin-1")


# Queries


def read_query(query: str) -> Value:
    """Arguments by name: a repeated one is an array, one without `=` is true."""
    found: dict[str, Any] = {}
    for part in query.split("&"):
        if not part:
            continue
        name, mark, raw = part.partition("=")
        name, value = unquote_plus(name), unquote_plus(raw) if mark else True
        if name in found:
            known = found[name]
            found[name] = [*known, value] if isinstance(known, list) else [known, value]
        else:
            found[name] = value
    return Value(found)


def write_query(value: Value) -> str:
    return encode_query(_map(value, "query"))


def encode_query(arguments: Mapping[str, Any]) -> str:
    """Arrays repeat the name, true stands without a value, false and null are left out."""
    parts: list[str] = []
    for name, member in arguments.items():
        for one in member if isinstance(member, list) else [member]:
            if one is None or one is False:
                continue
            if isinstance(one, dict | list):
                raise NodeError(f"the value of argument {name[:64]!r} is neither a string nor an array of strings")
            key = quote(name, safe="")
            parts.append(key if one is True else f"{key}={quote(str(one), safe='')}")
    return "&".join(parts)


def _map(value: Value, what: str) -> Mapping[str, Any]:
    data = value.data
    if not isinstance(data, dict):
        raise NodeError(f"{what}: expected a map, got {kind_of(value)}")
    return data
