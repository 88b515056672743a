"""`python -m migrations [revision SUBJECT]`: upgrade DATABASE_URL's tables, or write the next revision for them."""

from __future__ import annotations

import asyncio
import sys

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from control_plane.database import Database
from control_plane.settings import Settings


async def main(arguments: list[str]) -> None:
    database = Database(Settings.read().database_url)
    try:
        await database.migrate()
        if arguments[:1] == ["revision"]:
            async with database.engine.connect() as connection:
                await connection.run_sync(_write_revision, " ".join(arguments[1:]))
    finally:
        await database.close()


def _write_revision(connection: Connection, subject: str) -> None:
    config = Config()
    config.set_main_option("script_location", "migrations:")
    config.attributes["connection"] = connection
    script = command.revision(config, subject, autogenerate=True, rev_id=_next_number(config))
    sys.stdout.write(f"{script}\n")


def _next_number(config: Config) -> str:
    from alembic.script import ScriptDirectory

    head = ScriptDirectory.from_config(config).get_current_head()
    return f"{int(head or 0) + 1:04d}"


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
