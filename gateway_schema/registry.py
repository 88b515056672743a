"""One row per kind of entity: from it follow the API's paths, the tables' order, the diff, the snapshot, the file.

Rows stand in order of creation; deletion goes the other way. A parent's row always precedes its children's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gateway_schema.entities import Consumer, Entity, KeyAuthCredential, Plugin, Route, Service


@dataclass(frozen=True, slots=True)
class Parent:
    """A foreign key: what it points to and what happens to the child when that goes."""

    type: str
    nested_path: str | None = None
    """Path of the children under their parent in the API (`/services/{id}/routes`), if they are reached so."""
    nested_key: str | None = None
    """Key of the children inside their parent in a declarative file, if they may stand there."""
    required: bool = False
    on_delete: Literal["cascade", "refuse"] = "cascade"


@dataclass(frozen=True, slots=True)
class EntityType:
    name: str
    """Plural, as tables, snapshots and error messages say it: `services`."""
    kind: str
    """Singular, as plans and diffs say it (decK's word): `service`, `key-auth`."""
    model: type[Entity]
    level: int
    """decK's level: all of a level is created before the next level starts, and deleted after it."""
    path: str
    """Collection in the API."""
    file_key: str | None
    """Top-level key in a declarative file; None where the entity only stands inside its parent."""
    endpoint_key: str | None
    """Field by which the API also finds one, beside `id`."""
    unique: tuple[tuple[str, ...], ...] = ()
    """Sets of fields that are unique within a control plane (foreign keys by field name)."""
    match: tuple[str, ...] = ()
    """Fields by which an entity without `id` in a file is recognised as one that exists: tried in turn, each alone.
    Empty: recognised by the fields of the first unique set, all together."""
    parents: Mapping[str, Parent] = field(default_factory=dict)


SERVICES = EntityType(
    name="services",
    kind="service",
    model=Service,
    level=2,
    path="services",
    file_key="services",
    endpoint_key="name",
    unique=(("name",),),
    match=("name",),
)

ROUTES = EntityType(
    name="routes",
    kind="route",
    model=Route,
    level=3,
    path="routes",
    file_key="routes",
    endpoint_key="name",
    unique=(("name",),),
    match=("name",),
    parents={"service": Parent("services", nested_path="routes", nested_key="routes", on_delete="refuse")},
)

CONSUMERS = EntityType(
    name="consumers",
    kind="consumer",
    model=Consumer,
    level=1,
    path="consumers",
    file_key="consumers",
    endpoint_key="username",
    unique=(("username",), ("custom_id",)),
    match=("username", "custom_id"),
)

KEYAUTH_CREDENTIALS = EntityType(
    name="keyauth_credentials",
    kind="key-auth",
    model=KeyAuthCredential,
    level=2,
    path="key-auths",
    file_key=None,
    endpoint_key="key",
    unique=(("key",),),
    match=("key",),
    parents={
        "consumer": Parent("consumers", nested_path="key-auth", nested_key="keyauth_credentials", required=True),
    },
)

PLUGINS = EntityType(
    name="plugins",
    kind="plugin",
    model=Plugin,
    level=4,
    path="plugins",
    file_key="plugins",
    endpoint_key="instance_name",
    unique=(("name", "service", "route", "consumer"), ("instance_name",)),
    parents={
        "service": Parent("services", nested_path="plugins", nested_key="plugins"),
        "route": Parent("routes", nested_path="plugins", nested_key="plugins"),
        "consumer": Parent("consumers", nested_path="plugins", nested_key="plugins"),
    },
)

ENTITY_TYPES: Mapping[str, EntityType] = {
    row.name: row
    for row in sorted([SERVICES, ROUTES, CONSUMERS, KEYAUTH_CREDENTIALS, PLUGINS], key=lambda row: row.level)
}
"""All kinds, in order of creation."""


def children_of(name: str) -> list[tuple[EntityType, str, Parent]]:
    """The kinds that refer to `name`, each with the field and the rule by which it does."""
    return [
        (row, field_name, parent)
        for row in ENTITY_TYPES.values()
        for field_name, parent in row.parents.items()
        if parent.type == name
    ]
