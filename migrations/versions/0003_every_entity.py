"""Every kind of entity; plugins of consumer groups; client certificates of services."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.String(36)
CONSUMER = {"consumer": ("consumers", "CASCADE")}
CERTIFICATE = {"client_certificate": ("certificates", None)}
PLUGIN_SCOPES = 4
"""Fields of a plugin's identity before this revision; the consumer group is added behind them."""


def upgrade() -> None:
    _create("certificates")
    _create("ca_certificates", unique=("cert_digest",))
    _create("vaults", unique=("prefix",))
    _create("partials", unique=("name",))
    _create("key_sets", unique=("name",))
    _create("consumer_groups", unique=("name",))
    _create("snis", {"certificate": ("certificates", "CASCADE")}, ("name",), required=("certificate",))
    _create("upstreams", CERTIFICATE, ("name",))
    _create("keys", {"set": ("key_sets", "CASCADE")}, ("name", "identity"))
    for table, unique in (
        ("basicauth_credentials", ("username",)),
        ("hmacauth_credentials", ("username",)),
        ("jwt_secrets", ("key",)),
        ("acls", ("identity",)),
    ):
        _create(table, CONSUMER, unique, required=("consumer",))
    mtls = {**CONSUMER, "ca_certificate": ("ca_certificates", None)}
    _create("mtls_auth_credentials", mtls, required=("consumer",))
    target = {"upstream": ("upstreams", "CASCADE")}
    _create("targets", target, ("identity",), required=("upstream",), lookup=("target",), time=sa.Double)
    members = {"consumer_group": ("consumer_groups", "CASCADE"), **CONSUMER}
    _create("consumer_group_consumers", members, ("identity",), required=tuple(members))
    scopes = {name: (f"{name}s", "CASCADE") for name in ("service", "route")}
    _create("filter_chains", scopes, ("name", "service", "route"))
    _add_reference("services", "client_certificate", "certificates", None)
    _add_reference("plugins", "consumer_group", "consumer_groups", "CASCADE")
    _rewrite_identities(lambda scope: [*scope, None])


def downgrade() -> None:
    op.execute(sa.text("DELETE FROM plugins WHERE consumer_group_id IS NOT NULL"))
    _rewrite_identities(lambda scope: scope[:PLUGIN_SCOPES])
    _drop_reference("plugins", "consumer_group")
    _drop_reference("services", "client_certificate")
    for table in (
        *("filter_chains", "consumer_group_consumers", "targets", "mtls_auth_credentials", "acls", "jwt_secrets"),
        *("hmacauth_credentials", "basicauth_credentials", "keys", "upstreams", "snis", "consumer_groups"),
        *("key_sets", "partials", "vaults", "ca_certificates", "certificates"),
    ):
        op.execute(sa.text("DELETE FROM entity_tags WHERE entity_type = :name").bindparams(name=table))
        op.drop_table(table)


def _create(
    table: str,
    references: Mapping[str, tuple[str, str | None]] | None = None,
    unique: tuple[str, ...] = (),
    *,
    required: tuple[str, ...] = (),
    lookup: tuple[str, ...] = (),
    time: Any = sa.BigInteger,
) -> None:
    """A kind of entity: `references` are field → (table, what happens here when the row there is deleted)."""
    known = references or {}
    op.create_table(
        table,
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("id", ID, nullable=False),
        *(sa.Column(f"{field}_id", ID, nullable=field not in required) for field in known),
        *(sa.Column(field, sa.Text, nullable=True) for field in (*unique, *lookup)),
        sa.Column("written", sa.JSON, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        *(sa.Column(name, time, nullable=False) for name in ("created_at", "updated_at")),
        sa.ForeignKeyConstraint(
            ["control_plane_id"], ["control_planes.id"], name=f"fk_{table}_control_plane_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("control_plane_id", "id", name=f"pk_{table}"),
        *(
            sa.ForeignKeyConstraint(
                ["control_plane_id", f"{field}_id"],
                [f"{target}.control_plane_id", f"{target}.id"],
                name=f"fk_{table}_control_plane_id_{field}_id",
                ondelete=rule,
            )
            for field, (target, rule) in known.items()
        ),
        *(
            sa.UniqueConstraint("control_plane_id", field, name=f"uq_{table}_control_plane_id_{field}")
            for field in unique
        ),
    )
    for column in ("revision", *(f"{field}_id" for field in known), *lookup):
        _create_index(table, column)


def _create_index(table: str, column: str) -> None:
    op.create_index(f"ix_{table}_control_plane_id_{column}", table, ["control_plane_id", column])


def _add_reference(table: str, field: str, target: str, rule: str | None) -> None:
    with op.batch_alter_table(table) as batch:
        batch.add_column(sa.Column(f"{field}_id", ID, nullable=True))
        batch.create_foreign_key(
            f"fk_{table}_control_plane_id_{field}_id",
            target,
            ["control_plane_id", f"{field}_id"],
            ["control_plane_id", "id"],
            ondelete=rule,
        )
    _create_index(table, f"{field}_id")


def _drop_reference(table: str, field: str) -> None:
    op.drop_index(f"ix_{table}_control_plane_id_{field}_id", table)
    with op.batch_alter_table(table) as batch:
        batch.drop_constraint(f"fk_{table}_control_plane_id_{field}_id", type_="foreignkey")
        batch.drop_column(f"{field}_id")


def _rewrite_identities(change: Callable[[list[Any]], list[Any]]) -> None:
    """A plugin's identity is the JSON text of its name and scopes: one more scope, or one less."""
    connection = op.get_bind()
    plugins = sa.table(
        "plugins", sa.column("control_plane_id", ID), sa.column("id", ID), sa.column("identity", sa.Text)
    )
    rows = connection.execute(sa.select(plugins).where(plugins.c.identity.is_not(None))).all()
    for control_plane_id, plugin_id, identity in rows:
        text = json.dumps(change(json.loads(identity)), separators=(",", ":"), ensure_ascii=False)
        connection.execute(
            plugins.update()
            .where(plugins.c.control_plane_id == control_plane_id, plugins.c.id == plugin_id)
            .values(identity=text)
        )
