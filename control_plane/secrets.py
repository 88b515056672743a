"""Secrets at rest: encrypted under the operator's key, comparable by a keyed digest, masked wherever they are shown.

The operator's keys are Fernet keys: the first encrypts, all decrypt, so a key is rotated by putting a new one in front,
running `reencrypt` and dropping the old one. Digests must outlive that: their key is made once, at random, and kept in
the database, encrypted like everything else.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.errors import StartError
from control_plane.models import Keyring
from control_plane.settings import Settings

MASK = "[masked]"
NEW_MASK = "[masked] (changed)"
_PREFIX = "fernet:"
_DIGEST_KEY = "digest"


class Cipher:
    """Encrypts, decrypts and fingerprints secret texts."""

    def __init__(self, keys: Sequence[str], digest_key: bytes) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])
        self._digest_key = digest_key

    def encrypt(self, text: str) -> str:
        """A vault reference says where a secret is and is none itself: it stays readable."""
        if is_vault_reference(text):
            return text
        return _PREFIX + self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, text: str) -> str:
        """The inverse. A text without our mark was stored before its field was a secret, and is what it says."""
        if not text.startswith(_PREFIX):
            return text
        try:
            return self._fernet.decrypt(text[len(_PREFIX) :].encode()).decode()
        except InvalidToken:
            raise StartError("a stored secret was encrypted under a key that TANDEM_ENCRYPTION_KEY lacks") from None

    def rotate(self, text: str) -> str:
        """The same secret, encrypted under the first key."""
        if not text.startswith(_PREFIX):
            return text
        return _PREFIX + self._fernet.rotate(text[len(_PREFIX) :].encode()).decode()

    def digest(self, text: str) -> str:
        """Equal for equal secrets, useless to who has only the database."""
        return hmac.new(self._digest_key, text.encode(), hashlib.sha256).hexdigest()


def is_vault_reference(text: str) -> bool:
    return text.startswith("{vault://") and text.endswith("}")


def mask(text: str) -> str:
    return text if is_vault_reference(text) else MASK


def read_keys(settings: Settings) -> list[str]:
    """The operator's keys; without any, one is made and kept in the state directory. Raises StartError."""
    text = settings.encryption_key or _key_file(settings.state_dir / "encryption.key")
    keys = [key.strip() for key in text.split(",") if key.strip()]
    for key in keys:
        try:
            Fernet(key)
        except ValueError:
            raise StartError("TANDEM_ENCRYPTION_KEY: expected Fernet keys (32 bytes in URL-safe base64)") from None
    return keys


def _key_file(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    key = Fernet.generate_key().decode()
    with os.fdopen(descriptor, "w") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


async def open_cipher(session: AsyncSession, keys: Sequence[str]) -> Cipher:
    """The cipher of this database; its digest key is made at the first start.

    Raises StartError when the keys are not those that the database was encrypted under.
    """
    fernet = MultiFernet([Fernet(key) for key in keys])
    stored = (await session.execute(select(Keyring).where(Keyring.name == _DIGEST_KEY))).scalar_one_or_none()
    if stored is None:
        digest_key = secrets.token_bytes(32)
        session.add(Keyring(name=_DIGEST_KEY, value=fernet.encrypt(digest_key).decode()))
        return Cipher(keys, digest_key)
    try:
        return Cipher(keys, fernet.decrypt(stored.value.encode()))
    except InvalidToken:
        raise StartError(
            "this database was encrypted under another key: set TANDEM_ENCRYPTION_KEY to it, or put the file "
            "encryption.key of the first start into the state directory"
        ) from None
