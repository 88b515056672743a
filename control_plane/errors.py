"""What can go wrong for a caller of the API, each with its status, and one shape for all of them.

ControlPlaneError                   answered as problem+json with `message`; one handler (`problem`) makes the body
├── BadRequest 400                  the request cannot be read
│   ├── InvalidParameters           fields of a control plane's own resources, with Konnect's rules
│   ├── InvalidOffset 7 · InvalidSize 9 · InvalidOptions 11
├── Unauthorized 401 · Forbidden 403 · NotFound 404 · MethodNotAllowed 405
├── Conflict 409                    a name that is taken
├── RequestTimeout 408 · BodyTooLarge 413 · UnsupportedMediaType, UnsupportedEncoding 415 · HeadTooLarge 431
├── TooManyRequests 429            too many wrong tokens; Retry-After says how long
├── EntityError                     an entity cannot be written; `code` as in Kong's Admin API
│   ├── SchemaFault 400 (2) · PrimaryKeyTaken 400 (3) · ForeignKeyMissing 400 (4) · StillReferenced 400 (4)
│   ├── UniqueTaken 409 (5) · ForeignKeyUnresolved 400 (13) · ListedByOthers 400 (19)
├── DocumentRefused 400             a declarative document; every fault with its path in the document
├── Unexpected 500                  a fault of ours; says nothing but the trace id
├── Unavailable 503                 the database cannot be reached
├── CommitInDoubt 504               it went away while it committed
├── TooManyConnections 503          and none of them is idle
├── StaleEntity 500                 what was stored under the rules of another version breaks one of this one's
└── KeyMissing 503                  a stored secret is under an encryption key that this process was not given
StartError                          the process cannot start; its text is for the operator
└── KeyMissing                      the same, when it is found at the start or by a command
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from pydantic import ValidationError

from gateway_schema.violations import Path, Violation, render_path, summarise


class StartError(Exception):
    """The control plane cannot start, for a reason that its operator can mend."""


class ControlPlaneError(Exception):
    status: ClassVar[int] = 500
    headers: Mapping[str, str] = {}

    def __init__(self, message: str, **members: Any) -> None:
        super().__init__(message)
        self.message = message
        self.members = members


class BadRequest(ControlPlaneError):
    status = 400


class InvalidParameters(BadRequest):
    """`parameters`: items of `field`, `rule`, `reason` (and `source`), as Konnect lists them."""

    def __init__(self, parameters: Sequence[Mapping[str, Any]]) -> None:
        listed = "; ".join(f"{item['field']}: {item['reason']}" for item in parameters)
        super().__init__(f"Request validation failed ({listed})", invalid_parameters=list(parameters))


class InvalidOffset(BadRequest):
    def __init__(self, offset: str) -> None:
        super().__init__(f"'{offset}' is not a valid offset: bad base64 encoding", code=7, name="invalid offset")


class InvalidSize(BadRequest):
    def __init__(self, reason: str) -> None:
        super().__init__(reason, code=9, name="invalid size")


class InvalidOptions(BadRequest):
    def __init__(self, option: str, reason: str) -> None:
        text = f"invalid option ({option}: {reason})"
        super().__init__(text, code=11, name="invalid options", options={option: reason})


class Unauthorized(ControlPlaneError):
    status = 401

    def __init__(self, message: str = "A valid token is required") -> None:
        super().__init__(message)


class Forbidden(ControlPlaneError):
    status = 403


class NotFound(ControlPlaneError):
    status = 404

    def __init__(self, message: str = "Not found") -> None:
        super().__init__(message)


class MethodNotAllowed(ControlPlaneError):
    """`headers`: `Allow`, which says what is allowed."""

    status = 405

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__("Method not allowed")
        self.headers = headers


class Conflict(ControlPlaneError):
    status = 409


class RequestTimeout(ControlPlaneError):
    """`part`: head or body."""

    status = 408

    def __init__(self, part: str) -> None:
        super().__init__(f"the request's {part} did not come in time")


class BodyTooLarge(ControlPlaneError):
    status = 413

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is larger than {limit} bytes")


class UnsupportedMediaType(ControlPlaneError):
    status = 415

    def __init__(self, given: str) -> None:
        super().__init__(f"expected application/json, not {given}")


class UnsupportedEncoding(ControlPlaneError):
    """`headers`: `Accept-Encoding`, which says what is taken."""

    status = 415
    headers: Mapping[str, str] = {"Accept-Encoding": "identity"}

    def __init__(self, given: str) -> None:
        super().__init__(f"Content-Encoding: expected none, not {given}: send the body as it is, uncompressed")


class HeadTooLarge(ControlPlaneError):
    status = 431

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request's head is larger than {limit} bytes")


class TooManyRequests(ControlPlaneError):
    """`wait`: seconds."""

    status = 429

    def __init__(self, wait: float) -> None:
        seconds = math.ceil(wait)
        super().__init__(f"too many requests with tokens that are not valid: try again in {seconds} s")
        self.headers = {"Retry-After": str(seconds)}


class EntityError(ControlPlaneError):
    status = 400
    code: ClassVar[int]
    name: ClassVar[str]

    def __init__(self, message: str, fields: Mapping[str, Any], **members: Any) -> None:
        super().__init__(message, code=self.code, name=self.name, fields=dict(fields), **members)


class SchemaFault(EntityError):
    code = 2
    name = "schema violation"

    def __init__(self, violations: Sequence[Violation]) -> None:
        details = [
            {"type": "ERROR_TYPE_FIELD" if v.path else "ERROR_TYPE_ENTITY", "field": v.field, "messages": [v.message]}
            for v in violations
        ]
        super().__init__(summarise(violations), fields_of(violations), details=details)
        self.violations = tuple(violations)


class InvalidPrimaryKey(EntityError):
    code = 1
    name = "invalid primary key"

    def __init__(self, key: str) -> None:
        super().__init__(f"invalid primary key: '{{id=\"{key}\"}}'", {"id": "expected a valid UUID"})


class PrimaryKeyTaken(EntityError):
    code = 3
    name = "primary key violation"

    def __init__(self, entity_id: str) -> None:
        super().__init__(f"primary key violation on key '{{id=\"{entity_id}\"}}'", {"id": entity_id})


class ForeignKeyMissing(EntityError):
    code = 4
    name = "foreign key violation"

    def __init__(self, field: str, entity_id: str, target: str) -> None:
        text = f"the foreign key '{{id=\"{entity_id}\"}}' does not reference an existing '{target}' entity."
        super().__init__(text, {field: {"id": entity_id}})


class StillReferenced(EntityError):
    code = 4
    name = "foreign key violation"

    def __init__(self, by: str, target: str) -> None:
        text = f"an existing '{by}' entity references this '{target}' entity"
        super().__init__(text, {"@referenced_by": by})


class UniqueTaken(EntityError):
    status = 409
    code = 5
    name = "unique constraint violation"

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(f"UNIQUE violation detected on '{_tuple_text(values)}'", values)


class ListedByOthers(EntityError):
    """Something stands in a list of others and cannot be deleted."""

    code = 19
    name = "referenced by others"

    def __init__(self, kind: str, entity_id: str, by: str, by_id: str) -> None:
        text = f"{kind.replace('-', ' ')} {entity_id} is still referenced by {by} (id = {by_id})"
        super().__init__(text, {"@referenced_by": by})


class ForeignKeyUnresolved(EntityError):
    code = 13
    name = "foreign keys unresolved"

    def __init__(self, field: str, key: str, value: str, target: str) -> None:
        text = f"the foreign key cannot be resolved with '{{{key}=\"{value}\"}}' for an existing '{target}' entity"
        super().__init__(f"foreign key unresolved ({field}.{key}: {text})", {field: {key: text}})


class DocumentRefused(ControlPlaneError):
    """`faults`: items of `path` (in the document), `entity`, `field`, `message`."""

    status = 400

    def __init__(self, faults: Sequence[Mapping[str, Any]]) -> None:
        self.faults = list(faults)
        count = len(self.faults)
        first = self.faults[0]
        said = f"{first['entity']}: {first['message']}" if first.get("entity") else str(first["message"])
        rest = f" (and {count - 1} more)" if count > 1 else ""
        super().__init__(f"the document was refused: {said}{rest}", errors=self.faults)


class Unexpected(ControlPlaneError):
    def __init__(self) -> None:
        super().__init__("An unexpected error occurred")


class Unavailable(ControlPlaneError):
    status = 503

    def __init__(self) -> None:
        super().__init__("the database cannot be reached; try again in a moment")


class CommitInDoubt(ControlPlaneError):
    """504, as a proxy answers that lost its server on the way: clients take neither for yes or no."""

    status = 504

    def __init__(self) -> None:
        super().__init__(
            "the connection to the database broke while the change was committed: it may have been made, or not; "
            "look before you send it again"
        )


class TooManyConnections(ControlPlaneError):
    status = 503

    def __init__(self) -> None:
        super().__init__("too many connections are open; try again in a moment")


class StaleEntity(ControlPlaneError):
    """Rules became stricter. Everything that shows or serves the entity waits for whoever mends it."""

    def __init__(self, kind: str, name: str, entity_id: str, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        said = "; ".join(map(str, violations))
        which = f"{kind} {name}".strip()
        super().__init__(
            f"{which} (id {entity_id}) was stored under the rules of another version and breaks one of this version's "
            f"({said}): change or delete it, by id or with a document; until then it cannot be shown, and nodes get no "
            "snapshot"
        )


class KeyMissing(ControlPlaneError, StartError):
    """Whoever finds it, a request or a start: only the operator can mend it."""

    status = 503

    def __init__(self) -> None:
        super().__init__(
            "a stored secret is encrypted under a key that this control plane does not have: put the missing key into "
            "its TANDEM_ENCRYPTION_KEY, behind the first, and restart it (where that is not set: into encryption.key "
            "in its state directory)"
        )


def problem(error: ControlPlaneError, trace: str | None = None) -> dict[str, Any]:
    """The body: Konnect's problem fields, and `message` with Kong's fields for the clients that read those."""
    return {
        "status": error.status,
        "title": HTTPStatus(error.status).phrase,
        "type": f"https://httpstatuses.com/{error.status}",
        "instance": trace or new_trace(),
        "detail": error.message,
        "message": error.message,
        **error.members,
    }


def without_values(error: BaseException) -> BaseException:
    """An error for the log. What pydantic refused, wherever it stands in the chain, is told by place and kind only:
    its own text may quote what somebody sent."""
    cause, context, suppressed = error.__cause__, error.__context__, error.__suppress_context__
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        told = ", ".join(f"{render_path(fault['loc'])} ({fault['type']})" for fault in faults)
        error = ValueError(f"{error.title} was refused: {told}").with_traceback(error.__traceback__)
    error.__cause__ = without_values(cause) if cause is not None else None
    error.__context__ = without_values(context) if context is not None else None
    error.__suppress_context__ = suppressed
    return error


def new_trace() -> str:
    """What connects an answer with a line in the log."""
    return f"tandem:trace:{secrets.randbits(63)}"


def fault(path: Path, entity: str, violation: Violation) -> dict[str, Any]:
    """One fault of a document: `path` leads to the place in the file, `field` is relative to the entity."""
    return {
        "path": [*path, *violation.path],
        "entity": entity,
        "field": violation.field,
        "message": f"{violation.field}: {violation.message}" if violation.path else violation.message,
    }


def fields_of(violations: Sequence[Violation]) -> dict[str, Any]:
    """Kong's nested `fields`: records as maps, list elements at their place, faults of a whole under `@entity`."""
    root: dict[str, Any] = {}
    for violation in violations:
        _put(root, violation.path, violation.message)
    return root


def _put(root: dict[str, Any], path: Path, message: str) -> None:
    node = root
    for part in path[:-1]:
        below = node.setdefault(str(part), {})
        if not isinstance(below, dict):
            below = node[str(part)] = {"@entity": [below]}
        node = below
    key = str(path[-1]) if path else "@entity"
    known = node.get(key)
    if key == "@entity":
        node[key] = [*(known or []), message]
    elif isinstance(known, dict):
        _put(known, (), message)
    else:
        node.setdefault(key, message)


def _tuple_text(values: Mapping[str, Any]) -> str:
    return "{" + ",".join(f"{key}={_lua(values[key])}" for key in sorted(values)) + "}"


def _lua(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return _tuple_text(value)
    return f'"{value}"'
