"""One row per kind of entity: from it follow the API's paths, the tables' order, the diff, the snapshot, the file.

Rows stand in order of creation; deletion goes the other way. A parent's row always precedes its children's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from gateway_schema.balancing import Target, Upstream
from gateway_schema.base import Record
from gateway_schema.certificates import CaCertificate, Certificate, Sni
from gateway_schema.credentials import (
    Acl,
    BasicAuthCredential,
    HmacAuthCredential,
    JwtCredential,
    MtlsAuthCredential,
)
from gateway_schema.entities import (
    Consumer,
    ConsumerGroup,
    ConsumerGroupMember,
    Entity,
    KeyAuthCredential,
    Plugin,
    Route,
    Service,
)
from gateway_schema.keys import Key, KeySet
from gateway_schema.partials import PARTIAL_CONFIGS, FilterChain, Partial
from gateway_schema.plugins import PLUGINS as PLUGIN_CONFIGS
from gateway_schema.vaults import VAULT_CONFIGS, Vault


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
    link: str | None = None
    """For kinds that only join two others: what stands under `nested_key` names the entity of this other field."""
    nested_fields: frozenset[str] | None = None
    """What a child inside its parent may say in decK's format, where that is less than all."""
    as_text: bool = False
    """Whether a file says the reference as a plain text (a name or an id), not as `{name: …}`."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A field that is a list of references. No column knows them: they are checked when written, and what is listed
    cannot be deleted."""

    type: str
    key: str | None = None
    """Where the entries are records, the member that holds the id."""

    def ids(self, entries: Any) -> set[str]:
        """What a list refers to; what is no reference is left out."""
        if not isinstance(entries, list):
            return set()
        found = [entry.get(self.key) if self.key and isinstance(entry, Mapping) else entry for entry in entries]
        return {entry.lower() for entry in found if isinstance(entry, str)}


@dataclass(frozen=True, eq=False)
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
    """Fields by which an entity without `id` in a file is recognised as one that exists: tried in turn, each alone."""
    match_together: tuple[str, ...] = ()
    """Fields that recognise it all together, when none did alone. Both empty: the first unique set."""
    parents: Mapping[str, Parent] = field(default_factory=dict)
    lists: Mapping[str, Listed] = field(default_factory=dict)
    generated: frozenset[str] = frozenset()
    """Secrets that are made up when a POST or PUT leaves them out. A declarative file must write them."""
    computed: frozenset[str] = frozenset()
    """Fields that follow from others: shown, never in a file."""
    keeps_id: bool = False
    """Whether a file must say the id, because decK asks for it."""
    config_key: str | None = None
    """The field that says which class checks `config`."""
    configs: Mapping[str, type[Record]] = field(default_factory=dict)
    sparse_config: bool = False
    """Whether `config` is shown as it was written, without defaults and nulls."""
    fractional_times: bool = False
    """Whether times are seconds with a fraction."""

    @cached_property
    def recognised_by(self) -> tuple[tuple[str, ...], ...]:
        """Sets of fields that recognise an entity without `id`; the first that finds one wins."""
        alone = tuple((name,) for name in self.match)
        return (*alone, self.match_together) if self.match_together else alone or self.unique[:1]

    @cached_property
    def is_link(self) -> bool:
        """Whether it only says that two others belong together."""
        return any(parent.link for parent in self.parents.values())

    @cached_property
    def expires(self) -> bool:
        """Whether one may say, in `ttl`, after how many seconds it is over."""
        return "ttl" in self.model.model_fields

    def time(self, seconds: float) -> int | float:
        """A moment as this kind keeps it."""
        return round(float(seconds), 3) if self.fractional_times else int(seconds)


CERTIFICATES = EntityType(
    name="certificates",
    kind="certificate",
    model=Certificate,
    level=1,
    path="certificates",
    file_key="certificates",
    endpoint_key=None,
    match_together=("cert", "key"),
    keeps_id=True,
)

CA_CERTIFICATES = EntityType(
    name="ca_certificates",
    kind="ca-certificate",
    model=CaCertificate,
    level=1,
    path="ca_certificates",
    file_key="ca_certificates",
    endpoint_key=None,
    unique=(("cert_digest",),),
    match=("cert_digest",),
    computed=frozenset({"cert_digest"}),
    keeps_id=True,
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

VAULTS = EntityType(
    name="vaults",
    kind="vault",
    model=Vault,
    level=1,
    path="vaults",
    file_key="vaults",
    endpoint_key="prefix",
    unique=(("prefix",),),
    match=("prefix",),
    config_key="name",
    configs=VAULT_CONFIGS,
    sparse_config=True,
)

PARTIALS = EntityType(
    name="partials",
    kind="partial",
    model=Partial,
    level=1,
    path="partials",
    file_key="partials",
    endpoint_key="name",
    unique=(("name",),),
    match=("name",),
    config_key="type",
    configs=PARTIAL_CONFIGS,
)

KEY_SETS = EntityType(
    name="key_sets",
    kind="key-set",
    model=KeySet,
    level=1,
    path="key-sets",
    file_key="key_sets",
    endpoint_key="name",
    unique=(("name",),),
    match=("name",),
)

CONSUMER_GROUPS = EntityType(
    name="consumer_groups",
    kind="consumer-group",
    model=ConsumerGroup,
    level=2,
    path="consumer_groups",
    file_key="consumer_groups",
    endpoint_key="name",
    unique=(("name",),),
    match=("name",),
)

SNIS = EntityType(
    name="snis",
    kind="sni",
    model=Sni,
    level=2,
    path="snis",
    file_key=None,
    endpoint_key="name",
    unique=(("name",),),
    match=("name",),
    parents={"certificate": Parent("certificates", nested_path="snis", nested_key="snis", required=True)},
)

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
    parents={"client_certificate": Parent("certificates", on_delete="refuse", as_text=True)},
    lists={"ca_certificates": Listed("ca_certificates")},
)

UPSTREAMS = EntityType(
    name="upstreams",
    kind="upstream",
    model=Upstream,
    level=2,
    path="upstreams",
    file_key="upstreams",
    endpoint_key="name",
    unique=(("name",),),
    match=("name",),
    parents={"client_certificate": Parent("certificates", on_delete="refuse")},
)

KEYS = EntityType(
    name="keys",
    kind="key",
    model=Key,
    level=2,
    path="keys",
    file_key="keys",
    endpoint_key="name",
    unique=(("name",), ("kid", "set")),
    match=("name",),
    match_together=("kid", "set"),
    parents={"set": Parent("key_sets", nested_path="keys")},
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
    parents={"consumer": Parent("consumers", nested_path="key-auth", nested_key="keyauth_credentials", required=True)},
    generated=frozenset({"key"}),
)

BASICAUTH_CREDENTIALS = EntityType(
    name="basicauth_credentials",
    kind="basic-auth",
    model=BasicAuthCredential,
    level=2,
    path="basic-auths",
    file_key=None,
    endpoint_key="username",
    unique=(("username",),),
    match=("username",),
    parents={
        "consumer": Parent("consumers", nested_path="basic-auth", nested_key="basicauth_credentials", required=True)
    },
)

HMACAUTH_CREDENTIALS = EntityType(
    name="hmacauth_credentials",
    kind="hmac-auth",
    model=HmacAuthCredential,
    level=2,
    path="hmac-auths",
    file_key=None,
    endpoint_key="username",
    unique=(("username",),),
    match=("username",),
    parents={
        "consumer": Parent("consumers", nested_path="hmac-auth", nested_key="hmacauth_credentials", required=True)
    },
    generated=frozenset({"secret"}),
)

JWT_SECRETS = EntityType(
    name="jwt_secrets",
    kind="jwt-auth",
    model=JwtCredential,
    level=2,
    path="jwts",
    file_key=None,
    endpoint_key="key",
    unique=(("key",),),
    match=("key",),
    parents={"consumer": Parent("consumers", nested_path="jwt", nested_key="jwt_secrets", required=True)},
    generated=frozenset({"key", "secret"}),
)

ACLS = EntityType(
    name="acls",
    kind="acl-group",
    model=Acl,
    level=2,
    path="acls",
    file_key=None,
    endpoint_key=None,
    unique=(("consumer", "group"),),
    match=(),
    parents={"consumer": Parent("consumers", nested_path="acls", nested_key="acls", required=True)},
)

MTLS_AUTH_CREDENTIALS = EntityType(
    name="mtls_auth_credentials",
    kind="mtls-auth",
    model=MtlsAuthCredential,
    level=2,
    path="mtls-auths",
    file_key=None,
    endpoint_key=None,
    match_together=("consumer", "subject_name", "ca_certificate"),
    parents={
        "consumer": Parent("consumers", nested_path="mtls-auth", nested_key="mtls_auth_credentials", required=True),
        "ca_certificate": Parent("ca_certificates", on_delete="refuse"),
    },
    keeps_id=True,
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

TARGETS = EntityType(
    name="targets",
    kind="target",
    model=Target,
    level=3,
    path="targets",
    file_key=None,
    endpoint_key="target",
    unique=(("upstream", "target"),),
    parents={"upstream": Parent("upstreams", nested_path="targets", nested_key="targets", required=True)},
    fractional_times=True,
)

CONSUMER_GROUP_CONSUMERS = EntityType(
    name="consumer_group_consumers",
    kind="consumer-group-consumer",
    model=ConsumerGroupMember,
    level=3,
    path="consumer_group_consumers",
    file_key=None,
    endpoint_key=None,
    unique=(("consumer_group", "consumer"),),
    parents={
        "consumer_group": Parent("consumer_groups", nested_key="consumers", required=True, link="consumer"),
        "consumer": Parent("consumers", nested_key="groups", required=True, link="consumer_group"),
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
    unique=(("name", "service", "route", "consumer", "consumer_group"), ("instance_name",)),
    parents={
        "service": Parent("services", nested_path="plugins", nested_key="plugins", as_text=True),
        "route": Parent("routes", nested_path="plugins", nested_key="plugins", as_text=True),
        "consumer": Parent("consumers", nested_path="plugins", nested_key="plugins", as_text=True),
        "consumer_group": Parent(
            "consumer_groups",
            nested_path="plugins",
            nested_key="plugins",
            as_text=True,
            nested_fields=frozenset({"id", "name", "config", "instance_name", "partials", "tags", "_config"}),
        ),
    },
    lists={"partials": Listed("partials", key="id")},
    config_key="name",
    configs=PLUGIN_CONFIGS,
)

FILTER_CHAINS = EntityType(
    name="filter_chains",
    kind="filter-chain",
    model=FilterChain,
    level=4,
    path="filter-chains",
    file_key="filter_chains",
    endpoint_key="name",
    unique=(("name",), ("service",), ("route",)),
    match=("name", "service", "route"),
    parents={
        "service": Parent("services", nested_path="filter-chains", nested_key="filter_chains"),
        "route": Parent("routes", nested_path="filter-chains", nested_key="filter_chains"),
    },
)

ENTITY_TYPES: Mapping[str, EntityType] = {
    row.name: row
    for row in (
        *(CERTIFICATES, CA_CERTIFICATES, CONSUMERS, VAULTS, PARTIALS, KEY_SETS),
        *(CONSUMER_GROUPS, SNIS, SERVICES, UPSTREAMS, KEYS),
        *(KEYAUTH_CREDENTIALS, BASICAUTH_CREDENTIALS, HMACAUTH_CREDENTIALS, JWT_SECRETS, ACLS, MTLS_AUTH_CREDENTIALS),
        *(ROUTES, TARGETS, CONSUMER_GROUP_CONSUMERS),
        *(PLUGINS, FILTER_CHAINS),
    )
}
"""All kinds, in order of creation."""


def lists_of(name: str) -> list[tuple[EntityType, str, Listed]]:
    """The kinds that list entities of kind `name`, each with the field and how it does."""
    return [
        (row, field_name, listed)
        for row in ENTITY_TYPES.values()
        for field_name, listed in row.lists.items()
        if listed.type == name
    ]


def children_of(name: str) -> list[tuple[EntityType, str, Parent]]:
    """The kinds that refer to `name`, each with the field and the rule by which it does."""
    return [
        (row, field_name, parent)
        for row in ENTITY_TYPES.values()
        for field_name, parent in row.parents.items()
        if parent.type == name
    ]
