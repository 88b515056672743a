"""A control plane that is killed at random instants in the middle of its applies, again and again. Run by its test.

Every life is a forked process. It looks at what the life before it left, which must be the document from before its
last apply or the whole of the one that was being applied, then applies documents of its own under a timer that ends the
process as `kill -9` would: the kernel takes it away, nothing of ours runs any more.

Arguments: state directory, database URL, number of lives, seed. Prints counts as JSON; exit code 1 and a traceback when
a life found anything else.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from control_plane.database import driver_url
from tests.control_plane.client import Client, running_client
from tests.control_plane.test_apply import plain, random_document, summary

LONGEST_LIFE = 0.4
"""Seconds: several applies."""
OLD, NEW, FINISHED = "left the old state", "left the new state", "was between two applies"


async def life(state: Path, url: str, seed: int, mortal: bool) -> None:
    """Judge what was left, then apply document after document until the end comes; one, when none is set."""
    await _ended(url)
    record = json.loads((state / "record").read_text()) if (state / "record").exists() else {}
    rng = random.Random(seed)
    async with running_client(state, url, record.get("id", "")) as client:
        if record:
            _tell(state, await _outcome(client, record, plain(await client.dump())))
        if mortal:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, LONGEST_LIFE))
        while True:
            record = {"id": client.id, "before": plain(await client.dump()), "document": random_document(rng)}
            _write(state, record | {"finished": False})
            await client.apply(record["document"], force=True)
            _write(state, record | {"finished": True})
            if not mortal:
                return


async def _outcome(client: Client, record: dict[str, Any], found: Any) -> str:
    same = summary(await client.apply(record["document"], commit=False, force=True)) == (0, 0, 0)
    if record["finished"]:
        assert same, "an apply that had been answered is gone"
        return FINISHED
    assert same or found == record["before"], f"neither the old nor the new state: {found}\nafter {record}"
    return NEW if same else OLD


async def _ended(url: str) -> None:
    """Wait until PostgreSQL has noticed that its client is dead: a commit that was on its way counts."""
    if not url.startswith("postgresql"):
        return
    # Each look in a transaction of its own: within one, PostgreSQL shows its activity as it was at the first look.
    engine = create_async_engine(driver_url(url), isolation_level="AUTOCOMMIT")
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    try:
        async with asyncio.timeout(20), engine.connect() as connection:
            while (await connection.execute(text(others))).scalar_one():  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.005)
    finally:
        await engine.dispose()


def _write(state: Path, record: dict[str, Any]) -> None:
    (state / "new-record").write_text(json.dumps(record))
    (state / "new-record").replace(state / "record")


def _tell(state: Path, outcome: str) -> None:
    with (state / "outcomes").open("a") as file:
        file.write(outcome + "\n")


def lives(state: Path, url: str, count: int, seed: int) -> dict[str, int]:
    """Live `count` times under the timer, the first one and the last one without it. Raises SystemExit."""
    state.mkdir()
    killed = 0
    for number in range(count + 2):
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(life(state, url, seed + number, 0 < number <= count))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != (-signal.SIGALRM if 0 < number <= count else 0):
            sys.exit(f"life {number} (seed {seed + number}) ended with {status}")
        killed += status != 0
    outcomes = (state / "outcomes").read_text().splitlines()
    return {"killed": killed, **{outcome: outcomes.count(outcome) for outcome in (OLD, NEW, FINISHED)}}


if __name__ == "__main__":
    print(json.dumps(lives(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
