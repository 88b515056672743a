"""What decK sent to the Admin API once is answered today as decK needs it."""

from __future__ import annotations

import pytest

from tests.control_plane.client import Client
from tests.control_plane.deck.admin import DIRECTORY, AdminReplay
from tests.control_plane.deck.replay import load, names


@pytest.mark.parametrize("name", names(DIRECTORY))
async def test_a_recorded_run_is_answered_as_its_sender_needs_it(client: Client, name: str) -> None:
    replay = AdminReplay(client)
    for run in load(name, DIRECTORY):
        await replay.run(run)


def test_there_is_a_transcript_of_each_kind_of_run() -> None:
    commands = {run["command"].split()[2] for name in names(DIRECTORY) for run in load(name, DIRECTORY)}
    assert commands >= {"ping", "validate", "diff", "sync", "apply", "dump", "reset"}
