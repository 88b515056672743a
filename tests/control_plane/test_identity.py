"""The control plane's own TLS identity: made once, private, renewed before it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from control_plane.identity import SERVER_NAME, ensure_identity, read_authority, write_authority


def test_it_is_made_once_and_its_keys_are_private(tmp_path: Path) -> None:
    first = ensure_identity(tmp_path / "state")
    before = {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir()}
    assert ensure_identity(tmp_path / "state") == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir()} == before
    for name in ("ca.key", "server.key"):
        assert (tmp_path / "state" / name).stat().st_mode & 0o777 == 0o600


def test_the_server_certificate_is_for_the_name_that_nodes_ask_for_and_for_this_machine(tmp_path: Path) -> None:
    identity = ensure_identity(tmp_path)
    certificate = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [SERVER_NAME, "localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(identity.ca.read_bytes()))


def test_a_server_certificate_that_soon_ends_is_renewed_under_the_same_authority(tmp_path: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=820)
    identity = ensure_identity(tmp_path, past)
    ca, old = identity.ca.read_bytes(), identity.certificate.read_bytes()
    ensure_identity(tmp_path)
    assert identity.ca.read_bytes() == ca
    assert identity.certificate.read_bytes() != old
    renewed = x509.load_pem_x509_certificate(identity.certificate.read_bytes())
    renewed.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))


def test_an_authority_from_elsewhere_replaces_the_own_one_and_its_server_certificate(tmp_path: Path) -> None:
    shared = read_authority(tmp_path / "first")
    identity = ensure_identity(tmp_path / "second")
    assert write_authority(tmp_path / "second", shared)
    assert not write_authority(tmp_path / "second", shared)
    assert ensure_identity(tmp_path / "second") == identity
    ca = x509.load_pem_x509_certificate(identity.ca.read_bytes())
    x509.load_pem_x509_certificate(identity.certificate.read_bytes()).verify_directly_issued_by(ca)
    assert identity.ca.read_bytes() == (tmp_path / "first" / "ca.pem").read_bytes()
    assert (tmp_path / "second" / "ca.key").read_bytes() == (tmp_path / "first" / "ca.key").read_bytes()
    assert (tmp_path / "second" / "ca.key").stat().st_mode & 0o777 == 0o600
