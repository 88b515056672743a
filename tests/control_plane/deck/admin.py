"""decK as it speaks to Kong itself: `--kong-addr`, one base address per control plane."""

from __future__ import annotations

from pathlib import Path

from tests.control_plane.client import TOKEN
from tests.control_plane.deck.replay import Replay
from tests.control_plane.deck.served import Deck


class AdminDeck(Deck):
    """`deck gateway …` against the Admin API of one control plane resource."""

    def address(self) -> tuple[str, ...]:
        return ("--kong-addr", f"http://127.0.0.1:{self.port}/admin/{self.name}", "--kong-admin-token", TOKEN)


DIRECTORY = Path(__file__).parent / "admin_transcripts"


class AdminReplay(Replay):
    """One transcript of what decK sent to the Admin API."""

    def core(self) -> str:
        return "/admin/first"
