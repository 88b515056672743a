"""Tokens of two kinds, limited to a control plane, with `reveal` as a scope of its own; the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.String(36)
_OWNER = "fk_tokens_control_plane_id"
_AFTER = {"read": ["read"], "write": ["read", "write", "reveal"], "admin": ["read", "write", "reveal", "admin"]}
"""What each scope of old allowed, in the words of today."""


def upgrade() -> None:
    with op.batch_alter_table("tokens") as table:
        table.add_column(sa.Column("kind", sa.String(16), nullable=False, server_default="personal"))
        table.add_column(sa.Column("control_plane_id", ID, nullable=True))
        table.add_column(sa.Column("created_by", sa.String(256), nullable=False, server_default=""))
        table.create_foreign_key(_OWNER, "control_planes", ["control_plane_id"], ["id"], ondelete="CASCADE")
    _rewrite_scopes(lambda scopes: sorted({now for scope in scopes for now in _AFTER.get(scope, [])}))
    text = sa.String(256)
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        *(sa.Column(name, text, nullable=False) for name in ("principal_id", "principal_name", "client_address")),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("control_plane_id", ID, nullable=False),
        *(sa.Column(name, sa.String(64), nullable=False) for name in ("entity_type", "entity_id")),
        sa.Column("entity_name", sa.Text, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )
    op.create_index("ix_audit_log_control_plane_id_id", "audit_log", ["control_plane_id", "id"])
    op.create_index("ix_audit_log_at_us", "audit_log", ["at_us"])


def downgrade() -> None:
    op.drop_table("audit_log")
    strongest = ("admin", "write", "read")
    _rewrite_scopes(lambda scopes: [next(scope for scope in strongest if scope in scopes)] if scopes else [])
    with op.batch_alter_table("tokens") as table:
        table.drop_constraint(_OWNER, type_="foreignkey")
        for column in ("created_by", "control_plane_id", "kind"):
            table.drop_column(column)


def _rewrite_scopes(change: Callable[[Any], list[str]]) -> None:
    tokens = sa.table("tokens", sa.column("id", ID), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for token_id, scopes in connection.execute(sa.select(tokens.c.id, tokens.c.scopes)).all():
        connection.execute(sa.update(tokens).where(tokens.c.id == token_id).values(scopes=change(scopes)))
