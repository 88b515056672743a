"""What Kong's Admin API says of the gateway itself: version, status, paths, tags, plugins, schemas.

A control plane has no workers and no Lua, so what Kong tells about those is left out. decK reads the version here: from
3.4 on it takes consumer groups as they are, without policy overrides. It is the version whose configuration Tandem
speaks everywhere else, so that one number is true for both faces.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from fastapi import Response
from sqlalchemy import text
from starlette.routing import Route

from control_plane import schemas
from control_plane.api.admin_bodies import Form, read_body, typed
from control_plane.api.admin_calls import Call, resource
from control_plane.api.admin_tags import list_tags
from control_plane.api.exchange import answer
from control_plane.settings import VERSION
from gateway_schema.plugins import PLUGINS
from gateway_schema.registry import ENTITY_TYPES


async def describe(call: Call) -> Response:
    """`GET /`."""
    async with call.plane.database.reading() as session:
        holdings = await call.plane.holdings.load(session, call.control_plane_id)
    in_use = {row.written["name"] for row in holdings.of("plugins").values() if row.written.get("enabled", True)}
    available = {name: {"version": VERSION, "priority": plugin.priority} for name, plugin in PLUGINS.items()}
    return answer(
        {
            "tagline": "Welcome to Tandem",
            "version": VERSION,
            "edition": "community",
            "hostname": socket.gethostname(),
            "node_id": call.control_plane_id,
            "plugins": {"available_on_server": available, "enabled_in_cluster": sorted(in_use)},
            "configuration": {
                "database": call.plane.database.url.get_backend_name().replace("postgresql", "postgres"),
                "role": "control_plane",
                "router_flavor": "traditional_compatible",
            },
        }
    )


async def status(call: Call) -> Response:
    async with call.plane.database.reading() as session:
        await session.execute(text("SELECT 1"))
    parcel = await call.plane.snapshots.get(call.control_plane_id)
    return answer({"database": {"reachable": True}, "configuration_hash": parcel.snapshot.hash})


async def plugins_enabled(_: Call) -> Response:
    """Every plugin that may be configured, as Kong means it: not those that are."""
    return answer({"enabled_plugins": sorted(PLUGINS)})


# -- schemas


async def plugin_schema(call: Call) -> Response:
    return answer(schemas.plugin_schema(call.key))


async def partial_schema(call: Call) -> Response:
    return answer(schemas.partial_schema(call.key))


async def vault_schema(call: Call) -> Response:
    return answer(schemas.vault_schema(call.key))


async def entity_schema(call: Call) -> Response:
    return answer(schemas.entity_schema(call.key))


async def validate_entity(call: Call) -> Response:
    """Fields only: neither references nor unique names are looked up."""
    body = await read_body(call.request)
    if isinstance(body, Form) and (row := ENTITY_TYPES.get(call.key)) is not None:
        body = typed(row, body)
    return answer(schemas.validate(call.key, body))


def gateway_routes() -> Iterator[Route]:
    yield resource("/", {"GET": describe})
    yield resource("/status", {"GET": status})
    yield resource("/tags", {"GET": list_tags})
    yield resource("/tags/{tag}", {"GET": list_tags})
    yield resource("/plugins/enabled", {"GET": plugins_enabled})
    yield resource("/schemas/plugins/{key}", {"GET": plugin_schema})
    yield resource("/schemas/partials/{key}", {"GET": partial_schema})
    yield resource("/schemas/vaults/{key}", {"GET": vault_schema})
    yield resource("/schemas/{key}", {"GET": entity_schema})
    yield resource("/schemas/{key}/validate", {"POST": validate_entity}, reads=frozenset({"POST"}))
