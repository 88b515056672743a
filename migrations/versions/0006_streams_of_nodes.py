"""Nodes: which stream last wrote the row. Replicas share the table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("stream", sa.String(32), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("nodes", "stream")
