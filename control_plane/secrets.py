"""Secrets at rest: encrypted under the operator's key, comparable by a keyed digest, masked wherever they are shown.

The operator's keys are Fernet keys: the first encrypts, all decrypt. So a new one stands behind the old one until every
control plane can read it, and only then in front; `rotation` tells the rest. Digests must outlive that: their key is
made once, at random, and kept in the database, encrypted like everything else.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from control_plane.database import Database
from control_plane.errors import KeyMissing, StartError
from control_plane.models import Keyring
from control_plane.settings import Settings
from gateway_schema.base import MASK, is_vault_reference

_log = logging.getLogger(__name__)
_PREFIX = "fernet:"
_DIGEST_KEY = "digest"
_STORED_CHECK = select(Keyring.value).where(Keyring.name == _DIGEST_KEY)
_CHECK_SECONDS = 5
_NO_KEY = (
    "holds no key: let it hold the one that the database was encrypted under or, if there is no database yet, remove "
    "it, and a key is made"
)
_OTHER_KEY = (
    "this database was encrypted under another key: set TANDEM_ENCRYPTION_KEY to it, or put the file encryption.key of "
    "the first start into the state directory"
)

NewerKeys = Callable[[], Sequence[str] | None]
"""Gives the keys when they are others than last time. Raises StartError for what are none."""
ReadCheck = Callable[[], str]
"""Reads what the keys of this database must open, as it stands there now."""


class Cipher:
    """Encrypts, decrypts and fingerprints secret texts."""

    def __init__(
        self,
        keys: Sequence[str],
        digest_key: bytes,
        newer: NewerKeys | None = None,
        read_check: ReadCheck | None = None,
    ) -> None:
        """`newer` gives the keys when they have changed: a rotation reaches a process that runs. `read_check` is asked
        about those that share none with the keys in use."""
        self._digest_key = digest_key
        self._use(keys)
        self._newer = newer
        self._read_check = read_check
        self._undecided: Sequence[str] | None = None

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
        self._fernet = _fernet(keys)
        self._check = self._fernet.encrypt(self._digest_key).decode()

    def _look_for_newer(self) -> bool:
        """Whether there are newer keys. Those that cannot read this database are told and not used: what was written
        under them would be lost with the next start, which refuses them."""
        try:
            keys = (self._newer() if self._newer is not None else None) or self._undecided
        except (StartError, OSError) as error:
            _log.error("the changed encryption keys are not used, those from before are: %s", error)
            return False
        if keys is None:
            return False
        self._undecided = keys  # for as long as the database cannot be asked
        fits = self._fits(keys)
        self._undecided = None
        if fits:
            self._use(keys)
        else:
            _log.error("the changed encryption keys are not used, those from before are: %s", _OTHER_KEY)
        return fits

    def _fits(self, keys: Sequence[str]) -> bool:
        """By what this process has itself; by the database for keys that replaced all it knew, as after a rotation
        that began and finished unseen."""
        if _opened(keys, self._check) == self._digest_key:
            return True
        return self._read_check is not None and _opened(keys, self._read_check()) == self._digest_key

    def digest(self, text: str) -> str:
        """Equal for equal secrets, useless to who has only the database."""
        return hmac.new(self._digest_key, text.encode(), hashlib.sha256).hexdigest()


def _fernet(keys: Sequence[str]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


def _opened(keys: Sequence[str], token: str) -> bytes | None:
    try:
        return _fernet(keys).decrypt(token.encode())
    except InvalidToken:
        return None


def mask(text: str) -> str:
    return text if is_vault_reference(text) else MASK


def read_keys(settings: Settings) -> list[str]:
    """The operator's keys; without any, one is made and kept in the state directory. Raises StartError."""
    if settings.encryption_key:
        return parse_keys(settings.encryption_key, "TANDEM_ENCRYPTION_KEY")
    path = key_path(settings)
    return parse_keys(_key_file(path), str(path))


def key_path(settings: Settings) -> Path:
    """The file that holds the keys when TANDEM_ENCRYPTION_KEY does not."""
    return settings.state_dir / "encryption.key"


def parse_keys(text: str, place: str) -> list[str]:
    """Keys separated by commas. Raises StartError that names their place for what is none, without showing it."""
    keys = [key.strip() for key in text.split(",") if key.strip()]
    if not keys:
        raise StartError(f"{place}: {_NO_KEY}")
    for key in keys:
        try:
            Fernet(key)
        except ValueError:
            raise StartError(
                f"{place}: expected Fernet keys (32 bytes in URL-safe base64), separated by commas"
            ) from None
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
        return parse_keys(_text_of(path), str(path))

    return newer


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:  # somebody moved it: the keys that are known stay in use
        return None
    return found.st_ino, found.st_mtime_ns


def _text_of(path: Path) -> str:
    return path.read_text(errors="replace")  # bytes that are no text are no keys either: `parse_keys` says so


def _key_file(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _text_of(path)
    key = Fernet.generate_key().decode()
    with os.fdopen(descriptor, "w") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key


async def open_cipher(
    session: AsyncSession, keys: Sequence[str], newer: NewerKeys | None = None, read_check: ReadCheck | None = None
) -> Cipher:
    """The cipher of this database; its digest key is made at the first start.

    Raises StartError when the keys are not those that the database was encrypted under.
    """
    stored = (await session.execute(_STORED_CHECK)).scalar_one_or_none()
    if stored is None:
        digest_key = secrets.token_bytes(32)
        session.add(Keyring(name=_DIGEST_KEY, value=_fernet(keys).encrypt(digest_key).decode()))
        return Cipher(keys, digest_key, newer, read_check)
    opened = _opened(keys, stored)
    if opened is None:
        raise StartError(_OTHER_KEY)
    return Cipher(keys, opened, newer, read_check)


def read_check(url: str) -> str:
    """On a connection and a thread of its own: whoever encrypts cannot await, and may be in the midst of a
    transaction. So rarely is it asked that the loop may wait for it."""

    async def read() -> str:
        database = Database(url)
        try:
            async with asyncio.timeout(_CHECK_SECONDS), database.single() as connection:
                return str((await connection.execute(_STORED_CHECK)).scalar_one())
        finally:
            await database.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, read()).result()
