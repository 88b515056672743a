"""Routes on Kong's Admin API: one with an expression also shows what only other routes use, at its default.

decK fills these fields in from the schema there and takes their absence for a difference; on Konnect's face it is the
other way about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.api.entities import Collection
from control_plane.auth import Principal
from control_plane.holdings import Row
from control_plane.repository import Repository

_DEFAULTS: Mapping[str, Any] = {"path_handling": "v0", "regex_priority": 0}


class Routes(Collection):
    """The handlers of routes, under a service or not."""

    async def _views(self, repository: Repository, rows: Sequence[Row], caller: Principal) -> Sequence[dict[str, Any]]:
        shown = await super()._views(repository, rows, caller)
        return [_filled(entity) if entity.get("expression") is not None else entity for entity in shown]


def _filled(entity: dict[str, Any]) -> dict[str, Any]:
    return {**entity, **{name: default for name, default in _DEFAULTS.items() if entity.get(name) is None}}
