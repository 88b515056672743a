"""Holdings become a snapshot: the canonical bytes that every data plane of a control plane runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from control_plane.holdings import Holdings
from gateway_schema.delta import Catalogue


@dataclass(frozen=True, slots=True)
class Snapshot:
    control_plane_id: str
    version: int
    hash: str
    """32 hex digits over the payload: equal configurations have equal hashes."""
    catalogue: Catalogue = field(repr=False)
    """Entity by entity; secrets in clear: never to be logged."""
    plugins: frozenset[str]
    """Names of the plugins that the configuration uses and that are switched on."""

    @property
    def payload(self) -> bytes:
        """Canonical, uncompressed. Put together for each who asks."""
        return self.catalogue.payload()


def build(holdings: Holdings) -> Snapshot:
    """The same bytes as `gateway_schema.document.canonical`, put together from those that each row keeps."""
    catalogue, hash_ = holdings.catalogue()
    return Snapshot(holdings.control_plane_id, holdings.version, hash_, catalogue, holdings.plugins_in_use())
