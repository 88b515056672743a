"""The real decK against the Konnect face. Skipped where `TANDEM_DECK` does not name the program."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.control_plane.client import Client
from tests.control_plane.deck.admin import AdminDeck
from tests.control_plane.deck.documents import certificate_pair, everything, many, shortened, stable_id, tagged
from tests.control_plane.deck.served import Deck
from tests.control_plane.deck.shim import shim

NOTHING = (0, 0, 0)


async def test_ping_names_the_organisation(deck: Deck, tmp_path: Path) -> None:
    certificate, key = certificate_pair()
    pem = tmp_path / "shim.pem"
    pem.write_text(certificate + key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    async with shim(deck.port, tls) as proxy:
        outcome = await deck.run("ping", "--tls-skip-verify", env={"HTTPS_PROXY": proxy})
    assert "Successfully Konnected to the Tandem organization!" in outcome.said


async def test_validate_says_what_is_wrong(deck: Deck) -> None:
    await deck.run("validate", deck.file("good.json", everything()))
    broken = {"_format_version": "3.0", "services": [{"name": "a", "host": "a.test", "port": 99_999}]}
    outcome = await deck.run("validate", deck.file("broken.json", broken), expect=1)
    assert "port: value should be between 0 and 65535" in outcome.said


async def test_a_file_with_everything_is_synced_once_and_then_is_no_difference(deck: Deck) -> None:
    file = deck.file("everything.json", everything())
    await deck.run("diff", "--non-zero-exit-code", file, expect=2)
    created, updated, deleted = (await deck.run("sync", file)).counts
    assert created > 40
    assert (updated, deleted) == (0, 0)
    assert (await deck.run("diff", "--non-zero-exit-code", file)).counts == NOTHING


@pytest.mark.parametrize("first", ["apply", "decK"])
async def test_what_a_file_leaves_out_means_the_same_to_both_tools(deck: Deck, client: Client, first: str) -> None:
    file = deck.file("shortened.json", shortened())
    if first == "apply":
        await client.apply(shortened())
    else:
        await deck.run("sync", file)
    for face in (deck, AdminDeck(deck.program, deck.port, deck.name, deck.directory)):
        assert (await face.run("diff", "--non-zero-exit-code", file)).counts == NOTHING
    planned = await client.apply(shortened(), commit=False)
    assert planned["plan"]["summary"]["total"] == 0


async def test_an_atomic_apply_s_dump_of_a_filter_chain_is_no_difference(deck: Deck, client: Client) -> None:
    chain = {"name": "chain", "filters": [{"name": "filter", "config": {"a": 1}}]}
    services = [{"name": "s", "host": "h", "filter_chains": [chain]}]
    await client.apply({"_format_version": "3.0", "services": services})
    dumped = deck.file("dump.json", await client.dump())
    assert (await deck.run("diff", "--non-zero-exit-code", dumped)).counts == NOTHING


async def test_a_dump_restores_what_was_dumped(deck: Deck) -> None:
    """A dump holds passwords as digests, so decK has to say that they are."""
    await deck.run("sync", deck.file("everything.json", everything()))
    first = await deck.dump("first.yaml")
    dumped = str(deck.directory / "first.yaml")
    assert (await deck.run("sync", dumped)).counts == NOTHING
    await deck.run("reset", "-f")
    assert "services" not in await deck.dump("empty.yaml")
    created, updated, deleted = (await deck.run("sync", dumped, "--skip-hash-for-basic-auth")).counts
    assert created > 40
    assert (updated, deleted) == (0, 0)
    assert await deck.dump("second.yaml") == first


@pytest.mark.parametrize("kind", ["services", "consumers"])
async def test_more_than_a_page_of_a_kind(deck: Deck, client: Client, kind: str) -> None:
    await client.apply(many(kind, 1200))
    file = deck.file("many.json", many(kind, 1201))  # of services decK asks for more, one request for each
    assert (await deck.run("sync", file, "--parallelism", "20")).counts == (1, 0, 0)
    assert (await deck.run("diff", file)).counts == NOTHING


async def test_sets_of_tags_leave_each_other_alone(deck: Deck) -> None:
    red, blue = deck.file("red.json", tagged("red", "r")), deck.file("blue.json", tagged("blue", "b"))
    await deck.run("sync", red)
    await deck.run("sync", blue)
    assert (await deck.run("diff", red, "--non-zero-exit-code")).counts == NOTHING
    assert (await deck.run("sync", deck.file("red.json", _empty("red")))).counts == (0, 0, 4)
    assert (await deck.run("diff", blue, "--non-zero-exit-code")).counts == NOTHING


def _empty(tag: str) -> dict[str, Any]:
    return {"_format_version": "3.0", "_info": {"select_tags": [tag]}}


async def test_apply_never_deletes(deck: Deck, client: Client) -> None:
    await deck.run("sync", deck.file("two.json", many("services", 2)))
    await deck.run("apply", deck.file("one.json", {"_format_version": "3.0", "consumers": [{"username": "bob"}]}))
    assert len((await client.get("services"))["data"]) == 2
    assert len((await client.get("consumers"))["data"]) == 1


def _secret(host: str) -> str:
    key = '${{ env "DECK_SECRET" }}'
    return f"""
_format_version: "3.0"
services: [{{name: a, host: {host}}}]
consumers:
  - username: bob
    tags: ["{key}"]
""".lstrip()


async def test_variables_are_masked_and_a_missing_one_stops_before_any_request(deck: Deck) -> None:
    await deck.run("sync", deck.file("s.yaml", _secret("a.test")), env={"DECK_SECRET": "hush-hush"})
    outcome = await deck.run("diff", deck.file("s.yaml", _secret("b.test")), env={"DECK_SECRET": "other-value"})
    assert "other-value" not in outcome.said
    assert "[masked]" in outcome.output
    deck.port = 1  # nobody listens there
    outcome = await deck.run("diff", deck.file("s.yaml", _secret("b.test")), expect=1)
    assert "environment variable 'DECK_SECRET' present in state file but not set" in outcome.said


async def test_a_name_that_moves_to_another_id_is_deleted_and_created(deck: Deck, client: Client) -> None:
    before = {"id": stable_id("before"), "name": "moved", "host": "a.test"}
    await deck.run("sync", deck.file("a.json", {"_format_version": "3.0", "services": [before]}))
    after = {**before, "id": stable_id("after")}
    outcome = await deck.run("sync", deck.file("b.json", {"_format_version": "3.0", "services": [after]}))
    assert outcome.counts == (1, 0, 1)
    assert [service["id"] for service in (await client.get("services"))["data"]] == [after["id"]]


async def test_a_reference_that_leads_nowhere_is_refused_in_words(deck: Deck) -> None:
    route = {"name": "lost", "paths": ["/lost"], "service": {"id": stable_id("nobody")}}
    service = {"name": "tls", "url": "https://a.test", "client_certificate": stable_id("nothing")}
    outcome = await deck.run("sync", deck.file("a.json", {"_format_version": "3.0", "services": [service]}), expect=1)
    assert "does not reference an existing 'certificates' entity" in outcome.said
    outcome = await deck.run("sync", deck.file("b.json", {"_format_version": "3.0", "routes": [route]}), expect=1)
    assert stable_id("nobody") in outcome.said


async def test_fifty_writers_at_once_lose_nothing(deck: Deck, client: Client) -> None:
    file = deck.file("many.json", many("services", 500))
    assert (await deck.run("sync", file, "--parallelism", "50")).counts == (500, 0, 0)
    assert (await deck.run("diff", file)).counts == NOTHING
    assert len((await client.get("services", {"size": "1000"}))["data"]) == 500
    changed = many("services", 500)
    for service in changed["services"]:
        service["retries"] = 1
    assert (await deck.run("sync", deck.file("more.json", changed), "--parallelism", "50")).counts == (0, 500, 0)
