"""Tokens of this API: made, listed, revoked. A token's value is shown once, in the answer that made it.

Ours, under `/v2/tokens`; Konnect's own paths hang tokens below users and system accounts, which we have not. Nobody
gives what they lack: a new token has no scope and no reach that its maker has not.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import audit
from control_plane.api import own_answers
from control_plane.api.exchange import AnyAdmin, AnyReader, Body, Plane, answer, parameters, rfc3339
from control_plane.api.konnect import find
from control_plane.api.openapi import CONFLICT, MISSING, accepts, shows
from control_plane.api.stems import StemRouter
from control_plane.auth import (
    BOOTSTRAP,
    DEFAULT_SCOPES,
    SCOPES,
    Kind,
    Principal,
    Scope,
    admins,
    beyond,
    digest_of,
    has_expired,
    new_token,
)
from control_plane.database import take_turns
from control_plane.errors import Conflict, Forbidden, InvalidParameters, NotFound
from control_plane.models import Token
from gateway_schema.base import canonical_id

router = StemRouter(prefix="/v2/tokens", tags=["tokens"])

_MISSING = "The requested token was not found."
_TOKENS = "tokens"
"""What revocations take turns about: on PostgreSQL the last two could each find the other."""
_HEIR_SECONDS = 86_400
_YEAR_10000 = 253_402_300_800
"""In Unix seconds: from here on no time can be written. One that is written with an offset can lie there."""


class CreateToken(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]+$")]
    kind: Kind = "personal"
    """`personal` (`kpat_…`) for a person, `system-account` (`spat_…`) for a machine."""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=len(SCOPES))] | None = None
    """Default: read, write and reveal for a person; read and write for a machine."""
    control_plane_id: str | None = None
    """The only control plane that it may touch. Default: the maker's own limit, if there is one."""
    expires_at: str | None = None
    """RFC 3339, and no later than the maker's own. Default: the maker's, so for most never."""


@router.post(
    "", status_code=201, responses=shows(own_answers.TokenMade, 201) | MISSING, openapi_extra=accepts(CreateToken)
)
async def create_token(body: Body, plane: Plane, caller: AnyAdmin) -> Response:
    """Make a token. `token` in the answer is its value: it cannot be shown again."""
    given = parameters(CreateToken, body)
    if given.name == BOOTSTRAP:
        reason = "is the name of the token that the variable holds: choose another"
        raise InvalidParameters([{"field": "name", "rule": "invalid", "reason": reason, "source": "body"}])
    value = new_token(given.kind)
    row = Token(
        id=str(uuid.uuid4()),
        name=given.name,
        digest=digest_of(value),
        kind=given.kind,
        scopes=_scopes(given, caller),
        expires_at=_expiry(given.expires_at, caller),
        created_by=caller.name,
        created_at=int(time.time()),
    )
    async with plane.database.writing() as session:
        row.control_plane_id = await _limit(session, given, caller)
        session.add(row)
        details = {"kind": row.kind, "scopes": row.scopes, "expires_at": _time(row.expires_at)}
        await _tell(session, caller, "create", row, details)
    return answer({**_shown(row), "token": value}, 201)


@router.get("", responses=shows(own_answers.Tokens))
async def list_tokens(
    plane: Plane,
    caller: AnyAdmin,
    size: Annotated[int, Query(alias="page[size]", ge=1, le=1000)] = 100,
    number: Annotated[int, Query(alias="page[number]", ge=1, le=1_000_000)] = 1,
) -> Response:
    """In order of their making, without their values."""
    mine = _mine(caller)
    async with plane.database.reading() as session:
        total = (await session.execute(select(func.count()).select_from(Token).where(*mine))).scalar_one()
        page = select(Token).where(*mine).order_by(Token.created_at, Token.id).limit(size).offset((number - 1) * size)
        rows = (await session.execute(page)).scalars().all()
    meta = {"page": {"number": number, "size": size, "total": total}}
    return answer({"data": [_shown(row) for row in rows], "meta": meta})


@router.get("/me", responses=shows(own_answers.TokenShown))
async def get_own_token(plane: Plane, caller: AnyReader) -> Response:
    """The token that asks: what it may do, and until when."""
    async with plane.database.reading() as session:
        row = await session.get(Token, caller.id)
    if row is None:
        raise NotFound(_MISSING)
    return answer(_shown(row))


@router.get("/{token_id}", responses=shows(own_answers.TokenShown))
async def get_token(token_id: str, plane: Plane, caller: AnyAdmin) -> Response:
    async with plane.database.reading() as session:
        return answer(_shown(await _find(session, token_id, caller)))


@router.delete("/{token_id}", status_code=204, responses=CONFLICT)
async def revoke_token(token_id: str, plane: Plane, caller: AnyAdmin) -> Response:
    """Revoke a token: the next request with it is answered 401."""
    async with plane.database.writing() as session:
        await take_turns(session, _TOKENS)
        row = await _find(session, token_id, caller)
        if plane.settings.admin_token and row.digest == digest_of(plane.settings.admin_token):
            raise Conflict(f"this token is the one in {BOOTSTRAP}: change or unset the variable and start again")
        await _check_not_last(session, row)
        await _tell(session, caller, "revoke", row, {})
        await session.delete(row)
    return Response(status_code=204)


def _scopes(given: CreateToken, caller: Principal) -> list[str]:
    wanted = set(given.scopes) if given.scopes is not None else set(DEFAULT_SCOPES[given.kind]) & caller.scopes
    lacking = sorted(wanted - caller.scopes)
    if lacking:
        text = f"a token cannot give what it lacks: this one has not the scope '{lacking[0]}'"
        raise Forbidden(text, missing_scope=lacking[0])
    return [scope for scope in SCOPES if scope in wanted | {"read"}]


async def _limit(session: AsyncSession, given: CreateToken, caller: Principal) -> str | None:
    limit = caller.control_plane_id if given.control_plane_id is None else given.control_plane_id.lower()
    if limit is None:
        return None
    if not caller.sees(limit):
        raise beyond(str(caller.control_plane_id))
    return (await find(session, limit, lock=True)).id


def _expiry(text: str | None, caller: Principal) -> int | None:
    """Raises InvalidParameters, or Forbidden for a token that would outlive its maker."""
    latest = caller.expires_at
    if text is None:
        return latest
    seconds = _seconds(text)
    if latest is not None and seconds > latest:
        raise Forbidden(f"a token cannot outlive its maker: expires_at must be no later than {_time(latest)}")
    return seconds


def _seconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid_expiry("must be a time such as 2030-01-31T12:00:00Z") from None
    seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if seconds <= time.time():
        raise _invalid_expiry("must lie in the future")
    if seconds >= _YEAR_10000:
        raise _invalid_expiry("must lie before the year 10000 in UTC")
    return seconds


def _invalid_expiry(reason: str) -> InvalidParameters:
    return InvalidParameters([{"field": "expires_at", "rule": "is_date_time", "reason": reason, "source": "body"}])


async def _check_not_last(session: AsyncSession, row: Token) -> None:
    """Somebody must be able to make tokens: the last that may, everywhere and for a while yet, stays.

    Where all such tokens expire, as some operators want it, the one that leaked can still be revoked: who is left needs
    no more than the time to notice. Once nobody is left, the next start makes a token.
    """
    if "admin" not in row.scopes or row.control_plane_id is not None or has_expired(row):
        return
    if all(other.id == row.id for other in await admins(session, time.time() + _HEIR_SECONDS)):
        raise Conflict(
            "this is the last token that may make tokens (those that expire within a day do not count): "
            "make another first"
        )


async def _find(session: AsyncSession, token_id: str, caller: Principal) -> Token:
    found = await session.get(Token, canonical_id(token_id) or "")
    if found is None or (caller.control_plane_id is not None and found.control_plane_id != caller.control_plane_id):
        raise NotFound(_MISSING)
    return found


def _mine(caller: Principal) -> list[Any]:
    return [] if caller.control_plane_id is None else [Token.control_plane_id == caller.control_plane_id]


async def _tell(session: AsyncSession, caller: Principal, action: str, row: Token, details: dict[str, Any]) -> None:
    what = ("tokens", row.id, row.name)
    await audit.record(session, caller, action, *what, control_plane_id=row.control_plane_id or "", details=details)


def _shown(row: Token) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "scopes": row.scopes,
        "control_plane_id": row.control_plane_id,
        "state": "expired" if has_expired(row) else "active",
        "expires_at": _time(row.expires_at),
        "created_by": row.created_by,
        "created_at": _time(row.created_at),
    }


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else rfc3339(seconds * 1000)
