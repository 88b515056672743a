"""Who calls the API: bearer tokens, kept as digests, with scopes.

`read` sees everything but secrets; `write` sees and changes all of it; `admin` also makes and revokes tokens.
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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastapi import Request
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.errors import Forbidden, Unauthorized
from control_plane.models import Token
from control_plane.settings import Settings

_log = logging.getLogger(__name__)

Scope = Literal["read", "write", "admin"]

_IMPLIED: dict[str, frozenset[str]] = {
    "read": frozenset({"read"}),
    "write": frozenset({"read", "write"}),
    "admin": frozenset({"read", "write", "admin"}),
}
_BOOTSTRAP = "TANDEM_ADMIN_TOKEN"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a valid token stands for."""

    id: str
    name: str
    scopes: frozenset[str]
    created_at: int
    control_plane_id: str | None = None
    """The only control plane that it may touch; None: all of them."""
    address: str = ""
    """Where the request came from."""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes


def require(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency: the caller, who has this scope. Raises Unauthorized or Forbidden."""

    async def authenticate(request: Request) -> Principal:
        principal = await _principal(request)
        if not principal.may(scope):
            raise Forbidden(f"this token lacks the scope '{scope}'")
        return principal

    return authenticate


async def _principal(request: Request) -> Principal:
    """Clients with a user name in their address send a Basic header first: every Authorization value is looked at."""
    tokens = [token for value in request.headers.getlist("authorization") if (token := _bearer(value))]
    if not tokens:
        raise Unauthorized
    async with request.app.state.plane.database.reading() as session:
        for token in tokens:
            if (principal := await identify(session, token)) is not None:
                return principal
    raise Unauthorized


def _bearer(value: str) -> str | None:
    scheme, _, token = value.strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


async def identify(session: AsyncSession, token: str) -> Principal | None:
    """The principal of a token; None for one that is unknown or expired.

    The look-up goes by digest, so its time says nothing about the token; the digests are compared in constant time
    all the same.
    """
    digest = digest_of(token)
    found = (await session.execute(select(Token).where(Token.digest == digest))).scalar_one_or_none()
    if found is None or not hmac.compare_digest(found.digest, digest):
        return None
    if found.expires_at is not None and found.expires_at <= time.time():
        return None
    scopes = frozenset().union(*(_IMPLIED.get(scope, frozenset()) for scope in found.scopes))
    return Principal(found.id, found.name, scopes, found.created_at)


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """A personal access token: 256 random bits behind Konnect's prefix."""
    return f"kpat_{secrets.token_urlsafe(32)}"


async def ensure_admin(session: AsyncSession, settings: Settings) -> None:
    """The token of TANDEM_ADMIN_TOKEN, and no earlier one of that variable. Without it, the first start makes a token
    and leaves it in the state directory: somebody must be able to come in."""
    digest = digest_of(settings.admin_token) if settings.admin_token else ""
    if digest:
        await session.execute(delete(Token).where(Token.name == _BOOTSTRAP, Token.digest != digest))
        known = (await session.execute(select(Token.id).where(Token.digest == digest))).first()
        if known is None:
            session.add(_admin(_BOOTSTRAP, digest))
        return
    count = (await session.execute(select(func.count()).select_from(Token))).scalar_one()
    if count == 0:
        token = new_token()
        path = settings.state_dir / "admin.token"
        _write_private(path, token)
        session.add(_admin("first admin", digest_of(token)))
        _log.info("made the first admin token: it is in %s", path)


def _admin(name: str, digest: str) -> Token:
    now = int(time.time())
    return Token(id=str(uuid.uuid4()), name=name, digest=digest, scopes=["admin"], expires_at=None, created_at=now)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
