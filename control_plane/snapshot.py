"""Holdings become a snapshot: the canonical bytes that every data plane of a control plane runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from control_plane.holdings import Holdings
from gateway_schema.delta import Catalogue
from gateway_schema.document import hash_of
from gateway_schema.registry import ENTITY_TYPES


@dataclass(frozen=True, slots=True)
class Snapshot:
    control_plane_id: str
    version: int
    hash: str
    """32 hex digits over the payload: equal configurations have equal hashes."""
    payload: bytes = field(repr=False)
    """Canonical, uncompressed, secrets in clear: never to be logged."""
    catalogue: Catalogue = field(repr=False)
    """The same, entity by entity."""
    plugins: frozenset[str]
    """Names of the plugins that the configuration uses and that are switched on."""


def build(holdings: Holdings) -> Snapshot:
    """The same bytes as `gateway_schema.document.canonical`, put together from those that each row keeps."""
    entities = {name: holdings.canonical(name) for name in sorted(ENTITY_TYPES)}
    catalogue = Catalogue(holdings.control_plane_id, entities)
    payload = catalogue.payload()
    plugins = [row.complete for row in holdings.of("plugins").values()]
    in_use = frozenset(plugin["name"] for plugin in plugins if plugin.get("enabled", True))
    return Snapshot(holdings.control_plane_id, holdings.version, hash_of(payload), payload, catalogue, in_use)
