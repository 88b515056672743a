"""Holdings become a snapshot: the canonical bytes that every data plane of a control plane runs."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from control_plane.holdings import Holdings
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


def build(holdings: Holdings) -> Snapshot:
    """The same bytes as `gateway_schema.document.canonical`, put together from those that each row keeps."""
    ordered = {name: [row.fragment for _, row in sorted(holdings.of(name).items())] for name in ENTITY_TYPES}
    document = {"control_plane_id": holdings.control_plane_id, "entities": ordered}
    payload = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return Snapshot(holdings.control_plane_id, holdings.version, hash_of(payload), payload)
