"""Secrets at rest: encrypted under the operator's key, comparable by a keyed digest, masked wherever they are shown.

The operator's keys are Fernet keys: the first encrypts, all decrypt. So a new one stands behind the old one until every
control plane can read it, and only then in front; `rotation` tells the rest. Digests must outlive that: their key is
made once, at random, and kept in the database, encrypted like everything else.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.errors import KeyMissing, StartError
from control_plane.models import Keyring
from control_plane.settings import Settings

MASK = "[masked]"
NEW_MASK = "[masked] (changed)"
_PREFIX = "fernet:"
_DIGEST_KEY = "digest"

NewerKeys = Callable[[], Sequence[str] | None]
"""Gives the keys when they are others than last time."""


class Cipher:
    """Encrypts, decrypts and fingerprints secret texts."""

    def __init__(self, keys: Sequence[str], digest_key: bytes, newer: NewerKeys | None = None) -> None:
        """`newer` gives the keys when they have changed: a rotation reaches a process that runs."""
        self._use(keys)
        self._digest_key = digest_key
        self._newer = newer

    def encrypt(self, text: str) -> str:
        """A vault reference says where a secret is and is none itself: it stays readable."""
        if is_vault_reference(text):
            return text
        self._look_for_newer()
        return _PREFIX + self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, text: str) -> str:
        """The inverse. A text without our mark was stored before its field was a secret, and is what it says.

        Raises KeyMissing.
        """
        if not text.startswith(_PREFIX):
            return text
        data = text[len(_PREFIX) :].encode()
        try:
            return self._fernet.decrypt(data).decode()
        except InvalidToken:
            if not self._look_for_newer():
                raise KeyMissing from None
        try:
            return self._fernet.decrypt(data).decode()
        except InvalidToken:
            raise KeyMissing from None

    def rotate(self, text: str) -> str:
        """The same secret, encrypted under the first key; as it is when it is so already."""
        if not text.startswith(_PREFIX):
            return text
        return _PREFIX + self.rotate_token(text[len(_PREFIX) :])

    def rotate_token(self, token: str) -> str:
        """`rotate` for what stands without our mark."""
        try:
            self._first.decrypt(token.encode())
        except InvalidToken:
            try:
                return self._fernet.rotate(token.encode()).decode()
            except InvalidToken:
                raise KeyMissing from None
        return token

    def _use(self, keys: Sequence[str]) -> None:
        self._first = Fernet(keys[0])
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def _look_for_newer(self) -> bool:
        keys = self._newer() if self._newer is not None else None
        if keys is not None:
            self._use(keys)
        return keys is not None

    def digest(self, text: str) -> str:
        """Equal for equal secrets, useless to who has only the database."""
        return hmac.new(self._digest_key, text.encode(), hashlib.sha256).hexdigest()


def is_vault_reference(text: str) -> bool:
    return text.startswith("{vault://") and text.endswith("}")


def mask(text: str) -> str:
    return text if is_vault_reference(text) else MASK


def read_keys(settings: Settings) -> list[str]:
    """The operator's keys; without any, one is made and kept in the state directory. Raises StartError."""
    return parse_keys(settings.encryption_key or _key_file(key_path(settings)))


def key_path(settings: Settings) -> Path:
    """The file that holds the keys when TANDEM_ENCRYPTION_KEY does not."""
    return settings.state_dir / "encryption.key"


def parse_keys(text: str) -> list[str]:
    """Keys separated by commas. Raises StartError for what is none, without showing it."""
    keys = [key.strip() for key in text.split(",") if key.strip()]
    for key in keys:
        try:
            Fernet(key)
        except ValueError:
            raise StartError("TANDEM_ENCRYPTION_KEY: expected Fernet keys (32 bytes in URL-safe base64)") from None
    return keys


def watch_keys(settings: Settings) -> NewerKeys | None:
    """Watches the key file, at the price of one `stat` a time; keys from the environment cannot change."""
    if settings.encryption_key:
        return None
    path = key_path(settings)
    known = _stamp(path)

    def newer() -> Sequence[str] | None:
        nonlocal known
        stamp = _stamp(path)
        if stamp is None or stamp == known:
            return None
        known = stamp
        return parse_keys(path.read_text())

    return newer


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:  # somebody moved it: the keys that are known stay in use
        return None
    return found.st_ino, found.st_mtime_ns


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


async def open_cipher(session: AsyncSession, keys: Sequence[str], newer: NewerKeys | None = None) -> Cipher:
    """The cipher of this database; its digest key is made at the first start.

    Raises StartError when the keys are not those that the database was encrypted under.
    """
    fernet = MultiFernet([Fernet(key) for key in keys])
    stored = (await session.execute(select(Keyring).where(Keyring.name == _DIGEST_KEY))).scalar_one_or_none()
    if stored is None:
        digest_key = secrets.token_bytes(32)
        session.add(Keyring(name=_DIGEST_KEY, value=fernet.encrypt(digest_key).decode()))
        return Cipher(keys, digest_key, newer)
    try:
        return Cipher(keys, fernet.decrypt(stored.value.encode()), newer)
    except InvalidToken:
        raise StartError(
            "this database was encrypted under another key: set TANDEM_ENCRYPTION_KEY to it, or put the file "
            "encryption.key of the first start into the state directory"
        ) from None
