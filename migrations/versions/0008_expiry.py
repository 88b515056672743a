"""Keys of key-auth: when they are over.

Their periods began when they were created, whatever was written since; that stays so for those that are there.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

CREDENTIALS = sa.table(
    "keyauth_credentials",
    sa.column("written", sa.JSON),
    *(sa.column(name, sa.BigInteger) for name in ("created_at", "updated_at", "expires_at")),
)


def upgrade() -> None:
    op.add_column("keyauth_credentials", sa.Column("expires_at", sa.BigInteger, nullable=True))
    op.create_index("ix_keyauth_credentials_expires_at", "keyauth_credentials", ["expires_at"])
    ttl = CREDENTIALS.c.written["ttl"].as_integer()
    moments = {"updated_at": CREDENTIALS.c.created_at, "expires_at": CREDENTIALS.c.created_at + ttl}
    op.execute(sa.update(CREDENTIALS).where(ttl > 0).values(moments))


def downgrade() -> None:
    op.drop_index("ix_keyauth_credentials_expires_at", "keyauth_credentials")
    op.drop_column("keyauth_credentials", "expires_at")
