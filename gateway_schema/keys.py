"""Key sets and keys: public and private keys that plugins use by name."""

from __future__ import annotations

from typing import Any, Self

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import model_validator

from gateway_schema.base import Record, Referenceable, Secret, Text
from gateway_schema.entities import Entity, Name, Reference
from gateway_schema.violations import FieldFaults


class KeySet(Entity):
    """Keys that belong together."""

    name: Name | None = None
    updated_at: int | None = None


class PemPair(Record):
    """The halves of a key. Either may be missing, not both; both must be of one key."""

    public_key: Referenceable | None = None
    private_key: Secret | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.public_key is None and self.private_key is None:
            raise ValueError("at least one of these fields must be non-empty: 'private_key', 'public_key'")
        private = _load("private_key", self.private_key)
        public = _load("public_key", self.public_key)
        if private is not None and public is not None and _bytes(private.public_key()) != _bytes(public):
            raise ValueError("public key does not match private key")
        return self


def _load(field: str, pem: str | None) -> Any:
    """The key; None for one that is not there or stands in a vault. Raises FieldFaults."""
    if pem is None or pem.startswith("{vault://"):
        return None
    try:
        if field == "private_key":
            return load_pem_private_key(pem.encode(), None, unsafe_skip_rsa_key_validation=True)
        return load_pem_public_key(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FieldFaults([(field, "could not load " + field.replace("_", " "))]) from None


def _bytes(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


class Key(Entity):
    """A key, as a JWK (JSON text) or in PEM."""

    name: Name | None = None
    kid: Text
    jwk: Secret | None = None
    pem: PemPair | None = None
    x5t: Text | None = None
    """SHA-1 thumbprint of the key's X.509 certificate."""
    set: Reference | None = None
    updated_at: int | None = None

    @model_validator(mode="after")
    def _is_one_key(self) -> Self:
        if (self.jwk is None) == (self.pem is None):
            raise ValueError("exactly one of these fields must be non-empty: 'jwk', 'pem'")
        if self.jwk is None or self.jwk.startswith("{vault://"):
            return self
        try:
            jwk = orjson.loads(self.jwk)
        except orjson.JSONDecodeError:
            raise FieldFaults([("jwk", "could not json decode jwk string")]) from None
        if not isinstance(jwk, dict) or not isinstance(jwk.get("kty"), str):
            raise FieldFaults([("jwk", "expected a JSON object with kty")])
        if jwk.get("kid") != self.kid:
            raise ValueError("kid in jwk.kid must be equal to keys.kid")
        return self
