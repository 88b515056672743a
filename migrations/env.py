"""Alembic's entry: run revisions on the connection that the control plane hands over, or on DATABASE_URL.

`python -m migrations` upgrades by hand; `python -m migrations revision "subject"` writes the next revision.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from control_plane.models import metadata


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
