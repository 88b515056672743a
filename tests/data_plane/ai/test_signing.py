"""Signatures equal Amazon's, and credentials are found, kept and renewed without stopping anybody."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from hypothesis import given
from hypothesis import strategies as st

from data_plane.ai import signing
from data_plane.ai.signing import CredentialPlan, CredentialsUnavailable, Signer, SignerSource

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
STAMP = "20250102T030405Z"
HOST = "bedrock-runtime.us-east-1.amazonaws.com"
HEADERS = {"host": HOST, "content-type": "application/json"}


def credentials(token: str | None = None) -> ReadOnlyCredentials:
    return ReadOnlyCredentials("AKIDEXAMPLE", SECRET, token, None)


@pytest.mark.parametrize(
    ("path", "signature"),
    [
        (
            "/model/anthropic.claude-3-haiku-20240307-v1%3A0/converse",
            "64709b3035a976fe4b241698c04272f8f7256a2cabc691f5b3d753117716b799",
        ),
        (
            "/model/anthropic.claude-3-haiku-20240307-v1:0/converse",
            "92892ed57d614a1a6f9b7f15df66a3dce46f02c64325ea9d37b84f8f6072bc50",
        ),
    ],
)
def test_signs_as_in_amazons_vectors(path: str, signature: str) -> None:
    added = Signer(credentials(), "us-east-1").sign("POST", f"https://{HOST}{path}", HEADERS, b"{}", STAMP)

    assert added == {
        "x-amz-date": STAMP,
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20250102/us-east-1/bedrock/aws4_request, "
        f"SignedHeaders=content-type;host;x-amz-date, Signature={signature}",
    }


@given(
    model=st.text(st.characters(codec="ascii", categories=["L", "N"]) | st.sampled_from("%3A.:-_~!"), max_size=30),
    body=st.binary(max_size=200),
    token=st.none() | st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20),
    day=st.integers(min_value=0, max_value=3),
)
def test_signs_whatever_botocore_signs_in_the_same_way(model: str, body: bytes, token: str | None, day: int) -> None:
    url = f"https://{HOST}/model/{model}x/converse?b=2&a=1"
    signer = Signer(credentials(token), "us-east-1")
    for stamp in (f"2025010{day + 1}T030405Z", STAMP):
        reference = AWSRequest("POST", url, headers=HEADERS, data=body)
        reference.context["timestamp"] = stamp
        auth = SigV4Auth(credentials(token), "bedrock", "us-east-1")
        auth._modify_request_before_signing(reference)
        expected = auth.signature(auth.string_to_sign(reference, auth.canonical_request(reference)), reference)

        added = signer.sign("POST", url, HEADERS, body, stamp)

        assert added["authorization"].endswith(f"Signature={expected}")
        assert added.get("x-amz-security-token") == token


def test_requests_of_many_kinds_are_each_signed_for_what_they_are() -> None:
    """One signer, which remembers the kinds that it has seen, against a new one for each."""
    kinds = [
        ("POST", f"https://{HOST}/{number % 70}", {**HEADERS, "x-kind": f" {number % 3}  {number % 2} "})
        for number in range(200)
    ]
    signer = Signer(credentials("token"), "us-east-1")
    for method, url, headers in kinds:
        for body in (b"", b"{}"):
            fresh = Signer(credentials("token"), "us-east-1").sign(method, url, headers, body, STAMP)
            assert signer.sign(method, url, headers, body, STAMP) == fresh
    assert len(signer._forms) <= signing._MAX_FORMS


def test_the_time_is_now_unless_it_is_given() -> None:
    added = Signer(credentials(), "us-east-1").sign("POST", f"https://{HOST}/", HEADERS, b"")

    stamp = datetime.strptime(added["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - stamp) < timedelta(minutes=1)


# Where credentials come from.


class FakeSession:
    """botocore's session, as far as it is used. `find` runs in the loading thread."""

    def __init__(self, find: Any) -> None:
        self._find = find
        self.searches = 0
        self.threads: set[int] = set()

    def __call__(self) -> FakeSession:
        return self

    def get_credentials(self) -> Any:
        self.searches += 1
        self.threads.add(threading.get_ident())
        return self._find()


def plan(**fields: Any) -> CredentialPlan:
    return CredentialPlan(**{"access_key_id": None, "secret_access_key": None, "region": "eu-west-1", **fields})


async def key_of(source: SignerSource) -> str:
    return (await source.signer()).credentials.access_key


async def test_the_configurations_credentials_come_first_then_the_environments_then_the_chains() -> None:
    environment = {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    session = FakeSession(lambda: Credentials("CHAIN", "s"))

    configured = SignerSource(plan(access_key_id="CONFIG", secret_access_key="s"), environment, session)
    assert await key_of(configured) == "CONFIG"
    assert await key_of(SignerSource(plan(), environment, session)) == "ENV"
    assert session.searches == 0
    chained = SignerSource(plan(), {"AWS_ACCESS_KEY_ID": "only half"}, session)
    assert await key_of(chained) == "CHAIN"
    assert await key_of(chained) == "CHAIN"
    assert session.searches == 1
    assert threading.get_ident() not in session.threads


async def test_no_credentials_anywhere_is_said_at_once_and_not_searched_for_again_right_away() -> None:
    session = FakeSession(lambda: None)
    source = SignerSource(plan(), {}, session)

    for _ in range(3):
        with pytest.raises(CredentialsUnavailable, match="no AWS credentials"):
            await source.signer()
    assert session.searches == 1


async def test_callers_who_wait_share_one_search_and_survive_each_others_leaving() -> None:
    gate = threading.Event()

    def find() -> Credentials:
        gate.wait(5)
        return Credentials("CHAIN", "s")

    session = FakeSession(find)
    source = SignerSource(plan(), {}, session)
    waiting = [asyncio.create_task(source.signer()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    gate.set()

    assert [(await task).credentials.access_key for task in waiting[1:]] == ["CHAIN", "CHAIN"]
    assert session.searches == 1
    await asyncio.gather(waiting[0], return_exceptions=True)


async def test_a_search_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "LOADING_TIMEOUT", 0.01)
    gate = threading.Event()
    source = SignerSource(plan(), {}, FakeSession(lambda: gate.wait(5)))

    with pytest.raises(CredentialsUnavailable, match="not found within"):
        await source.signer()
    gate.set()


async def test_credentials_are_renewed_while_the_old_ones_still_serve() -> None:
    now = datetime.now(UTC)
    renewed = threading.Event()

    def renew() -> dict[str, str]:
        renewed.set()
        return {
            "access_key": "NEW",
            "secret_key": "s",
            "token": "t",
            "expiry_time": (now + timedelta(hours=1)).isoformat(),
        }

    old = RefreshableCredentials("OLD", "s", "t", now + timedelta(hours=1), renew, "test")
    source = SignerSource(plan(), {}, FakeSession(lambda: old))
    assert await key_of(source) == "OLD"
    assert not renewed.is_set()

    old._expiry_time = now + timedelta(minutes=5)  # inside the window in which renewal is advised
    assert await key_of(source) == "OLD"
    await asyncio.to_thread(renewed.wait, 5)
    async with asyncio.timeout(5):
        while await key_of(source) == "OLD":  # the renewing thread has yet to hand over
            await asyncio.to_thread(renewed.wait)
    assert await key_of(source) == "NEW"
    await source.close()


async def test_a_role_is_assumed_with_the_base_credentials_at_the_given_endpoint() -> None:
    asked: list[dict[str, Any]] = []

    def create_client(service: str, **arguments: Any) -> Any:
        def assume_role(**role: Any) -> Any:
            asked.append({"service": service, **arguments, **role})
            expiration = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
            return {
                "Credentials": {
                    "AccessKeyId": "ROLE",
                    "SecretAccessKey": "s",
                    "SessionToken": "token",
                    "Expiration": expiration,
                }
            }

        return SimpleNamespace(assume_role=assume_role)

    session = FakeSession(lambda: None)
    session.create_client = create_client  # type: ignore[attr-defined]
    wanted = plan(
        access_key_id="BASE",
        secret_access_key="s",
        role_arn="arn:aws:iam::1:role/r",
        role_session_name="me",
        sts_endpoint_url="https://sts.internal",
    )
    source = SignerSource(wanted, {}, session)

    assert await key_of(source) == await key_of(source) == "ROLE"
    (call,) = asked
    assert (call["service"], call["RoleArn"], call["RoleSessionName"]) == ("sts", "arn:aws:iam::1:role/r", "me")
    assert (call["aws_access_key_id"], call["endpoint_url"], call["region_name"]) == (
        "BASE",
        "https://sts.internal",
        "eu-west-1",
    )


def test_no_secret_shows_in_a_plan() -> None:
    assert "secret" not in repr(plan(access_key_id="key", secret_access_key="secret"))
