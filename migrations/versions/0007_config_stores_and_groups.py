"""Config stores with their secrets; who is in which group of control planes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ID = sa.String(36)


def upgrade() -> None:
    op.create_table(
        "control_plane_members",
        sa.Column("group_id", ID, nullable=False),
        sa.Column("member_id", ID, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        _reference("control_plane_members", "group_id", "control_planes"),
        _reference("control_plane_members", "member_id", "control_planes"),
        sa.PrimaryKeyConstraint("group_id", "member_id", name="pk_control_plane_members"),
    )
    op.create_index("ix_control_plane_members_member_id", "control_plane_members", ["member_id"])
    op.create_table(
        "config_stores",
        sa.Column("id", ID, nullable=False),
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        _reference("config_stores", "control_plane_id", "control_planes"),
        sa.PrimaryKeyConstraint("id", name="pk_config_stores"),
    )
    op.create_index("ix_config_stores_control_plane_id_id", "config_stores", ["control_plane_id", "id"])
    op.create_table(
        "config_store_secrets",
        sa.Column("store_id", ID, nullable=False),
        sa.Column("key", sa.String(512), nullable=False),
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        _reference("config_store_secrets", "store_id", "config_stores"),
        _reference("config_store_secrets", "control_plane_id", "control_planes"),
        sa.PrimaryKeyConstraint("store_id", "key", name="pk_config_store_secrets"),
    )
    op.create_index("ix_config_store_secrets_control_plane_id", "config_store_secrets", ["control_plane_id"])


def downgrade() -> None:
    for table in ("config_store_secrets", "config_stores", "control_plane_members"):
        op.drop_table(table)


def _reference(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE")
