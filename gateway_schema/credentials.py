"""What consumers prove themselves with, beside the keys of key-auth (in `entities.py`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import model_validator

from gateway_schema.base import Secret, Text
from gateway_schema.entities import Entity, Reference
from gateway_schema.violations import FieldFaults

JwtAlgorithm = Literal[
    "HS256",
    "HS384",
    "HS512",
    "RS256",
    "RS384",
    "RS512",
    "ES256",
    "ES384",
    "ES512",
    "PS256",
    "PS384",
    "PS512",
    "EdDSA",
]


class BasicAuthCredential(Entity):
    """A user name and a password. Of the password only the digest is kept that Kong keeps: SHA-1 over it and the
    consumer's id. `skip_hash` (write only) says that the password is such a digest already."""

    shorthands: ClassVar[frozenset[str]] = frozenset({"skip_hash"})

    consumer: Reference
    username: Text
    password: Secret

    @classmethod
    def admit(cls, written: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Hashes the password, unless it is what is kept already: what was read may be written back. An empty one has
        no digest, so that the check still finds it empty."""
        kept = {key: value for key, value in written.items() if key != "skip_hash"}
        password, consumer = kept.get("password"), kept.get("consumer")
        if written.get("skip_hash") is True or not isinstance(password, str) or not isinstance(consumer, Mapping):
            return kept
        if (
            not password
            or password.startswith("{vault://")
            or (before is not None and before.get("password") == password)
        ):
            return kept
        text = f"{password}{consumer.get('id', '')}"
        return {**kept, "password": hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()}


class HmacAuthCredential(Entity):
    """A user name and a secret that requests are signed with."""

    consumer: Reference
    username: Text
    secret: Secret | None = None


class JwtCredential(Entity):
    """Whose tokens are a consumer's: `key` is their issuer, `secret` or `rsa_public_key` proves them."""

    consumer: Reference
    key: Text | None = None
    secret: Secret | None = None
    algorithm: JwtAlgorithm = "HS256"
    rsa_public_key: str | None = None

    @model_validator(mode="after")
    def _has_its_key(self) -> Self:
        if self.algorithm[:2] not in {"RS", "PS", "Ed"}:
            return self
        said = ("", "failed conditional validation given value of field 'algorithm'")
        if not self.rsa_public_key:
            raise FieldFaults([said, ("rsa_public_key", "required field missing")])
        if not self.rsa_public_key.startswith("{vault://") and not _is_public_key(self.rsa_public_key):
            raise FieldFaults([said, ("rsa_public_key", "invalid key")])
        return self


def _is_public_key(pem: str) -> bool:
    try:
        load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True


class Acl(Entity):
    """That a consumer belongs to a group of the acl plugin."""

    consumer: Reference
    group: Text


class MtlsAuthCredential(Entity):
    """Which certificate is a consumer's, by the name of its subject."""

    consumer: Reference
    subject_name: Text
    ca_certificate: Reference | None = None
