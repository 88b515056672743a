"""First tables: control planes, tokens, certificates, nodes, and the entities of the first recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.String(36)


def upgrade() -> None:
    op.create_table(
        "control_planes",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("cluster_type", sa.String(64), nullable=False),
        sa.Column("auth_type", sa.String(32), nullable=False),
        sa.Column("proxy_urls", sa.JSON, nullable=False),
        sa.Column("cloud_gateway", sa.Boolean, nullable=False),
        sa.Column("config_version", sa.BigInteger, nullable=False),
        *_times(),
        sa.PrimaryKeyConstraint("id", name="pk_control_planes"),
        sa.UniqueConstraint("name", name="uq_control_planes_name"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("digest", name="uq_tokens_digest"),
    )
    op.create_table(
        "keyring",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_keyring"),
    )
    _create_data_plane_tables()
    _create_entity("consumers", {}, ("username", "custom_id"))
    _create_entity("services", {}, ("name",))
    _create_entity(
        "keyauth_credentials", {"consumer": ("consumers", "CASCADE")}, ("key_digest",), frozenset({"consumer"})
    )
    _create_entity("routes", {"service": ("services", None)}, ("name",))
    scopes = {name: (f"{name}s", "CASCADE") for name in ("service", "route", "consumer")}
    _create_entity("plugins", scopes, ("identity", "instance_name"))
    op.create_table(
        "entity_tags",
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("tag", sa.Text, nullable=False),
        sa.Column("entity_type", sa.String(64), nullable=False),
        sa.Column("entity_id", ID, nullable=False),
        _owner("entity_tags"),
        sa.PrimaryKeyConstraint("control_plane_id", "tag", "entity_type", "entity_id", name="pk_entity_tags"),
    )
    _create_index("entity_tags", "control_plane_id", "entity_type", "entity_id")


def downgrade() -> None:
    for table in (
        *("entity_tags", "plugins", "routes", "keyauth_credentials", "services", "consumers"),
        *("nodes", "dp_client_certificates", "keyring", "tokens", "control_planes"),
    ):
        op.drop_table(table)


def _create_data_plane_tables() -> None:
    op.create_table(
        "dp_client_certificates",
        sa.Column("id", ID, nullable=False),
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("title", sa.String(256), nullable=True),
        sa.Column("cert", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        *_times(),
        _owner("dp_client_certificates"),
        sa.PrimaryKeyConstraint("id", name="pk_dp_client_certificates"),
        _unique("dp_client_certificates", "fingerprint"),
    )
    _create_index("dp_client_certificates", "fingerprint")
    op.create_table(
        "nodes",
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("hostname", sa.String(256), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("config_version", sa.BigInteger, nullable=False),
        sa.Column("config_hash", sa.String(32), nullable=False),
        sa.Column("sync_state", sa.String(16), nullable=False),
        sa.Column("last_error", sa.JSON, nullable=True),
        sa.Column("workers", sa.JSON, nullable=False),
        *_times(),
        _owner("nodes"),
        sa.PrimaryKeyConstraint("control_plane_id", "id", name="pk_nodes"),
    )


def _create_entity(
    table: str,
    references: Mapping[str, tuple[str, str | None]],
    unique: tuple[str, ...],
    required: frozenset[str] = frozenset(),
) -> None:
    """A kind of entity: `references` are field → (table, what happens here when the row there is deleted)."""
    columns: list[Any] = [
        *(sa.Column(f"{field}_id", ID, nullable=field not in required) for field in references),
        *(sa.Column(field, sa.Text, nullable=True) for field in unique),
    ]
    constraints: list[Any] = [
        sa.ForeignKeyConstraint(
            ["control_plane_id", f"{field}_id"],
            [f"{target}.control_plane_id", f"{target}.id"],
            name=f"fk_{table}_control_plane_id_{field}_id",
            ondelete=rule,
        )
        for field, (target, rule) in references.items()
    ]
    op.create_table(
        table,
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("id", ID, nullable=False),
        *columns,
        sa.Column("written", sa.JSON, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        *_times(),
        _owner(table),
        sa.PrimaryKeyConstraint("control_plane_id", "id", name=f"pk_{table}"),
        *constraints,
        *(_unique(table, field) for field in unique),
    )
    _create_index(table, "control_plane_id", "revision")
    for field in references:
        _create_index(table, "control_plane_id", f"{field}_id")


def _times() -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.BigInteger, nullable=False) for name in ("created_at", "updated_at")]


def _owner(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["control_plane_id"], ["control_planes.id"], name=f"fk_{table}_control_plane_id", ondelete="CASCADE"
    )


def _unique(table: str, field: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint("control_plane_id", field, name=f"uq_{table}_control_plane_id_{field}")


def _create_index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))
