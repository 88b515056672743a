"""Owners of entities, the history of snapshots, saved plans."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ID = sa.String(36)


def upgrade() -> None:
    op.create_table(
        "entity_owners",
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("entity_type", sa.String(64), nullable=False),
        sa.Column("entity_id", ID, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        _control_plane("entity_owners"),
        sa.PrimaryKeyConstraint("control_plane_id", "entity_type", "entity_id", name="pk_entity_owners"),
    )
    op.create_table(
        "snapshots",
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(32), nullable=False),
        sa.Column("author", sa.String(256), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("summary", sa.JSON, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        _control_plane("snapshots"),
        sa.PrimaryKeyConstraint("control_plane_id", "version", name="pk_snapshots"),
    )
    op.create_index("ix_snapshots_created_ms", "snapshots", ["created_ms"])
    op.create_table(
        "saved_plans",
        sa.Column("id", ID, nullable=False),
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("author", sa.String(256), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("applied_version", sa.BigInteger, nullable=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        _control_plane("saved_plans"),
        sa.PrimaryKeyConstraint("id", name="pk_saved_plans"),
    )
    op.create_index("ix_saved_plans_control_plane_id", "saved_plans", ["control_plane_id"])
    op.create_index("ix_saved_plans_expires_ms", "saved_plans", ["expires_ms"])


def downgrade() -> None:
    for table in ("saved_plans", "snapshots", "entity_owners"):
        op.drop_table(table)


def _control_plane(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["control_plane_id"], ["control_planes.id"], name=f"fk_{table}_control_plane_id", ondelete="CASCADE"
    )
