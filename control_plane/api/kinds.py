"""The handlers of every kind on either face: mostly the shared ones, their own where there is more to a kind than its
fields."""

from __future__ import annotations

from control_plane.api.certificates import Certificates
from control_plane.api.entities import Collection
from control_plane.api.groups import Groups
from control_plane.api.plugins import Plugins
from control_plane.api.routes import Routes
from gateway_schema.registry import CERTIFICATES, CONSUMER_GROUPS, PLUGINS, ROUTES, EntityType


def collection(row: EntityType, field: str | None = None) -> Collection:
    """`field`: the foreign key of the parent that the kind is reached through; the first two have none."""
    if row is CERTIFICATES:
        return Certificates()
    if row is CONSUMER_GROUPS:
        return Groups()
    if row is ROUTES:
        return Routes(row, field)
    return Plugins(field) if row is PLUGINS else Collection(row, field)
