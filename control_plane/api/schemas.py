"""The schema documents below `core-entities`, and the check of an entity that is not written.

The documents are the same on both faces; `control_plane.schemas` makes them. decK cannot go on without the plugins'
and the four JSON ones.
"""

from __future__ import annotations

from fastapi import Response

from control_plane import schemas
from control_plane.api import answers
from control_plane.api.entities import PREFIX
from control_plane.api.exchange import Body, Reader, answer
from control_plane.api.openapi import accepts_anything, shows
from control_plane.api.stems import StemRouter

router = StemRouter(prefix=PREFIX, tags=["schemas"])


@router.get("/schemas/plugins/{name}", responses=shows(answers.KongSchema))
async def get_plugin_schema(control_plane_id: str, name: str, _: Reader) -> Response:
    """A plugin's fields and defaults, in Kong's dialect."""
    return answer(schemas.plugin_schema(name))


@router.get("/schemas/partials/{kind}", responses=shows(answers.KongSchema))
async def get_partial_schema(control_plane_id: str, kind: str, _: Reader) -> Response:
    """A partial's fields and defaults, in Kong's dialect: `redis-ee`, `vectordb`."""
    return answer(schemas.partial_schema(kind))


@router.get("/schemas/vaults/{name}", responses=shows(answers.KongSchema))
async def get_vault_schema(control_plane_id: str, name: str, _: Reader) -> Response:
    """A vault's fields, in Kong's dialect: `env`, `hcv`."""
    return answer(schemas.vault_schema(name))


@router.get("/schemas/{entity}", responses=shows(answers.KongSchema))
async def get_entity_schema(control_plane_id: str, entity: str, _: Reader) -> Response:
    """An entity's fields and defaults, in Kong's dialect: `services`, `keyauth_credentials`."""
    return answer(schemas.entity_schema(entity))


@router.get("/v1/schemas/json/{entity}", responses=shows(answers.JsonSchema))
async def get_json_schema(control_plane_id: str, entity: str, _: Reader) -> Response:
    """An entity's JSON Schema: `service`, `key-set`."""
    return answer(schemas.json_schema(entity))


@router.post("/schemas/{entity}/validate", responses=shows(answers.Validated), openapi_extra=accepts_anything())
async def validate_entity(control_plane_id: str, entity: str, body: Body, _: Reader) -> Response:
    """Check an entity's fields without writing it; neither references nor unique names are looked up."""
    return answer(schemas.validate(entity, body))
