"""Keys, ciphers and the walks that find secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from control_plane.errors import StartError
from control_plane.secrets import Cipher, mask, read_keys
from control_plane.settings import Settings
from gateway_schema.base import Record, Secret
from gateway_schema.shapes import map_secrets, merged, normal, shape_of
from tests.control_plane.client import running_client


def settings(tmp_path: Path, key: str = "") -> Settings:
    return Settings(tmp_path / "state", f"sqlite:///{tmp_path / 'cp.db'}", grpc_port=0, encryption_key=key)


def test_a_key_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    keys = read_keys(settings(tmp_path))
    assert read_keys(settings(tmp_path)) == keys
    path = tmp_path / "state" / "encryption.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.stat(path.parent).st_mode & 0o777 == 0o700


def test_a_key_that_is_none_is_refused_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="TANDEM_ENCRYPTION_KEY") as caught:
        read_keys(settings(tmp_path, "hunter2"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b" \n", b",", b"\xff"])
def test_a_file_without_a_key_is_named_with_what_to_do(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "state" / "encryption.key"
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(StartError, match=f"{path}: (holds no key: let it hold|expected Fernet keys)"):
        read_keys(settings(tmp_path))


def test_a_variable_without_a_key_is_named() -> None:
    with pytest.raises(StartError, match="TANDEM_ENCRYPTION_KEY: holds no key"):
        read_keys(Settings(Path("state"), "sqlite://", encryption_key=","))


def test_keys_rotate() -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    stored = Cipher([old], b"d").encrypt("secret")
    both = Cipher([new, old], b"d")
    assert both.decrypt(stored) == "secret"
    assert Cipher([new], b"d").decrypt(both.rotate(stored)) == "secret"
    assert both.digest("secret") == Cipher([new], b"d").digest("secret") != Cipher([new], b"e").digest("secret")
    with pytest.raises(StartError):
        Cipher([new], b"d").decrypt(stored)


@given(st.text())
def test_what_is_encrypted_is_decrypted(text: str) -> None:
    cipher = Cipher([Fernet.generate_key().decode()], b"d")
    assert cipher.decrypt(cipher.encrypt(text)) == text


def test_a_vault_reference_is_no_secret() -> None:
    cipher = Cipher([Fernet.generate_key().decode()], b"d")
    assert cipher.encrypt("{vault://env/x}") == mask("{vault://env/x}") == "{vault://env/x}"


async def test_a_database_does_not_open_with_another_key(tmp_path: Path) -> None:
    async with running_client(tmp_path / "one", f"sqlite:///{tmp_path / 'cp.db'}"):
        pass
    with pytest.raises(StartError, match="encrypted under another key"):
        async with running_client(tmp_path / "two", f"sqlite:///{tmp_path / 'cp.db'}"):
            pass


class Jq(Record):
    type: Literal["jq"] = "jq"
    filter: str


class Call(Record):
    type: Literal["call"] = "call"
    token: Secret | None = None
    tries: int | None = 3


class Auth(Record):
    password: Secret | None = None
    many: list[Secret] | None = None


class Config(Record):
    auth: Auth | None = None
    targets: list[Auth] | None = None
    named: dict[str, Auth] | None = None
    nodes: list[Jq | Call] | None = None
    free: dict[str, Any] | None = None
    name: str | None = None


VALUE: dict[str, Any] = {
    "auth": {"password": "s1", "many": ["s2", "s3"]},
    "targets": [{"password": "s4"}, {"password": None}],
    "named": {"password": {"password": "s5"}},
    "nodes": [{"type": "jq", "filter": "."}, {"type": "call", "token": "s6"}],
    "free": {"password": "not ours"},
    "name": "open",
}


def test_secrets_are_found_in_records_lists_maps_and_unions_and_nowhere_else() -> None:
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return "-"

    changed = map_secrets(shape_of(Config), VALUE, note)
    assert found == ["s1", "s2", "s3", "s4", "s5", "s6"]
    assert changed["nodes"][1] == {"type": "call", "token": "-"}
    assert changed["free"] == VALUE["free"]
    assert VALUE["auth"]["password"] == "s1"


def test_nulls_that_say_nothing_are_dropped_and_others_kept() -> None:
    value = {
        "auth": None,
        "targets": [{"password": None}],
        "free": {"a": None},
        "nodes": [{"type": "call", "tries": None, "token": None}],
        "unknown": None,
    }
    assert normal(shape_of(Config), value) == {
        "targets": [{}],
        "free": {"a": None},
        "nodes": [{"type": "call", "tries": None}],
        "unknown": None,
    }


def test_a_merge_goes_into_records_and_replaces_lists_and_maps() -> None:
    old = {"auth": {"password": "a", "many": ["x"]}, "free": {"a": 1}, "targets": [{"password": "p"}]}
    new = {"auth": {"many": None}, "free": {"b": 2}, "targets": []}
    assert merged(shape_of(Config), old, new) == {
        "auth": {"password": "a", "many": None},
        "free": {"b": 2},
        "targets": [],
    }
