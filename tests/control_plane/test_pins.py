"""Client certificates that one library or the other cannot read: refused when given, passed over when stored."""

from __future__ import annotations

import asyncio
import logging
import ssl
import uuid

import pytest
from sqlalchemy import insert

from control_plane.models import REVOKED_CERTIFICATES, DataPlaneCertificate
from control_plane.pins import read_certificate
from tests.control_plane.administration import Admin
from tests.control_plane.client import Client
from tests.control_plane.scripted_node import ScriptedNode, channel, key_pair
from tests.pems import certificate_pem

_VERSION = bytes.fromhex("a003020102")
"""As it stands in a certificate of version 3, before the serial number."""


def of_version(number: int) -> str:
    return _changed(key_pair().cert, _VERSION, _VERSION[:-1] + bytes([number - 1]))


def of_negative_serial() -> str:
    der = ssl.PEM_cert_to_DER_cert(key_pair().cert)
    start = der.index(_VERSION) + len(_VERSION) + 2
    # Not 0xFF: with some second bytes that would be one byte more than DER allows, and no certificate at all.
    return ssl.DER_cert_to_PEM_cert(der[:start] + b"\x80" + der[start + 1 :])


def for_one_library_only() -> str:
    """A name whose type is cut short: OpenSSL, which the TLS handshake is done with, reads no such certificate."""
    return _changed(certificate_pem("n"), bytes.fromhex("0603550403"), bytes.fromhex("0601550403"))


def _changed(pem: str, old: bytes, new: bytes) -> str:
    der = ssl.PEM_cert_to_DER_cert(pem)
    assert old in der
    return ssl.DER_cert_to_PEM_cert(der.replace(old, new))


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize(
    ("cert", "said"),
    [
        (of_version(4), "cert: not a certificate in PEM form"),
        (of_version(5), "cert: not a certificate in PEM form"),
        (of_negative_serial(), "cert: its serial number must be positive"),
        (for_one_library_only(), "cert: OpenSSL cannot read this certificate"),
    ],
    ids=["version 4", "version 5", "negative serial number", "not for OpenSSL"],
)
async def test_a_certificate_that_cannot_be_used_is_refused_by_its_field(admin: Admin, cert: str, said: str) -> None:
    path = f"{admin.path}/dp-client-certificates"
    for refused in (
        await admin.http.post(path, json={"cert": cert}),
        await admin.http.put(f"{path}/{admin.certificate_id}", json={"cert": cert}),
    ):
        assert refused.status_code == 400
        assert said in refused.json()["message"]
    (kept,) = (await admin.http.get(path)).json()["items"]
    assert kept["cert"] == admin.pair.cert


@pytest.mark.parametrize("cert", [of_version(4), for_one_library_only()], ids=["version 4", "not for OpenSSL"])
async def test_a_stored_certificate_that_cannot_be_read_shuts_out_nobody_else(
    admin: Admin, cert: str, caplog: pytest.LogCaptureFixture
) -> None:
    control_plane_id = admin.path.rsplit("/", 1)[1]
    stored = {"control_plane_id": control_plane_id, "fingerprint": "f" * 64, "title": "broken", "cert": cert}
    times = {"created_at": 1, "updated_at": 1}
    async with admin.plane.database.writing() as session:
        await session.execute(insert(DataPlaneCertificate).values(id=str(uuid.uuid4()), **stored, **times))
        gone = {**stored, "fingerprint": "e" * 64, "revoked_at": 1}
        await session.execute(insert(REVOKED_CERTIFICATES).values(**gone))
    renewed = key_pair()
    with caplog.at_level(logging.WARNING):
        await admin.register(renewed)
        await admin.plane.pins.refresh()
    for pair in (admin.pair, renewed):
        async with channel(admin.plane, pair) as opened:
            assert (await ScriptedNode(opened).hello()).HasField("welcome")
    lines = [line for line in caplog.messages if "cannot be used" in line]
    assert sorted(line.split("…")[0][-16:] for line in lines) == ["e" * 16, "f" * 16]
    assert all("(broken) of control plane first" in line for line in lines)


async def test_a_certificate_that_several_register_at_once_is_of_one_control_plane_only(client: Client) -> None:
    other = await client.another("other")
    for number in range(8):
        body = {"cert": certificate_pem(f"raced {number}")}
        paths = [f"/v2/control-planes/{one.id}/dp-client-certificates" for one in (client, other)]
        answers = await asyncio.gather(*(client.http.post(path, json=body) for path in paths))
        assert sorted(answer.status_code for answer in answers) == [201, 409]


async def test_registering_twice_changes_nothing_also_at_the_same_time(client: Client) -> None:
    path = f"/v2/control-planes/{client.id}/dp-client-certificates"
    for number in range(8):
        body = {"cert": certificate_pem(f"repeated {number}"), "title": "t"}
        answers = await asyncio.gather(*(client.http.post(path, json=body) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [201] * 3
        assert len({answer.json()["item"]["id"] for answer in answers}) == 1
    assert len((await client.get(path))["items"]) == 8
    told = (await client.get("/v2/audit-logs", {"entity_type": "dp_client_certificates"}))["data"]
    assert [line["action"] for line in told] == ["create"] * 8


async def test_a_certificate_is_revoked_once(client: Client) -> None:
    path = f"/v2/control-planes/{client.id}/dp-client-certificates"
    for number in range(8):
        made = await client.call("POST", path, {"cert": certificate_pem(f"revoked {number}")}, 201)
        gone = await asyncio.gather(*(client.http.delete(f"{path}/{made['item']['id']}") for _ in range(2)))
        assert sorted(answer.status_code for answer in gone) == [204, 404]
    query = {"entity_type": "dp_client_certificates", "action": "revoke"}
    assert len((await client.get("/v2/audit-logs", query))["data"]) == 8


async def test_one_that_an_earlier_version_registered_twice_is_of_the_first_and_told(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    other = await client.another("other")
    pem = certificate_pem("twice")
    stored = {"fingerprint": read_certificate(pem)[2], "cert": pem, "updated_at": 1}
    async with client.plane.database.writing() as session:
        for one, created_at in ((other, 1), (client, 2)):
            row = {"id": str(uuid.uuid4()), "control_plane_id": one.id, "created_at": created_at, **stored}
            await session.execute(insert(DataPlaneCertificate).values(row))
    with caplog.at_level(logging.ERROR):
        await client.plane.pins.refresh()
        await client.plane.pins.refresh()
    pin = client.plane.pins.of(stored["fingerprint"])
    assert pin is not None
    assert pin.control_plane_id == other.id
    (line,) = [line for line in caplog.messages if "is registered with control plane other too" in line]
    assert "of control plane first" in line
