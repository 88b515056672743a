"""Who the control plane is to its nodes: a certificate authority of its own and a server certificate under it.

Both are made at the first start in the state directory; on PostgreSQL replicas share the first one's authority
(`control_plane.replicas`). Nodes trust `ca.pem` and nothing else, and ask for the name `control-plane` whatever address
they dial, so the server certificate may be renewed without telling any node.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SERVER_NAME = "control-plane"
_NAMES = (SERVER_NAME, "localhost")
_ADDRESSES = ("127.0.0.1", "::1")
_CA_DAYS = 3650
_SERVER_DAYS = 825
_RENEW_BEFORE = timedelta(days=30)
_CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Identity:
    """Paths of the control plane's own TLS material: PEM files, the keys readable by their owner only."""

    ca: Path
    certificate: Path
    key: Path


def ensure_identity(directory: Path, now: datetime | None = None) -> Identity:
    """Make what is missing, renew a server certificate that ends within 30 days. Raises OSError for the directory."""
    now = now or datetime.now(UTC)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = Identity(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    ca_key_path = directory / "ca.key"
    made = not (identity.ca.exists() and ca_key_path.exists())
    if made:
        _make_ca(identity.ca, ca_key_path, now)
    if made or _must_renew(identity, now):
        _make_server(identity, ca_key_path, now)
    return identity


def read_authority(directory: Path) -> str:
    """The authority's certificate and private key, both in PEM, made now if there is none."""
    ensure_identity(directory)
    return (directory / "ca.pem").read_text() + (directory / "ca.key").read_text()


def write_authority(directory: Path, text: str) -> bool:
    """Put an authority into the directory; `ensure_identity` then makes a server certificate under it.

    `text` is what `read_authority` gave. Returns whether there was none, or another, before.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca, ca_key = directory / "ca.pem", directory / "ca.key"
    if ca.exists() and ca_key.exists() and ca.read_text() + ca_key.read_text() == text:
        return False
    certificate = x509.load_pem_x509_certificate(text.encode()).public_bytes(serialization.Encoding.PEM)
    _write(ca_key, text.encode().removeprefix(certificate), 0o600)
    _write(ca, certificate, 0o644)
    return True


def _must_renew(identity: Identity, now: datetime) -> bool:
    if not (identity.certificate.exists() and identity.key.exists()):
        return True
    certificate = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(identity.ca.read_bytes()))
    except (InvalidSignature, ValueError, TypeError):
        return True  # the authority is another one since
    return certificate.not_valid_after_utc - now < _RENEW_BEFORE


def _make_ca(ca: Path, ca_key: Path, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tandem control plane CA")])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), now, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(ca_key, _pem_of(key), 0o600)
    _write(ca, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _make_server(identity: Identity, ca_key_path: Path, now: datetime) -> None:
    issuer = x509.load_pem_x509_certificate(identity.ca.read_bytes())
    issuer_key = serialization.load_pem_private_key(ca_key_path.read_bytes(), password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{ca_key_path} holds no elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    certificate = (
        _builder(name, issuer.subject, key.public_key(), now, _SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(_NAMES, _ADDRESSES)), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    _write(identity.key, _pem_of(key), 0o600)
    _write(identity.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _alternative_names(names: Sequence[str], addresses: Sequence[str]) -> list[x509.GeneralName]:
    return [
        *(x509.DNSName(name) for name in names),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    ]


def _pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all: a crash in between leaves the old file."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
