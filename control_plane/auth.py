"""Who calls the API: bearer tokens, kept as digests, with scopes.

`read` sees everything but secrets. `write` also changes what a control plane holds. `reveal` also sees secrets in
clear: decK needs it, as it compares them with its files, so personal tokens have it unless told otherwise. `admin` also
makes and revokes tokens and control planes and reads the audit log; it implies neither `write` nor `reveal`.

A token may be limited to one control plane. `require` refuses it on every path that names another one or none; paths
that narrow their answers to the caller's control plane say so (`narrows`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastapi import Request
from sqlalchemy import bindparam, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from control_plane import audit
from control_plane.errors import BadRequest, Forbidden, TooManyRequests, Unauthorized
from control_plane.models import Token
from control_plane.settings import Settings
from gateway_schema.base import canonical_id

if TYPE_CHECKING:
    from control_plane.plane import ControlPlane

_log = logging.getLogger(__name__)

Scope = Literal["read", "write", "reveal", "admin"]
Kind = Literal["personal", "system-account"]

SCOPES: tuple[Scope, ...] = ("read", "write", "reveal", "admin")
PREFIXES: dict[Kind, str] = {"personal": "kpat_", "system-account": "spat_"}
DEFAULT_SCOPES: dict[Kind, tuple[Scope, ...]] = {
    "personal": ("read", "write", "reveal"),
    "system-account": ("read", "write"),
}
"""What a token may do when nobody says otherwise."""
BOOTSTRAP = "TANDEM_ADMIN_TOKEN"
"""Name of the token that the variable of this name holds."""
_WEAK_LENGTH = 20
_MOST_TOKENS = 4
"""In one request: each is looked up, for somebody who may be nobody."""
_LONGEST_ADDRESS = 64
"""Characters: a proxy's header may say anything, and addresses are remembered."""
_BY_DIGEST = select(Token.__table__).where(Token.digest == bindparam("digest"))
"""Every request asks this."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a valid token stands for."""

    id: str
    name: str
    scopes: frozenset[str]
    created_at: int
    control_plane_id: str | None = None
    """The only control plane that it may touch; None: all of them."""
    expires_at: int | None = None
    address: str = ""
    """Where the request came from."""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes

    def sees(self, control_plane_id: str) -> bool:
        return self.control_plane_id in (None, control_plane_id)


def require(scope: Scope, *, narrows: bool = False) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency: the caller, who has this scope here. `narrows`: the handler looks at the caller's limit itself.

    Raises Unauthorized, TooManyRequests or Forbidden.
    """

    async def authenticate(request: Request) -> Principal:
        principal = request.state.caller = await _principal(request)
        insist(request, principal, scope, narrows=narrows)
        return principal

    return authenticate


def insist(request: Request, principal: Principal, scope: Scope, *, narrows: bool = False) -> None:
    """For handlers that know only from the body what they need. Raises Forbidden."""
    if not principal.may(scope):
        held = ", ".join(sorted(principal.scopes)) or "none"
        raise Forbidden(f"this token lacks the scope '{scope}' (it has: {held})", missing_scope=scope)
    limit = principal.control_plane_id
    if limit is not None and not narrows and request.path_params.get("control_plane_id", "").lower() != limit:
        raise beyond(limit)


def beyond(limit: str) -> Forbidden:
    """What a token that is limited to one control plane hears elsewhere."""
    return Forbidden(f"this token is limited to control plane {limit}", limited_to=limit)


async def _principal(request: Request) -> Principal:
    """Clients with a user name in their address send a Basic header first: every Authorization value is looked at."""
    tokens = [token for value in request.headers.getlist("authorization") if (token := _bearer(value))]
    tokens += request.headers.getlist("kong-admin-token")  # what clients of Kong's Admin API send
    tokens = list(dict.fromkeys(tokens))
    if not tokens:
        raise Unauthorized
    if len(tokens) > _MOST_TOKENS:
        raise BadRequest(f"a request carries at most {_MOST_TOKENS} tokens, not {len(tokens)}")
    address = address_of(request)
    expired: Token | None = None
    async with _plane(request).database.single() as connection:
        for token in tokens:
            found = await find_token(connection, token)
            if found is not None and not has_expired(found):
                return _principal_of(found, address)
            expired = expired or found
    raise await _refusal(request, address, tokens, expired)


async def _refusal(
    request: Request, address: str, tokens: Sequence[str], expired: Token | None
) -> Unauthorized | TooManyRequests:
    plane = _plane(request)
    wait = max(plane.throttle.refused(address, digest_of(token)) for token in tokens)
    outcome = "throttled" if wait else "refused"
    if plane.throttle.tells("login", f"{outcome} {address}"):
        details = {"reason": "expired" if expired else "unknown token", "path": path_of(request.scope)}
        about = ("token", expired.id, expired.name) if expired else ("token", "", "")
        stranger = Principal("", "", frozenset(), 0, address=address)
        async with plane.database.writing() as session:
            await audit.record(session, stranger, "login", *about, details=details, outcome=outcome)
    if wait:
        return TooManyRequests(wait)
    return Unauthorized(f"this token expired at {_moment(expired.expires_at)}") if expired else Unauthorized()


async def tell_denied(request: Request, error: Exception) -> None:
    """For whoever answers errors: a caller that tried what it may not has a line in the audit log, wherever that was
    found out. By then the transaction in which it was is over."""
    caller: Principal | None = getattr(request.state, "caller", None)
    if caller is None or not isinstance(error, Forbidden):
        return
    plane = _plane(request)
    if plane.throttle.tells("denied", f"{caller.id} {request.method}"):
        details = {"reason": error.message, "method": request.method, "path": path_of(request.scope)}
        async with plane.database.writing() as session:
            await audit.record(session, caller, "access", details=details, outcome="denied")


def path_of(scope: Mapping[str, Any]) -> str:
    """A request's path as logs may show it, with parameters for what was in their places: some entities are called by
    their secret. What no route is for, is not shown at all."""
    template = str(getattr(scope.get("route"), "path", ""))
    control_plane_id = canonical_id(scope.get("path_params", {}).get("control_plane_id", ""))
    shown = template.replace("{control_plane_id}", control_plane_id) if control_plane_id else template
    return f"{scope.get('root_path', '')}{shown}"


def _plane(request: Request) -> ControlPlane:
    plane: ControlPlane = request.app.state.plane
    return plane


def address_of(request: Request) -> str:
    """The client's address; behind a proxy on this machine the one that it names in X-Forwarded-For."""
    return request.client.host[:_LONGEST_ADDRESS] if request.client is not None else ""


def _bearer(value: str) -> str | None:
    scheme, _, token = value.strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


async def find_token(connection: AsyncConnection, token: str) -> Token | None:
    """A copy of a token's row, be it expired; None for one that is unknown.

    The look-up goes by digest, so its time says nothing about the token; the digests are compared in constant time
    all the same.
    """
    digest = digest_of(token)
    row = (await connection.execute(_BY_DIGEST, {"digest": digest})).mappings().one_or_none()
    found = Token(**row) if row is not None else None
    return found if found is not None and hmac.compare_digest(found.digest, digest) else None


def has_expired(token: Token) -> bool:
    return token.expires_at is not None and token.expires_at <= time.time()


def _principal_of(token: Token, address: str) -> Principal:
    scopes, limit = implied(token.scopes), token.control_plane_id
    return Principal(token.id, token.name, scopes, token.created_at, limit, token.expires_at, address)


def implied(scopes: Iterable[str]) -> frozenset[str]:
    """The known ones among these scopes; whoever may do anything may read."""
    known = frozenset(scopes) & frozenset(SCOPES)
    return known | {"read"} if known else known


def _moment(seconds: int | None) -> str:
    return datetime.fromtimestamp(seconds or 0, UTC).isoformat().replace("+00:00", "Z")


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token(kind: Kind = "personal") -> str:
    """256 random bits behind Konnect's prefix for the kind."""
    return f"{PREFIXES[kind]}{secrets.token_urlsafe(32)}"


async def ensure_admin(session: AsyncSession, settings: Settings) -> None:
    """The token of TANDEM_ADMIN_TOKEN, for as long as the variable holds it: none that it held before, and none once it
    is unset. Without it, a start that finds nobody who may make tokens makes one and leaves it in the state directory:
    somebody must be able to come in."""
    digest = digest_of(settings.admin_token) if settings.admin_token else ""
    of_variable = (Token.name == BOOTSTRAP) & (Token.created_by == "")
    gone = await session.execute(delete(Token).where(of_variable, Token.digest != digest).returning(Token.id))
    if gone.first() is not None:
        _log.info("the token that %s held before is no longer valid", BOOTSTRAP)
    if digest:
        if len(settings.admin_token) < _WEAK_LENGTH:
            _log.warning("%s is short enough to be guessed: 20 random characters are not", BOOTSTRAP)
        known = (await session.execute(select(Token).where(Token.digest == digest))).scalar_one_or_none()
        if known is None:
            session.add(_admin(BOOTSTRAP, digest))
        elif (known.name, known.created_by) != (BOOTSTRAP, ""):
            _log.warning("the token '%s' has the value of %s: it is the variable's from now on", known.name, BOOTSTRAP)
            known.name, known.created_by, known.scopes = BOOTSTRAP, "", list(SCOPES)
            known.control_plane_id = known.expires_at = None
    elif not await admins(session):
        token = new_token()
        path = settings.state_dir / "admin.token"
        _write_private(path, token)
        session.add(_admin("first admin", digest_of(token)))
        _log.info("made an admin token, as there was none: it is in %s", path)


async def admins(session: AsyncSession, alive_at: float | None = None) -> list[Token]:
    """The tokens that may make tokens for every control plane, and still may at that moment (default: now)."""
    alive = or_(Token.expires_at.is_(None), Token.expires_at > int(time.time() if alive_at is None else alive_at))
    found = (await session.execute(select(Token).where(Token.control_plane_id.is_(None), alive))).scalars()
    return [token for token in found if "admin" in token.scopes]


def _admin(name: str, digest: str) -> Token:
    now = int(time.time())
    return Token(id=str(uuid.uuid4()), name=name, digest=digest, scopes=list(SCOPES), expires_at=None, created_at=now)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
