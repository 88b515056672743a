"""What decK sent once is answered today as decK needs it, and what it would read back is what it had sent."""

from __future__ import annotations

import pytest

from tests.control_plane.client import Client
from tests.control_plane.deck.replay import Replay, load, names


@pytest.mark.parametrize("name", names())
async def test_a_recorded_run_is_answered_as_its_sender_needs_it(client: Client, name: str) -> None:
    replay = Replay(client)
    for run in load(name):
        await replay.run(run)
