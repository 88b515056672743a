"""The surface that all paths share: authentication, error bodies, limits, and answers that wait for the commit."""

from __future__ import annotations

import gzip
import re
import secrets
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from control_plane.auth import digest_of
from control_plane.models import Token
from tests.control_plane.client import Client

PROBLEM_FIELDS = {"status", "title", "instance", "detail", "message"}


async def add_token(client: Client, token: str, scopes: list[str], expires_at: int | None = None) -> dict[str, str]:
    async with client.plane.database.writing() as session:
        session.add(
            Token(
                id=f"{digest_of(token)[:36]}",
                name="t",
                digest=digest_of(token),
                scopes=scopes,
                expires_at=expires_at,
                created_at=0,
            )
        )
    return {"authorization": f"Bearer {token}"}


async def test_health_needs_no_token(client: Client) -> None:
    response = await client.http.get("/health", headers={"authorization": ""})
    assert response.json()["status"] == "ok"
    assert "ai-gateway" not in response.headers.get("server", "")


async def test_the_documentation_loads_nothing_from_elsewhere(client: Client) -> None:
    page = await client.http.get("/docs", headers={"authorization": ""})
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)
    assert loaded
    for address in loaded:
        assert (await client.http.get(address)).status_code == 200, address


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic kpat_test-token", "kpat_test-token"])
async def test_without_a_valid_token_every_path_answers_401(client: Client, header: str) -> None:
    for path in ("/v2/control-planes", f"/v2/control-planes/{client.id}/core-entities/services", "/v3/users/me"):
        response = await client.http.get(path, headers={"authorization": header})
        assert response.status_code == 401
        assert response.json()["detail"] == "A valid token is required"
        assert response.headers["content-type"] == "application/problem+json"


async def test_every_authorization_value_is_looked_at(client: Client) -> None:
    headers = [("authorization", "Basic eDp5"), ("authorization", "Bearer kpat_test-token")]
    client.http.headers.pop("authorization")
    assert (await client.http.get("/v2/control-planes", headers=headers)).status_code == 200


async def test_an_expired_token_is_refused(client: Client) -> None:
    headers = await add_token(client, "kpat_old", ["admin"], expires_at=1)
    assert (await client.http.get("/v2/control-planes", headers=headers)).status_code == 401


async def test_a_token_that_may_only_read_changes_nothing_and_sees_no_secrets(client: Client) -> None:
    await client.apply(
        {
            "_format_version": "3.0",
            "consumers": [{"username": "bob", "keyauth_credentials": [{"key": "the-secret-key"}]}],
        }
    )
    headers = await add_token(client, "kpat_reader", ["read"])
    listed = await client.http.get(f"/v2/control-planes/{client.id}/core-entities/key-auths", headers=headers)
    assert listed.json()["data"][0]["key"] == "[masked]"
    response = await client.http.post("/v2/control-planes", json={"name": "mine"}, headers=headers)
    assert response.status_code == 403
    assert set(response.json()) >= PROBLEM_FIELDS


async def test_tokens_are_stored_as_digests_only(client: Client) -> None:
    async with client.plane.database.engine.connect() as connection:
        rows = (await connection.exec_driver_sql("SELECT * FROM tokens")).all()
    assert rows
    assert "kpat_test-token" not in str(rows)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v2/nothing", b"", 404),
        ("DELETE", "/v2/control-planes", b"", 405),
        ("GET", "/v2/control-planes/nonsense", b"", 404),
        ("POST", "/v2/control-planes", b"{broken", 400),
        ("POST", "/v2/control-planes", b"[1]", 400),
        ("POST", "/v2/control-planes", b'{"name": "x"}', 400),
        ("GET", "/v2/control-planes/{id}/core-entities/services?size=x", b"", 400),
        ("GET", "/v2/control-planes/{id}/core-entities/services/none", b"", 404),
        ("POST", "/v2/control-planes/{id}/core-entities/services", b"{}", 400),
        ("POST", "/v2/control-planes/{id}/core-entities/services", b"{broken", 400),
        ("POST", "/v2/control-planes/{id}/apply", b'{"document": {}}', 400),
        ("GET", "/konnect-api/api/runtime_groups?page=x", b"", 400),
    ],
)
async def test_all_errors_have_one_shape(client: Client, method: str, path: str, body: bytes, status: int) -> None:
    headers = {"content-type": "application/json"} if body else {}
    response = await client.http.request(method, path.replace("{id}", client.id), content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) >= PROBLEM_FIELDS
    assert problem["status"] == status
    assert problem["message"]


async def test_broken_json_is_called_by_name(client: Client) -> None:
    response = await client.http.post(
        f"/v2/control-planes/{client.id}/core-entities/services",
        content=b'{"name": "a"\n "host"}',
        headers={"content-type": "application/json"},
    )
    message = response.json()["message"]
    assert message.startswith("Cannot parse JSON body: ")
    assert "line 2" in message


async def test_another_content_type_is_refused(client: Client) -> None:
    response = await client.http.post("/v2/control-planes", content=b"a=b", headers={"content-type": "text/plain"})
    assert response.status_code == 415


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data"])
@pytest.mark.parametrize("face", ["/v2/control-planes/{id}/core-entities", "/admin/{id}"])
async def test_a_compressed_body_is_refused_with_what_would_be_right(client: Client, face: str, kind: str) -> None:
    response = await client.http.post(
        face.format(id=client.id) + "/consumers",
        content=gzip.compress(b'{"username": "a"}'),
        headers={"content-type": kind, "content-encoding": "gzip"},
    )
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "identity"
    assert "Content-Encoding: expected none, not gzip" in response.json()["message"]


@pytest.mark.parametrize(
    "path", ["/health", "/v2/tokens", "/v2/control-planes/{id}/core-entities/services", "/admin/{id}"]
)
async def test_head_is_answered_as_get_is_without_the_body(client: Client, path: str) -> None:
    path = path.replace("{id}", client.id)
    whole, head = await client.http.get(path), await client.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/health", "GET, HEAD"), ("/v3/available-regions", "GET, HEAD"), ("/openapi.json", "GET, HEAD")],
)
@pytest.mark.parametrize("method", ["OPTIONS", "DELETE", "POST"])
async def test_another_method_is_refused_with_those_that_are_there(
    client: Client, method: str, path: str, allowed: str
) -> None:
    response = await client.http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_is_refused(client: Client, announced: bool) -> None:
    async def chunks() -> Any:
        for _ in range(17):
            yield b"x" * 1024 * 1024

    content: Any = b"x" * (16 * 1024 * 1024 + 1) if announced else chunks()
    response = await client.http.post("/v2/control-planes", content=content)
    assert response.status_code == 413


async def test_a_commit_that_fails_is_a_500_not_a_201(client: Client) -> None:
    """The unit of work ends before the answer: nobody hears of a success that the database then refuses."""

    def fail(_: Any) -> None:
        raise RuntimeError("the disk is full of postgresql://user:password@host")

    engine = client.plane.database.engine.sync_engine
    event.listen(engine, "commit", fail)
    try:
        for path, body in (
            ("/v2/control-planes", {"name": "unlucky"}),
            (f"/v2/control-planes/{client.id}/core-entities/services", {"name": "s", "host": "a.test"}),
        ):
            response = await client.http.post(path, json=body)
            assert response.status_code == 500
            assert response.json()["message"] == "An unexpected error occurred"
            assert "password" not in response.text
    finally:
        event.remove(engine, "commit", fail)
    assert (await client.get("services"))["data"] == []


async def test_a_database_that_is_away_is_a_503(client: Client) -> None:
    def refuse(*_: Any) -> None:
        raise OperationalError("SELECT 1", {}, ConnectionRefusedError("postgresql://user:password@host"))

    engine = client.plane.database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", refuse)
    try:
        response = await client.http.get("/v2/control-planes")
    finally:
        event.remove(engine, "before_cursor_execute", refuse)
    assert response.status_code == 503
    assert "password" not in response.text


async def test_the_openapi_document_describes_every_collection(client: Client) -> None:
    document = (await client.http.get("/openapi.json")).json()
    prefix = "/v2/control-planes/{control_plane_id}/core-entities"
    assert {"get", "post"} <= set(document["paths"][f"{prefix}/services"])
    assert {"get", "put", "patch", "delete"} <= set(
        document["paths"][f"{prefix}/consumers/{{parent}}/key-auth/{{key}}"]
    )
    assert "Service" in document["components"]["schemas"]
    operations = [op["operationId"] for path in document["paths"].values() for op in path.values()]
    assert len(operations) == len(set(operations))
    assert (await client.http.get("/docs")).status_code == 200


async def test_a_mistyped_field_beside_a_secret_is_named_and_the_secret_stays_out_of_the_log(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    auth = {"header_name": "Authorization", "header_value": "Bearer sk-secret"}
    body = {"name": "ai-proxy-advanced", "config": {"openai": {}, "targets": [{"auth": auth}]}}
    refused = await client.call("POST", "plugins", body, 400)
    assert "config.openai: unknown field" in refused["message"]
    assert "sk-secret" not in caplog.text + str(refused)


async def test_a_fault_of_ours_is_logged_without_what_was_sent(
    client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loose(BaseModel):
        port: int

    secret = secrets.token_hex(8)

    def fail(*_: Any) -> None:
        try:
            Loose.model_validate({"port": secret})
        except ValidationError as error:
            raise RuntimeError("a fault of ours") from error

    monkeypatch.setattr(client.plane, "touch", fail)
    await client.call("POST", "services", {"name": "s", "host": "h.test"}, 500)
    assert "a fault of ours" in caplog.text
    assert "Loose was refused: port (int_parsing)" in caplog.text
    assert secret not in caplog.text
