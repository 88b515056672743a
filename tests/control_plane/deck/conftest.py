"""decK itself, where a machine has it: `TANDEM_DECK` names the program. Everything else here runs without it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control_plane.client import Client
from tests.control_plane.deck.served import Deck, served


@pytest.fixture
async def deck(client: Client, tmp_path: Path) -> AsyncIterator[Deck]:
    """decK against a running control plane, on each database."""
    program = os.environ.get("TANDEM_DECK")
    if not program:
        pytest.skip("TANDEM_DECK does not name a decK program")
    async with served(client) as port:
        yield Deck(program, port, "first", tmp_path)
