"""The real decK against the Admin API: the same tests as on Konnect's face, and what is different there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control_plane.client import TOKEN, Client
from tests.control_plane.deck import test_live as konnect
from tests.control_plane.deck.admin import AdminDeck
from tests.control_plane.deck.documents import everything
from tests.control_plane.deck.served import Deck, served

test_validate_says_what_is_wrong = konnect.test_validate_says_what_is_wrong
test_a_file_with_everything_is_synced_once = (
    konnect.test_a_file_with_everything_is_synced_once_and_then_is_no_difference
)
test_more_than_a_page_of_a_kind = konnect.test_more_than_a_page_of_a_kind
test_sets_of_tags_leave_each_other_alone = konnect.test_sets_of_tags_leave_each_other_alone
test_apply_never_deletes = konnect.test_apply_never_deletes
test_variables_are_masked = konnect.test_variables_are_masked_and_a_missing_one_stops_before_any_request
test_a_name_that_moves_to_another_id = konnect.test_a_name_that_moves_to_another_id_is_deleted_and_created
test_a_reference_that_leads_nowhere = konnect.test_a_reference_that_leads_nowhere_is_refused_in_words
test_fifty_writers_at_once_lose_nothing = konnect.test_fifty_writers_at_once_lose_nothing


@pytest.fixture
async def deck(client: Client, tmp_path: Path) -> AsyncIterator[Deck]:
    """decK against the Admin API of a running control plane, on each database."""
    program = os.environ.get("TANDEM_DECK")
    if not program:
        pytest.skip("TANDEM_DECK does not name a decK program")
    async with served(client) as port:
        yield AdminDeck(program, port, "first", tmp_path)


async def test_ping_names_the_version(deck: Deck) -> None:
    assert "Kong version:  3." in (await deck.run("ping")).said


async def test_a_bearer_token_lets_in_too(deck: Deck) -> None:
    url = f"http://127.0.0.1:{deck.port}/admin/first"
    deck.address = lambda: ("--kong-addr", url, "--headers", f"Authorization: Bearer {TOKEN}")  # type: ignore[method-assign]
    assert "Successfully connected" in (await deck.run("ping")).said
    deck.address = lambda: ("--kong-addr", url)  # type: ignore[method-assign]
    assert "A valid token is required" in (await deck.run("ping", expect=1)).said


async def test_a_dump_restores_all_but_passwords(deck: Deck) -> None:
    """A dump holds their hashes, which the Admin API hashes again; decK warns of it."""
    await deck.run("sync", deck.file("everything.json", everything()))
    first = await deck.dump("first.yaml")
    dumped = str(deck.directory / "first.yaml")
    assert (await deck.run("sync", dumped)).counts == konnect.NOTHING
    await deck.run("reset", "-f")
    assert "services" not in await deck.dump("empty.yaml")
    created, updated, deleted = (await deck.run("sync", dumped)).counts
    assert created > 40
    assert (updated, deleted) == (0, 0)
    assert _without_passwords(await deck.dump("second.yaml")) == _without_passwords(first)


def _without_passwords(dump: str) -> list[str]:
    return [line for line in dump.splitlines() if "password:" not in line]


async def test_what_konnects_face_took_is_no_difference_here(deck: Deck) -> None:
    file = deck.file("everything.json", everything())
    konnects = Deck(os.environ["TANDEM_DECK"], deck.port, "first", deck.directory)
    await konnects.run("sync", file)
    assert (await deck.run("diff", "--non-zero-exit-code", file)).counts == konnect.NOTHING
    await deck.run("reset", "-f")
    await deck.run("sync", file)
    assert (await konnects.run("diff", "--non-zero-exit-code", file)).counts == konnect.NOTHING


async def test_a_dump_without_defaults_restores_the_same(deck: Deck) -> None:
    file = deck.file("everything.json", everything())
    await deck.run("sync", file)
    await deck.dump("short.yaml", "--skip-defaults")
    assert (await deck.run("diff", file, "--non-zero-exit-code")).counts == konnect.NOTHING
    assert (await deck.run("sync", str(deck.directory / "short.yaml"))).counts == konnect.NOTHING
