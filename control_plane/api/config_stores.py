"""Config stores: secrets of a control plane that vaults of type `konnect` refer to.

What is stored is never answered again: a secret shows its key and its times. Values are sealed like everything that is
secret, so a rotation of the operator's key covers them.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import audit
from control_plane.api import answers
from control_plane.api.exchange import WITHOUT_NUL, Body, Plane, Reader, Writer, answer, parameters, rfc3339
from control_plane.api.konnect import find
from control_plane.api.openapi import CONFLICT, accepts, shows
from control_plane.api.paging import Page
from control_plane.api.stems import StemRouter
from control_plane.auth import Principal
from control_plane.errors import BadRequest, Conflict, NotFound
from control_plane.models import CONFIG_STORE_SECRETS, ConfigStore
from control_plane.sealed import seal
from gateway_schema.base import canonical_id

router = StemRouter(prefix="/v2/control-planes/{control_plane_id}/config-stores", tags=["config stores"])

MAX_KEY_LENGTH = 512
_NO_STORE = "The requested config store was not found."
_NO_SECRET = "The requested secret was not found."  # noqa: S105

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=WITHOUT_NUL)]
Value = Annotated[str, Field(min_length=1, max_length=5120)]


class StoreBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name | None = None
    """A new store without a name is called by its id; one that exists keeps its own."""


class CreateSecret(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    key: Annotated[str, Field(min_length=1, max_length=MAX_KEY_LENGTH, pattern=WITHOUT_NUL)]
    value: Value


class UpdateSecret(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    value: Value


# -- stores


@router.get("", responses=shows(answers.ConfigStores))
async def list_config_stores(control_plane_id: str, plane: Plane, page: Page, _: Reader) -> Response:
    async with plane.database.reading() as session:
        control_plane = await find(session, control_plane_id)
        table = ConfigStore.__table__
        mine = select(table).where(table.c.control_plane_id == control_plane.id)
        rows, meta = await page.rows(session, mine, table.c.id)
    return answer({"data": [_store(row) for row in rows], "meta": {"page": meta}})


@router.post("", status_code=201, responses=shows(answers.ConfigStoreShown, 201), openapi_extra=accepts(StoreBody))
async def create_config_store(control_plane_id: str, body: Body, plane: Plane, caller: Writer) -> Response:
    given = parameters(StoreBody, body)
    new_id, now = str(uuid.uuid4()), _now()
    async with plane.database.writing() as session:
        owner = await _locked(session, control_plane_id)
        store = ConfigStore(
            id=new_id, control_plane_id=owner, name=given.name or new_id, created_at=now, updated_at=now
        )
        session.add(store)
        await _tell_store(session, caller, "create", store)
    return answer(_store(store), 201)


@router.get("/{store_id}", responses=shows(answers.ConfigStoreShown))
async def get_config_store(control_plane_id: str, store_id: str, plane: Plane, _: Reader) -> Response:
    async with plane.database.reading() as session:
        store = await _find(session, (await find(session, control_plane_id)).id, store_id)
    return answer(_store(store))


@router.put("/{store_id}", responses=shows(answers.ConfigStoreShown), openapi_extra=accepts(StoreBody))
async def update_config_store(
    control_plane_id: str, store_id: str, body: Body, plane: Plane, caller: Writer
) -> Response:
    given = parameters(StoreBody, body)
    async with plane.database.writing() as session:
        store = await _find(session, await _locked(session, control_plane_id), store_id)
        store.name = given.name or store.name
        store.updated_at = _now()
        await _tell_store(session, caller, "update", store, {"fields": sorted(given.model_fields_set)})
    return answer(_store(store))


@router.delete("/{store_id}", status_code=204)
async def delete_config_store(
    control_plane_id: str,
    store_id: str,
    plane: Plane,
    caller: Writer,
    force: Annotated[bool, Query(description="Also when secrets are in it; they go along")] = False,
) -> Response:
    async with plane.database.writing() as session:
        store = await _find(session, await _locked(session, control_plane_id), store_id)
        held = select(func.count()).select_from(CONFIG_STORE_SECRETS).where(CONFIG_STORE_SECRETS.c.store_id == store.id)
        count = (await session.execute(held)).scalar_one()
        if count and not force:
            raise BadRequest(f"the config store '{store.name}' is not empty (secrets: {count}): say force=true")
        await _tell_store(session, caller, "delete", store, {"secrets": count} if count else {})
        await session.delete(store)
    return Response(status_code=204)


# -- secrets


@router.get("/{store_id}/secrets", responses=shows(answers.ConfigStoreSecrets))
async def list_config_store_secrets(
    control_plane_id: str, store_id: str, plane: Plane, page: Page, _: Reader
) -> Response:
    """Keys and times; values are never shown."""
    async with plane.database.reading() as session:
        store = await _find(session, (await find(session, control_plane_id)).id, store_id)
        table = CONFIG_STORE_SECRETS.c
        query = select(table.key, table.created_at, table.updated_at).where(table.store_id == store.id)
        rows, meta = await page.rows(session, query, table.key)
    return answer({"data": [_secret(row) for row in rows], "meta": {"page": meta}})


@router.post(
    "/{store_id}/secrets",
    status_code=201,
    responses=shows(answers.ConfigStoreSecretShown, 201) | CONFLICT,
    openapi_extra=accepts(CreateSecret),
)
async def create_config_store_secret(
    control_plane_id: str, store_id: str, body: Body, plane: Plane, caller: Writer
) -> Response:
    given = parameters(CreateSecret, body)
    async with plane.database.writing() as session:
        store = await _find(session, await _locked(session, control_plane_id), store_id)
        if await _held(session, store, given.key) is not None:
            raise Conflict(f"the config store has a secret '{given.key}' already: PUT replaces it")
        row = await _insert(session, plane, store, given.key, given.value)
        await _tell_secret(session, caller, "create", store, given.key)
    return answer(_secret(row), 201)


@router.get("/{store_id}/secrets/{key:path}", responses=shows(answers.ConfigStoreSecretShown))
async def get_config_store_secret(control_plane_id: str, store_id: str, key: str, plane: Plane, _: Reader) -> Response:
    """Key and times; the value is never shown."""
    async with plane.database.reading() as session:
        store = await _find(session, (await find(session, control_plane_id)).id, store_id)
        row = await _held(session, store, key)
    if row is None:
        raise NotFound(_NO_SECRET)
    return answer(_secret(row))


@router.put(
    "/{store_id}/secrets/{key:path}",
    responses=shows(answers.ConfigStoreSecretShown) | shows(answers.ConfigStoreSecretShown, 201),
    openapi_extra=accepts(UpdateSecret),
)
async def put_config_store_secret(
    control_plane_id: str, store_id: str, key: str, body: Body, plane: Plane, caller: Writer
) -> Response:
    """Replace a secret's value (200), or make the secret (201)."""
    given = parameters(UpdateSecret, body)
    async with plane.database.writing() as session:
        store = await _find(session, await _locked(session, control_plane_id), store_id)
        row = await _held(session, store, key)
        if row is None:
            parameters(CreateSecret, {"key": key, "value": given.value})
            created = await _insert(session, plane, store, key, given.value)
            await _tell_secret(session, caller, "create", store, key)
            return answer(_secret(created), 201)
        now, payload = _now(), seal(plane.cipher, given.value)
        changed = update(CONFIG_STORE_SECRETS).where(*_is(store, key)).values(payload=payload, updated_at=now)
        await session.execute(changed)
        await _tell_secret(session, caller, "update", store, key)
    return answer(_secret(row, now))


@router.delete("/{store_id}/secrets/{key:path}", status_code=204)
async def delete_config_store_secret(
    control_plane_id: str, store_id: str, key: str, plane: Plane, caller: Writer
) -> Response:
    async with plane.database.writing() as session:
        store = await _find(session, await _locked(session, control_plane_id), store_id)
        if await _held(session, store, key) is None:
            raise NotFound(_NO_SECRET)
        await session.execute(delete(CONFIG_STORE_SECRETS).where(*_is(store, key)))
        await _tell_secret(session, caller, "delete", store, key)
    return Response(status_code=204)


# -- rows


async def _locked(session: AsyncSession, control_plane_id: str) -> str:
    """The control plane's id, its row locked: a rotation of the key and other writers wait. Raises NotFound."""
    return (await find(session, control_plane_id, lock=True)).id


async def _find(session: AsyncSession, control_plane_id: str, store_id: str) -> ConfigStore:
    store = await session.get(ConfigStore, canonical_id(store_id) or "")
    if store is None or store.control_plane_id != control_plane_id:
        raise NotFound(_NO_STORE)
    return store


def _is(store: ConfigStore, key: str) -> tuple[Any, ...]:
    table = CONFIG_STORE_SECRETS.c
    return table.store_id == store.id, table.key == key


async def _held(session: AsyncSession, store: ConfigStore, key: str) -> Any:
    """Key and times of a secret; None when there is no such."""
    table = CONFIG_STORE_SECRETS.c
    query = select(table.key, table.created_at, table.updated_at).where(*_is(store, key))
    return (await session.execute(query)).first()


async def _insert(session: AsyncSession, plane: Any, store: ConfigStore, key: str, value: str) -> Any:
    now = _now()
    row = {
        "store_id": store.id,
        "key": key,
        "control_plane_id": store.control_plane_id,
        "payload": seal(plane.cipher, value),
        "created_at": now,
        "updated_at": now,
    }
    await session.execute(insert(CONFIG_STORE_SECRETS), [row])
    return await _held(session, store, key)


def _now() -> int:
    return time.time_ns() // 1_000_000


# -- what is told


async def _tell_store(
    session: AsyncSession, caller: Principal, action: str, store: ConfigStore, details: dict[str, Any] | None = None
) -> None:
    what = ("config_stores", store.id, store.name)
    await audit.record(session, caller, action, *what, control_plane_id=store.control_plane_id, details=details)


async def _tell_secret(session: AsyncSession, caller: Principal, action: str, store: ConfigStore, key: str) -> None:
    what = ("config_store_secrets", store.id, key)
    await audit.record(session, caller, action, *what, control_plane_id=store.control_plane_id)


def _store(row: Any) -> dict[str, Any]:
    times = {"created_at": rfc3339(row.created_at), "updated_at": rfc3339(row.updated_at)}
    return {"id": row.id, "name": row.name, **times}


def _secret(row: Any, updated_at: int | None = None) -> dict[str, Any]:
    updated = row.updated_at if updated_at is None else updated_at
    return {"key": row.key, "created_at": rfc3339(row.created_at), "updated_at": rfc3339(updated)}
