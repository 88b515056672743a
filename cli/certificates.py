"""A node's client certificate: made once per stack, pinned at the control plane."""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cli.state import write_private

LIFETIME = datetime.timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Pair:
    certificate: Path
    key: Path

    @property
    def exists(self) -> bool:
        return self.certificate.exists() and self.key.exists()

    @property
    def pem(self) -> str:
        return self.certificate.read_text()


def pair_in(folder: Path) -> Pair:
    """Where a folder's certificate and key stand, whether or not they are there."""
    return Pair(folder / "client.crt", folder / "client.key")


def write_pair(pair: Pair, name: str) -> None:
    """Make a certificate and put it there. Each has a subject of its own, so that pins never shadow one another."""
    certificate, key = make_pair(name)
    write_private(pair.key, key)
    write_private(pair.certificate, certificate)


def make_pair(name: str) -> tuple[str, str]:
    """A self-signed client certificate and its key, both PEM. What makes it trusted is that it is pinned."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name[:40]} {secrets.token_hex(8)}")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
