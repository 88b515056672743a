"""Plugins: a reader may ask for them with their partials inlined."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from control_plane.api.entities import Collection
from control_plane.holdings import Row
from control_plane.partials import inlined
from control_plane.repository import Repository
from gateway_schema.registry import PARTIALS, PLUGINS


class Plugins(Collection):
    """The handlers of plugins, under one parent or none."""

    def __init__(self, field: str | None = None) -> None:
        super().__init__(PLUGINS, field)
        self.options = {"expand_partials": {"type": "boolean", "description": "`true`: partials inlined into `config`"}}

    async def _asked_for(self, request: Request, repository: Repository, rows: Sequence[Row]) -> Sequence[Row]:
        if request.query_params.get("expand_partials") != "true":
            return rows
        linked = [PLUGINS.lists["partials"].ids(row.written.get("partials")) for row in rows]
        partials = {row.id: row for row in await repository.of_ids(PARTIALS, sorted(set().union(*linked)))}
        return [inlined(row, partials) if links else row for row, links in zip(rows, linked, strict=True)]
