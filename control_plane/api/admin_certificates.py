"""Certificates on Kong's Admin API: `snis` among what is shown of them.

On Konnect's face the list is only written: decK, which reads SNIs by themselves there, would take it for a difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from control_plane.api.certificates import Certificates
from control_plane.auth import Principal
from control_plane.holdings import Row
from control_plane.repository import Repository
from gateway_schema.registry import SNIS


class NamedCertificates(Certificates):
    """The handlers of certificates, each shown with its names."""

    async def _views(self, repository: Repository, rows: Sequence[Row], caller: Principal) -> Sequence[dict[str, Any]]:
        names = defaultdict(list)
        for sni in await repository.referring(SNIS, "certificate", [row.id for row in rows]):
            names[sni.reference("certificate")].append(sni.written["name"])
        shown = await super()._views(repository, rows, caller)
        return [{**entity, "snis": sorted(names[entity["id"]])} for entity in shown]
