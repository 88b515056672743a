"""Certificates, the host names they are for, and the authorities that sign others."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from pydantic import AfterValidator, model_validator

from gateway_schema.base import Referenceable, Secret, is_address
from gateway_schema.entities import Entity, Reference
from gateway_schema.violations import FieldFaults, SchemaViolation, Violation

_SNI = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_\-.]*[A-Za-z0-9_])?(\.\*)?")


def load_certificates(pem: str) -> list[x509.Certificate]:
    """Raises ValueError with Kong's words."""
    try:
        return x509.load_pem_x509_certificates(pem.encode())
    except (ValueError, x509.InvalidVersion):
        raise ValueError("invalid certificate: expected PEM") from None


def _public_bytes(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _load_key(pem: str) -> Any:
    try:
        # Not whether an RSA key's numbers fit each other, which takes long: whether it is the certificate's is asked.
        return load_pem_private_key(pem.encode(), None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("invalid key: expected PEM, not encrypted") from None


def _is_reference(text: str) -> bool:
    return text.startswith("{vault://")


class Certificate(Entity):
    """A certificate and its key; a second pair of another key type may stand beside."""

    cert: Referenceable
    key: Secret
    cert_alt: Referenceable | None = None
    key_alt: Secret | None = None
    updated_at: int | None = None

    @model_validator(mode="after")
    def _pairs_match(self) -> Self:
        if (self.cert_alt is None) != (self.key_alt is None):
            raise ValueError("all or none of these fields must be set: 'cert_alt', 'key_alt'")
        first = _check_pair(self.cert, self.key, "cert", "key")
        if self.cert_alt is None or self.key_alt is None:
            return self
        second = _check_pair(self.cert_alt, self.key_alt, "cert_alt", "key_alt")
        if first is not None and first == second:
            raise ValueError("certificate and alternative certificate need to have different type (e.g. RSA and ECDSA)")
        return self


def _check_pair(cert: str, key: str, cert_field: str, key_field: str) -> str | None:
    """The kind of key; None when a vault holds one of the two. Raises FieldFaults."""
    loaded: dict[str, Any] = {}
    faults = []
    for field, text, load in ((cert_field, cert, load_certificates), (key_field, key, _load_key)):
        if _is_reference(text):
            continue
        try:
            loaded[field] = load(text)
        except ValueError as error:
            faults.append((field, str(error)))
    if faults:
        raise FieldFaults(faults)
    if len(loaded) < 2:
        return None
    public = loaded[cert_field][0].public_key()
    if _public_bytes(public) != _public_bytes(loaded[key_field].public_key()):
        raise ValueError("certificate does not match key")
    return type(public).__name__


def _check_sni(value: str) -> str:
    if is_address(value.strip("[]")):
        raise ValueError("must not be an IP")
    if ":" in value:
        raise ValueError("must not have a port")
    if value.count("*") > 1:
        raise ValueError("only one wildcard must be specified")
    if "*" in value and not (value.startswith("*.") or value.endswith(".*")):
        raise ValueError("wildcard must be leftmost or rightmost character")
    if not _SNI.fullmatch(value):
        raise ValueError(f"invalid value: {value}")
    return value


class Sni(Entity):
    """A host name whose connections are answered with a certificate."""

    name: Annotated[str, AfterValidator(_check_sni)]
    certificate: Reference
    updated_at: int | None = None


class CaCertificate(Entity):
    """An authority whose signature counts."""

    cert: str
    cert_digest: str | None = None
    updated_at: int | None = None

    @classmethod
    def expand(cls, written: dict[str, Any]) -> dict[str, Any]:
        """The digest is computed, whatever was said; what cannot be read has none and is refused by the check."""
        kept = {key: value for key, value in written.items() if key != "cert_digest"}
        if not isinstance(kept.get("cert"), str):
            return kept
        try:
            found = load_certificates(kept["cert"])
        except ValueError:
            return kept
        return {**kept, "cert_digest": found[0].fingerprint(SHA256()).hex()}

    @classmethod
    def admit(cls, written: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
        """An expired authority is not taken in; one that expires later stays, and is the nodes' to refuse."""
        cert = written.get("cert")
        if not isinstance(cert, str) or (before is not None and before.get("cert") == cert):
            return written
        try:
            found = load_certificates(cert)
        except ValueError:
            return written
        if found[0].not_valid_after_utc < datetime.datetime.now(datetime.UTC):
            raise SchemaViolation([Violation(("cert",), 'certificate expired, "Not After" time is in the past')])
        return written

    @model_validator(mode="after")
    def _is_one_authority(self) -> Self:
        try:
            found = load_certificates(self.cert)
        except ValueError as error:
            raise FieldFaults([("cert", str(error))]) from None
        if len(found) != 1:
            raise FieldFaults([("cert", "please submit only one certificate at a time")])
        try:
            authority = found[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            authority = False
        if not authority:
            raise FieldFaults(
                [("cert", 'certificate does not appear to be a CA because it is missing the "CA" basic constraint')]
            )
        return self
