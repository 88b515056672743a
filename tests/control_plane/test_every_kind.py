"""A document with an entity of every kind: applied, dumped, applied again."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from gateway_schema.registry import ENTITY_TYPES
from tests.control_plane.client import Client
from tests.control_plane.everything import CERTIFICATE, KINDS, everything

NOTHING = {"creating": 0, "updating": 0, "deleting": 0, "total": 0}


async def test_a_file_with_every_kind_is_applied_and_a_second_time_there_is_nothing_to_do(client: Client) -> None:
    first = await client.apply(everything())
    created = {change["kind"] for change in first["plan"]["changes"]["creating"]}
    assert created == {ENTITY_TYPES[name].kind for name in KINDS}
    assert (await client.apply(everything()))["plan"]["summary"] == NOTHING


async def test_what_was_dumped_applies_to_nothing_and_dumps_the_same(client: Client) -> None:
    await client.apply(everything())
    dumped = await client.dump()
    assert (await client.apply(dumped))["plan"]["summary"] == NOTHING
    assert await client.dump() == dumped


async def test_a_dump_stands_where_deck_expects_it(client: Client) -> None:
    await client.apply(everything())
    dumped = await client.dump()
    assert set(dumped) == set(everything()) | {"_konnect", "_info"}
    [alice, bob] = dumped["consumers"]
    assert (alice["groups"], bob["groups"]) == ([{"name": "gold"}], [{"name": "silver"}])
    assert (
        alice["mtls_auth_credentials"][0]["ca_certificate"]
        == everything()["consumers"][0]["mtls_auth_credentials"][0]["ca_certificate"]
    )
    [service] = dumped["services"]
    assert service["client_certificate"] == CERTIFICATE
    assert {key["set"]["name"] for key in dumped["keys"]} == {"signing"}
    [gold, _] = dumped["consumer_groups"]
    assert [plugin["name"] for plugin in gold["plugins"]] == ["ai-prompt-decorator"]
    both = next(plugin for plugin in dumped["plugins"] if plugin.get("service"))
    assert (both["service"], both["consumer_group"]) == ("billing", "gold")
    assert both["partials"] == [{"name": "cache", "path": "config.vectordb"}]
    assert "cert_digest" not in dumped["ca_certificates"][0]
    assert {target["target"] for target in dumped["upstreams"][0]["targets"]} >= {
        "a.test:8080",
        "b.test",
        "[0000:0000:0000:0000:0000:0000:0000:0001]:9000",
    }


async def test_a_dump_applies_to_another_control_plane(client: Client) -> None:
    await client.apply(everything())
    dumped = await client.dump()
    del dumped["_konnect"]
    other = await client.another("second")
    await other.apply(dumped)
    again = await other.dump()
    del again["_konnect"]
    assert again == dumped


def accepts(consumer: dict[str, Any], credential: dict[str, Any], password: str) -> bool:
    """As a node decides it: the digest is made with the id of the consumer whose the credential is."""
    digest = hashlib.sha1(f"{password}{consumer['id']}".encode(), usedforsecurity=False).hexdigest()
    return credential["consumer"] == {"id": consumer["id"]} and credential["password"] == digest


@pytest.mark.parametrize("restored_into", ["the same, emptied", "another", "another that knows her already"])
async def test_who_could_log_in_still_can_when_a_dump_is_restored(client: Client, restored_into: str) -> None:
    await client.apply(everything())
    dumped = await client.dump()
    target = client
    if restored_into == "the same, emptied":
        await client.apply({"_format_version": "3.0"}, mode="reset")
    else:
        target = await client.another("second")
        del dumped["_konnect"]
    if restored_into == "another that knows her already":
        await target.call("PUT", "consumers/alice", {})
    await target.apply(dumped, force=True)
    [credential] = (await target.get("basic-auths"))["data"]
    assert accepts(await target.get("consumers/alice"), credential, "open sesame")
    assert (await target.apply(dumped))["plan"]["summary"] == NOTHING


async def test_a_document_without_them_deletes_all_of_them(client: Client) -> None:
    await client.apply(everything())
    emptied = await client.apply({"_format_version": "3.0"}, force=True)
    assert emptied["plan"]["summary"]["deleting"] == emptied["plan"]["summary"]["total"] > len(KINDS)
    assert (await client.dump()) == {"_format_version": "3.0", "_konnect": {"control_plane_name": "first"}}


@pytest.mark.parametrize("missing", [key for key in everything() if key != "_format_version"])
async def test_a_list_goes_while_something_else_comes(client: Client, missing: str) -> None:
    """Values that are unique are freed before others are written: there is not one in every kind."""
    document = everything()
    await client.apply(document)
    without = {key: value for key, value in _without_references(document).items() if key != missing}
    without["vaults"] = [*without.get("vaults", []), {"prefix": "another", "name": "env"}]
    plan = (await client.apply(without, force=True))["plan"]["summary"]
    assert plan["deleting"] > 0
    assert plan["creating"] == 1
    assert (await client.apply(without, commit=False))["plan"]["summary"] == NOTHING


def _without_references(document: dict[str, Any]) -> dict[str, Any]:
    """The document without what refers from one list to another."""
    for group in document["consumer_groups"]:
        group.pop("consumers", None)
    for consumer in document["consumers"]:
        for key in ("groups", "mtls_auth_credentials"):
            consumer.pop(key, None)
    for service in document["services"]:
        for key in ("client_certificate", "ca_certificates"):
            service.pop(key, None)
    for key in document["keys"]:
        key.pop("set")
    document["plugins"].pop()
    return document


async def test_a_masked_password_is_refused_wherever_it_comes_in(client: Client) -> None:
    masked = {"consumers": [{"username": "c", "basicauth_credentials": [{"username": "u", "password": "[masked]"}]}]}
    await client.apply({"_format_version": "3.0", **masked}, expect=400)
    await client.call("POST", "consumers", {"username": "c"}, 201)
    body = {"username": "u", "password": "[masked]"}
    await client.call("POST", "consumers/c/basic-auth", body, 400)


@pytest.mark.parametrize("options", [{}, {"skip_hash": True}])
async def test_an_empty_password_is_refused_wherever_it_comes_in(client: Client, options: dict[str, Any]) -> None:
    said = "password: length must be at least 1"
    empty = {"username": "u", "password": "", **options}
    in_file = {"_format_version": "3.0", "consumers": [{"username": "c", "basicauth_credentials": [empty]}]}
    assert said in (await client.apply(in_file, 400))["message"]
    await client.call("POST", "consumers", {"username": "c"}, 201)
    assert said in (await client.call("POST", "consumers/c/basic-auth", empty, 400))["message"]
    assert said in (await client.call("PUT", "consumers/c/basic-auth/u", empty, 400))["message"]
    await client.call("POST", "consumers/c/basic-auth", {"username": "u", "password": "open sesame"}, 201)
    assert said in (await client.call("PATCH", "consumers/c/basic-auth/u", {"password": "", **options}, 400))["message"]


async def test_a_target_with_a_zone_is_refused_wherever_it_comes_in(client: Client) -> None:
    said = "Invalid target; not a valid hostname or ip address"
    target = {"target": "fe80::1%eth0"}
    in_file = {"_format_version": "3.0", "upstreams": [{"name": "u", "targets": [target]}]}
    assert said in (await client.apply(in_file, 400))["message"]
    await client.call("POST", "upstreams", {"name": "u"}, 201)
    assert said in (await client.call("POST", "upstreams/u/targets", target, 400))["message"]


async def test_a_vault_is_shown_as_it_was_written(client: Client) -> None:
    """decK takes what is filled in, or left out, for a difference, and cannot say an empty record."""
    vaults = [
        {"prefix": "bare", "name": "env"},
        {"prefix": "nulled", "name": "env", "config": {"prefix": "X_", "ttl": None}},
    ]
    await client.apply({"_format_version": "3.0", "vaults": vaults})
    assert [(await client.get(f"vaults/{vault['prefix']}"))["config"] for vault in vaults] == [
        None,
        {"prefix": "X_", "ttl": None},
    ]
    dumped = await client.dump()
    assert dumped["vaults"] == vaults
    assert (await client.apply(dumped))["plan"]["summary"] == NOTHING


async def test_memberships_said_from_both_ends_are_one(client: Client) -> None:
    document: dict[str, Any] = {
        "_format_version": "3.0",
        "consumers": [{"username": "bob", "groups": [{"name": "gold"}]}],
        "consumer_groups": [{"name": "gold", "consumers": [{"username": "bob"}]}],
    }
    applied = await client.apply(document)
    assert applied["plan"]["summary"]["creating"] == 3
    group = await client.get("consumer_groups/gold/consumers")
    assert len(group["data"]) == 1


async def test_a_password_in_a_file_is_recognised_by_its_digest(client: Client) -> None:
    document = everything()
    await client.apply(document)
    document["consumers"][0]["basicauth_credentials"][0]["password"] = "another"
    changed = await client.apply(document)
    assert changed["plan"]["summary"]["updating"] == 1
    assert (await client.apply(document))["plan"]["summary"] == NOTHING


async def test_a_partial_or_an_authority_that_is_not_there_is_refused_by_name(client: Client) -> None:
    document = everything()
    document["plugins"][1]["partials"] = [{"name": "cash"}]
    refused = await client.apply(document, 400)
    assert "there is no partial 'cash'" in refused["message"]
    assert "did you mean 'cache'?" in refused["message"]
    document = everything()
    document["services"][0]["ca_certificates"] = [CERTIFICATE]
    refused = await client.apply(document, 400)
    assert "there is no ca-certificate" in refused["message"]


async def test_what_another_set_of_tags_lists_cannot_be_deleted(client: Client) -> None:
    authority = {**everything()["ca_certificates"][0], "tags": ["a"]}
    await client.call("PUT", f"ca_certificates/{authority['id']}", authority)
    listing = {"name": "s", "host": "h.test", "protocol": "https", "ca_certificates": [authority["id"]], "tags": ["b"]}
    await client.call("POST", "services", listing, 201)
    empty = {"_format_version": "3.0", "_info": {"select_tags": ["a"]}}
    refused = await client.apply(empty, 400, force=True)
    assert "service s refers to it" in refused["message"]
