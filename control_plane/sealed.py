"""Whole documents at rest: JSON, compressed, encrypted under the operator's key like any other secret."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import zstandard

from control_plane.secrets import Cipher

_MAX_BYTES = 1 << 30
"""A document that would unpack to more was not written by us."""


def seal(cipher: Cipher, value: Any) -> bytes:
    packed = zstandard.ZstdCompressor(level=3).compress(orjson.dumps(value))
    return cipher.encrypt(base64.b64encode(packed).decode()).encode()


def unseal(cipher: Cipher, data: bytes) -> Any:
    packed = base64.b64decode(cipher.decrypt(data.decode()))
    return orjson.loads(zstandard.ZstdDecompressor().decompress(packed, _MAX_BYTES))


def reseal(cipher: Cipher, data: bytes) -> bytes:
    """The same document under the newest key."""
    return cipher.rotate(data.decode()).encode()
