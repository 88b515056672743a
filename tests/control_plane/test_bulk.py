"""Many rows at once: whatever the database, what is read is what was written."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from control_plane.bulk import insert_rows
from control_plane.database import Database
from control_plane.models import ENTITY_OWNERS, ENTITY_TABLES, ENTITY_TAGS, ControlPlane
from tests.control_plane.test_node_rows import control_plane

SERVICES = ENTITY_TABLES["services"]


async def _control_plane(database: Database) -> str:
    id = str(uuid.uuid4())
    async with database.writing() as session:
        session.add(ControlPlane(**control_plane(id)))
    return id


def _services(plane: str, count: int) -> list[dict[str, Any]]:
    odd = ["a", "ä\u2028", "'; --", "{1,2}", "null", "\\", '"', "", " "]
    return [
        {
            "control_plane_id": plane,
            "id": str(uuid.uuid4()),
            "client_certificate_id": None,
            "name": None if number % 7 == 0 else f"service-{number}",
            "written": {"name": odd[number % len(odd)], "number": number, "list": [None, 1.5, True, odd], "none": None},
            "revision": (1 << 62) + number,
            "created_at": number,
            "updated_at": number,
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [1, 499, 1203])
async def test_every_kind_of_value_comes_back_as_it_was(database: Database, count: int) -> None:
    rows = _services(await _control_plane(database), count)
    async with database.writing() as session:
        await insert_rows(session, SERVICES, rows)
    async with database.reading() as session:
        found = [dict(row) for row in (await session.execute(select(SERVICES))).mappings()]
    assert sorted(found, key=lambda row: row["created_at"]) == rows


async def test_no_rows_are_nothing(database: Database) -> None:
    async with database.writing() as session:
        await insert_rows(session, ENTITY_TAGS, [])
        assert (await session.execute(select(ENTITY_TAGS))).all() == []


async def test_what_is_there_is_overwritten_or_refused(database: Database) -> None:
    plane = await _control_plane(database)
    keys = [{"control_plane_id": plane, "entity_type": "services", "entity_id": str(uuid.uuid4())} for _ in range(1100)]
    for owner in ("one", "other"):
        async with database.writing() as session:
            await insert_rows(session, ENTITY_OWNERS, [{**key, "owner": owner} for key in keys], overwrite=True)
    async with database.reading() as session:
        owners = (await session.execute(select(ENTITY_OWNERS.c.owner))).scalars().all()
    assert owners == ["other"] * len(keys)
    with pytest.raises(IntegrityError):
        async with database.writing() as session:
            await insert_rows(session, ENTITY_OWNERS, [{**key, "owner": "third"} for key in keys])
