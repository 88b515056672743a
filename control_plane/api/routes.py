"""Routes on Konnect's face: one with an expression does not show what only other routes use.

decK, which reads lists, takes it for a difference. Terraform, which reads one at a time, sends it and wants it back: by
itself, such a route shows what was written of it.
"""

from __future__ import annotations

from typing import Any

from control_plane.api.entities import Collection
from control_plane.auth import Principal
from control_plane.holdings import Row
from control_plane.repository import Repository
from gateway_schema.entities import TRADITIONAL_ONLY


class Routes(Collection):
    """The handlers of routes, under a service or not."""

    async def _view(self, repository: Repository, row: Row, caller: Principal) -> dict[str, Any]:
        shown = await super()._view(repository, row, caller)
        return {**shown, **{name: row.written[name] for name in TRADITIONAL_ONLY if name in row.written}}
