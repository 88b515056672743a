"""TLS to upstreams: who is believed, and who is not."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data_plane.errors import InvalidResponse, UpstreamTimeout
from data_plane.http1.client import Client, Origin, Timeouts
from data_plane.http1.tls import Contexts
from tests.data_plane.http1.peers import PATIENCE, forever, get

Start = Callable[..., Any]
Make = Callable[..., Client]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ISSUER = "test authority"
WAIT = Timeouts(PATIENCE, PATIENCE, PATIENCE)


@dataclass
class Authority:
    ca_file: Path
    context: ssl.SSLContext
    """Of a server named `upstream.test`."""


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(subject: str, key: Any, issuer_key: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(subject))
        .issuer_name(_named(ISSUER))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return builder.sign(issuer_key, hashes.SHA256())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("tls")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate(ISSUER, ca_key, ca_key, x509.BasicConstraints(ca=True, path_length=None))
    names = x509.SubjectAlternativeName([x509.DNSName("upstream.test"), x509.DNSName("localhost")])
    leaf = _certificate("upstream.test", key, ca_key, names)
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return Authority(folder / "ca.pem", context)


async def test_a_certificate_of_a_trusted_authority_is_believed(
    upstream: Start, make_client: Make, authority: Authority
) -> None:
    server = await upstream(forever(OK), context=authority.context)
    client = make_client(ca_bundle=str(authority.ca_file))
    for _ in range(2):
        origin = server.origin._replace(server_name="upstream.test")
        assert (await client.send(origin, get(), WAIT)).body == b"ok"
    assert (await client.send(server.origin._replace(host="localhost"), get(), WAIT)).body == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize("as_text", [False, True])
async def test_an_origin_may_bring_its_own_authority(
    upstream: Start, make_client: Make, authority: Authority, as_text: bool
) -> None:
    server = await upstream(forever(OK), context=authority.context)
    ca = authority.ca_file.read_text() if as_text else str(authority.ca_file)
    origin = server.origin._replace(server_name="upstream.test", ca=ca)
    assert (await make_client().send(origin, get(), WAIT)).body == b"ok"


async def test_the_servers_name_is_sent_and_checked(upstream: Start, make_client: Make, authority: Authority) -> None:
    asked: list[str | None] = []
    authority.context.sni_callback = lambda _, name, __: asked.append(name)
    server = await upstream(forever(OK), context=authority.context)
    client = make_client(ca_bundle=str(authority.ca_file))
    with pytest.raises(InvalidResponse) as raised:
        await client.send(server.origin._replace(server_name="other.test"), get(), WAIT)
    assert (raised.value.kind, raised.value.sent, raised.value.status) == ("tls", False, 502)
    assert asked == ["other.test"]


async def test_an_unknown_authority_is_not_believed(upstream: Start, make_client: Make, authority: Authority) -> None:
    server = await upstream(forever(OK), context=authority.context)
    client = make_client()
    with pytest.raises(InvalidResponse) as raised:
        await client.send(server.origin._replace(server_name="upstream.test"), get(), WAIT)
    assert (raised.value.kind, raised.value.sent) == ("tls", False)
    assert client.kept_count == 0


async def test_verification_can_be_switched_off(upstream: Start, make_client: Make, authority: Authority) -> None:
    server = await upstream(forever(OK), context=authority.context)
    assert (await make_client().send(server.origin._replace(verify=False), get(), WAIT)).body == b"ok"


async def test_trust_and_distrust_share_no_connection(upstream: Start, make_client: Make, authority: Authority) -> None:
    server = await upstream(forever(OK), context=authority.context)
    client = make_client()
    await client.send(server.origin._replace(verify=False), get(), WAIT)
    assert client.kept_count == 1
    with pytest.raises(InvalidResponse):
        await client.send(server.origin, get(), WAIT)


async def test_a_server_that_speaks_no_tls_fails_the_handshake(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    server = await upstream(play)
    with pytest.raises(InvalidResponse) as raised:
        await make_client().send(server.origin._replace(scheme="https"), get(), WAIT)
    assert (raised.value.kind, raised.value.sent) == ("tls", False)


async def test_a_handshake_cut_off_is_a_tls_failure(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    server = await upstream(play)
    with pytest.raises(InvalidResponse) as raised:
        await make_client().send(server.origin._replace(scheme="https"), get(), WAIT)
    assert (raised.value.kind, raised.value.sent) == ("tls", False)


async def test_a_handshake_that_stalls_counts_as_connecting(upstream: Start, make_client: Make) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await upstream(play)
    with pytest.raises(UpstreamTimeout) as raised:
        await make_client().send(server.origin._replace(scheme="https"), get(), Timeouts(0.1, 1, 1))
    assert (raised.value.kind, raised.value.sent) == ("timeout_connect", False)


async def test_an_authority_that_cannot_be_read_is_a_tls_failure(make_client: Make) -> None:
    origin = Origin("https", "127.0.0.1", 1, ca="/nowhere/ca.pem")
    with pytest.raises(InvalidResponse) as raised:
        await make_client().send(origin, get(), WAIT)
    assert raised.value.kind == "tls"


async def test_contexts_are_made_once_per_kind_of_trust(authority: Authority) -> None:
    contexts = Contexts(str(authority.ca_file))
    strict = await contexts.get(True, None)
    assert await contexts.get(True, None) is strict
    assert await contexts.get(False, None) is not strict
    assert strict.verify_mode is ssl.CERT_REQUIRED
    assert strict.check_hostname
