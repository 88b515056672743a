"""A new encryption key: everything comes under it, nothing stays under the old one, nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import select

from control_plane import rotation
from control_plane.__main__ import main
from control_plane.database import Database
from control_plane.errors import StartError
from control_plane.models import ENTITY_TABLES, SNAPSHOTS, Keyring
from control_plane.plane import ControlPlane
from control_plane.rotation import add_key, reencrypt, rotate_key
from control_plane.secrets import Cipher, open_cipher, parse_keys, read_keys, watch_keys
from control_plane.settings import Settings
from tests.control_plane.client import TOKEN, running_client

TARGET = {
    "route_type": "llm/v1/chat",
    "auth": {"header_name": "Authorization", "header_value": "Bearer sk-provider"},
    "model": {"provider": "openai", "name": "gpt-4o"},
}
DOCUMENT: dict[str, Any] = {
    "_format_version": "3.0",
    "consumers": [{"username": f"c{n}", "keyauth_credentials": [{"key": f"sk-{n}"}]} for n in range(7)],
    "plugins": [{"name": "ai-proxy-advanced", "config": {"targets": [TARGET]}}],
}


def settings(state: Path, url: str, key: str = "") -> Settings:
    return Settings(state, url, grpc_port=0, admin_token=TOKEN, encryption_key=key)


async def stored(url: str) -> list[str]:
    """Every encrypted text in the database."""
    database = Database(url)
    found: list[str] = []
    try:
        async with database.reading() as session:
            found += (await session.execute(select(Keyring.value))).scalars()
            found += [sealed.decode() for sealed in (await session.execute(select(SNAPSHOTS.c.payload))).scalars()]
            for table in ENTITY_TABLES.values():
                for written in (await session.execute(select(table.c.written))).scalars():
                    found += texts(written)
    finally:
        await database.close()
    return [text.removeprefix("fernet:") for text in found]


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.startswith("fernet:") else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in texts(item)]


def opened_by(key: str, tokens: list[str]) -> int:
    def opens(token: str) -> bool:
        try:
            Fernet(key).decrypt(token.encode())
        except Exception:
            return False
        return True

    return sum(opens(token) for token in tokens)


async def filled(state: Path, url: str) -> tuple[str, Any]:
    """A database with secrets in it: the control plane's id and the document that it dumps."""
    async with running_client(state, url) as client:
        await client.apply(DOCUMENT)
        return client.id, await client.dump()


async def test_after_a_rotation_the_old_key_opens_nothing_and_all_still_reads(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 3)  # several batches, and a last one that is full or not
    control_plane_id, before = await filled(tmp_path, database_url)
    (old,) = read_keys(settings(tmp_path, database_url))
    assert opened_by(old, await stored(database_url)) == len(await stored(database_url)) >= 9
    said: list[str] = []
    await rotate_key(settings(tmp_path, database_url), say=said.append)
    new, kept = read_keys(settings(tmp_path, database_url))
    assert kept == old != new
    tokens = await stored(database_url)
    assert opened_by(old, tokens) == 0
    assert opened_by(new, tokens) == len(tokens)
    await rotate_key(settings(tmp_path, database_url), finish=True, say=said.append)
    assert read_keys(settings(tmp_path, database_url)) == [new]
    assert not any(key in " ".join(said) for key in (old, new))
    async with running_client(tmp_path, database_url, control_plane_id) as client:
        assert await client.dump() == before
        assert (await client.get("key-auths/sk-3"))["key"] == "sk-3"
        plan = await client.apply(DOCUMENT)
        assert plan["plan"]["summary"]["total"] == 0
    with pytest.raises(StartError, match="encrypted under another key"):
        async with running(tmp_path, database_url, old):
            pass


def running(state: Path, url: str, key: str) -> Any:
    return ControlPlane(settings(state, url, key)).running()


async def test_an_interrupted_rotation_goes_on_where_it_was(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "BATCH", 3)
    control_plane_id, before = await filled(tmp_path, database_url)
    database = Database(database_url)
    keys = add_key(tmp_path / "encryption.key")
    tries = 0

    class Broken(Cipher):
        def rotate(self, text: str) -> str:
            nonlocal tries
            tries += 1
            if tries == 5:
                raise RuntimeError("pulled the plug")
            return super().rotate(text)

    async with database.starting() as session:
        whole = await open_cipher(session, keys)
    broken = Broken(keys, whole._digest_key)
    with pytest.raises(RuntimeError, match="plug"):
        await reencrypt(database, broken)
    async with running_client(tmp_path, database_url, control_plane_id) as client:
        assert await client.dump() == before
    await rotate_key(settings(tmp_path, database_url), say=lambda _: None)
    assert read_keys(settings(tmp_path, database_url)) == keys, "the key of the first try is used, not a third one"
    assert opened_by(keys[1], await stored(database_url)) == 0
    assert await reencrypt(database, whole) == 0
    await database.close()


async def test_a_control_plane_that_runs_takes_up_the_new_key(tmp_path: Path, database_url: str) -> None:
    async with running_client(tmp_path, database_url) as client:
        await client.apply(DOCUMENT)
        await rotate_key(settings(tmp_path, database_url), say=lambda _: None)
        assert (await client.get("key-auths/sk-3"))["key"] == "sk-3"
        await client.call("POST", "consumers/c1/key-auth", {"key": "sk-late"}, 201)
        _, old = read_keys(settings(tmp_path, database_url))
        assert opened_by(old, await stored(database_url)) == 0
        await rotate_key(settings(tmp_path, database_url), finish=True, say=lambda _: None)
        client.plane.holdings.forget(client.id)
        assert "sk-late" in str(await client.dump())


async def test_a_rotation_that_began_and_finished_unseen_is_taken_up_too(tmp_path: Path, database_url: str) -> None:
    where = settings(tmp_path, database_url)
    async with running_client(tmp_path, database_url) as client:
        await client.apply(DOCUMENT)
        await rotate_key(where, say=lambda _: None)
        await rotate_key(where, finish=True, say=lambda _: None)
        await client.call("POST", "consumers/c1/key-auth", {"key": "sk-late"}, 201)
        (line,) = (await client.get("/v2/audit-logs", {"action": "rotate-key"}))["data"]
        assert line["principal"]["name"] == "rotate-key"
    tokens = await stored(database_url)
    assert opened_by(*read_keys(where), tokens) == len(tokens)


@pytest.mark.parametrize(
    "wrong", [Fernet.generate_key(), b"", b"hunter2", b"\xff\xfe"], ids=["other", "", "text", "bytes"]
)
async def test_keys_that_cannot_read_the_database_are_told_once_and_not_used(
    tmp_path: Path, database_url: str, wrong: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "encryption.key"
    async with running_client(tmp_path, database_url) as client:
        await client.apply(DOCUMENT)
        kept = path.read_bytes()
        path.write_bytes(wrong)
        for number in range(2):
            await client.call("POST", "consumers/c1/key-auth", {"key": f"sk-late-{number}"}, 201)
        path.write_bytes(kept)
        client.plane.holdings.forget(client.id)
        assert "sk-late-1" in str(await client.dump())
    tokens = await stored(database_url)
    assert opened_by(kept.decode(), tokens) == len(tokens)
    (line,) = [line for line in caplog.messages if "the changed encryption keys are not used" in line]
    assert "hunter2" not in line


async def test_keys_from_the_environment_rotate_with_both_in_it(tmp_path: Path, database_url: str) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    async with running(tmp_path, database_url, old):
        pass
    with pytest.raises(StartError, match="encrypted under another key"):
        await rotate_key(settings(tmp_path, database_url, new), say=lambda _: None)
    said: list[str] = []
    await rotate_key(settings(tmp_path, database_url, old), say=said.append)
    assert rotation.STEPS in said[-1]
    await rotate_key(settings(tmp_path, database_url, f"{new},{old}"), say=said.append)
    assert "first key alone" in said[-1]
    assert not any(key in " ".join(said) for key in (old, new))
    async with running(tmp_path, database_url, new):
        pass
    assert not (tmp_path / "encryption.key").exists()


def test_watched_keys_are_given_once_after_each_change(tmp_path: Path) -> None:
    where = settings(tmp_path, "sqlite://")
    read_keys(where)
    newer = watch_keys(where)
    assert newer is not None
    assert newer() is None
    keys = add_key(tmp_path / "encryption.key")
    assert newer() == keys
    assert newer() is None
    (tmp_path / "encryption.key").unlink()
    assert newer() is None
    assert watch_keys(settings(tmp_path, "sqlite://", keys[0])) is None


def test_the_key_file_stays_the_owners_alone(tmp_path: Path) -> None:
    (old,) = read_keys(settings(tmp_path, "sqlite://"))
    new, kept = add_key(tmp_path / "encryption.key")
    assert parse_keys((tmp_path / "encryption.key").read_text(), "file") == [new, kept] == [new, old]
    assert (tmp_path / "encryption.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["encryption.key"]


def test_the_command_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATABASE_URL", "TANDEM_ENCRYPTION_KEY"):
        monkeypatch.delenv(name, raising=False)
    state = str(tmp_path / "state")
    assert main(["rotate-key", "--state-dir", state]) == 4
    assert "cannot be used" in capsys.readouterr().err


def test_help_tells_how_the_variable_is_rotated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert rotation.STEPS in " ".join(capsys.readouterr().out.split())
