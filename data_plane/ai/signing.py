"""AWS Signature Version 4 for requests to models, and where the credentials come from.

botocore knows the algorithm and the places where credentials may be found. What would be repeated for every request is
remembered: the day's signing key, and what botocore signs for a request of one kind, around its date and body. Finding
credentials may mean files, a metadata server or STS, all of it blocking: that happens in a thread, for one caller at a
time, with a time limit, and long before the old ones expire.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Final

from botocore.auth import SigV4Auth
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    Credentials,
    DeferredRefreshableCredentials,
    ReadOnlyCredentials,
    RefreshableCredentials,
)
from botocore.session import Session

SERVICE: Final = "bedrock"
LOADING_TIMEOUT: Final = 15.0
"""Seconds that finding credentials may take."""
_FAILURE_PAUSE: Final = 2.0
"""Seconds during which a failed search is not repeated: requests fail at once instead of queueing for a thread."""
_STS_CONFIG: Final = Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 2})
_DEFAULT_SESSION_NAME: Final = "tandem"
_NEVER: Final = "00000000T000000Z"
"""Stands for the date of a request."""
_EMPTY_BODY: Final = hashlib.sha256(b"").hexdigest()
_MAX_FORMS: Final = 64
"""Kinds of requests that a signer remembers: addresses and fixed headers, of which a target has a few."""


@lru_cache(maxsize=4)
def _stamp(second: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))


class CredentialsUnavailable(Exception):
    """No credentials could be found. The message is for the log and names no secret."""


@dataclass(frozen=True, slots=True, repr=False)
class _Form:
    """The canonical request of one kind, around its date, and the names of the headers in it. May hold a token."""

    before: str
    after: str
    signed: str


class _Fields(dict[str, str]):
    """Header fields by lower-case name, as botocore's canonical form reads them."""

    def get_all(self, name: str) -> list[str]:
        return [self[name]]


@dataclass(slots=True)
class _Signable:
    """What botocore reads of a request."""

    method: str
    url: str
    headers: _Fields
    body: bytes
    context: dict[str, str]
    params: Mapping[str, str] = field(default_factory=dict)


class Signer(SigV4Auth):  # type: ignore[misc]  # botocore has no types
    """Signs for one service in one region with one set of credentials."""

    def __init__(self, credentials: ReadOnlyCredentials, region: str, service: str = SERVICE) -> None:
        super().__init__(credentials, service, region)
        self._key_date = ""
        self._key = b""
        self._forms: dict[Any, _Form] = {}

    def sign(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, timestamp: str | None = None
    ) -> dict[str, str]:
        """The headers that authorise a request, names in lower case.

        `headers` (lower-case names, `host` among them) are all signed; `url` is absolute with its path as on the wire;
        `timestamp` is `YYYYMMDDTHHMMSSZ`, by default now.
        """
        stamp = timestamp or _stamp(int(time.time()))
        named = (method, url, *headers.items())
        form = self._forms.get(named)
        if form is None:
            form = self._remember(named, self._form(method, url, headers))
        canonical = f"{form.before}{stamp}{form.after}{hashlib.sha256(body).hexdigest()}"
        scope = f"{stamp[:8]}/{self._region_name}/{self._service_name}/aws4_request"
        digest = hashlib.sha256(canonical.encode("utf-8")).hexdigest()
        signature = self._signature(f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}", stamp[:8])
        added = {"x-amz-date": stamp}
        if self.credentials.token:
            added["x-amz-security-token"] = self.credentials.token
        added["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.credentials.access_key}/{scope}, "
            f"SignedHeaders={form.signed}, Signature={signature}"
        )
        return added

    def _form(self, method: str, url: str, headers: Mapping[str, str]) -> _Form:
        """What botocore signs for such a request, with places for its date and its body."""
        fields = _Fields({**headers, "x-amz-date": _NEVER})
        if self.credentials.token:
            fields["x-amz-security-token"] = self.credentials.token
        canonical = self.canonical_request(_Signable(method, url, fields, b"", {"timestamp": _NEVER}))
        before, after = canonical.removesuffix(_EMPTY_BODY).split(f"\nx-amz-date:{_NEVER}\n")
        return _Form(f"{before}\nx-amz-date:", f"\n{after}", self.signed_headers(fields))

    def _remember(self, named: Any, form: _Form) -> _Form:
        if len(self._forms) >= _MAX_FORMS:
            self._forms.clear()
        self._forms[named] = form
        return form

    def headers_to_sign(self, request: _Signable) -> _Fields:
        return request.headers

    def payload(self, request: _Signable) -> str:
        return hashlib.sha256(request.body).hexdigest()

    def _signature(self, string_to_sign: str, date: str) -> str:
        if date != self._key_date:
            key = f"AWS4{self.credentials.secret_key}".encode()
            for part in (date, self._region_name, self._service_name, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key, self._key_date = key, date
        return hmac.digest(self._key, string_to_sign.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True)
class CredentialPlan:
    """Which credentials a target wants. Equal plans share one source."""

    access_key_id: str | None = field(repr=False)
    secret_access_key: str | None = field(repr=False)
    region: str
    role_arn: str | None = None
    role_session_name: str | None = None
    sts_endpoint_url: str | None = None


def base_credentials(plan: CredentialPlan, environment: Mapping[str, str]) -> Credentials | None:
    """Those of the configuration, else of the environment; None when the SDK's chain has to look."""
    if plan.access_key_id and plan.secret_access_key:
        return Credentials(plan.access_key_id, plan.secret_access_key)
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        return Credentials(key, secret, environment.get("AWS_SESSION_TOKEN") or None)
    return None


class SignerSource:
    """Gives a signer that is valid now; finds and renews credentials when it must."""

    def __init__(
        self, plan: CredentialPlan, environment: Mapping[str, str], session: Callable[[], Any] = Session
    ) -> None:
        self._plan = plan
        self._session = session
        self._credentials = base_credentials(plan, environment)
        self._static = False
        self._signer: Signer | None = None
        if self._credentials is not None and plan.role_arn is None:
            self._static = True
            self._signer = Signer(self._credentials.get_frozen_credentials(), plan.region)
        self._loading: asyncio.Task[Signer] | None = None
        self._failure: tuple[float, CredentialsUnavailable] | None = None
        self._ready: Any = None
        """botocore's credentials, which know when they want to be renewed; only the loading thread lets them."""

    def at_hand(self) -> Signer | None:
        """A signer for which nothing has to be found or renewed."""
        signer = self._signer
        return signer if signer is not None and (self._static or not self._wants_renewal()) else None

    async def signer(self) -> Signer:
        """Raises CredentialsUnavailable."""
        signer = self.at_hand()
        if signer is not None:
            return signer
        signer = self._signer
        if self._failure is not None and time.monotonic() < self._failure[0]:
            if signer is not None and not self._is_expired():
                return signer
            raise self._failure[1]
        if self._loading is None:
            self._loading = asyncio.get_running_loop().create_task(self._load(), name="aws credentials")
            self._loading.add_done_callback(self._loaded)
        if signer is not None and not self._is_expired():
            return signer  # The old ones still hold; the new ones come meanwhile.
        return await asyncio.shield(self._loading)

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait((self._loading,))

    def _wants_renewal(self) -> bool:
        return isinstance(self._ready, RefreshableCredentials) and bool(self._ready.refresh_needed())

    def _is_expired(self) -> bool:
        return isinstance(self._ready, RefreshableCredentials) and bool(self._ready.refresh_needed(refresh_in=0))

    async def _load(self) -> Signer:
        try:
            async with asyncio.timeout(LOADING_TIMEOUT):
                frozen = await asyncio.to_thread(self._find)
        except TimeoutError:
            raise CredentialsUnavailable(f"AWS credentials were not found within {LOADING_TIMEOUT:g} s") from None
        except CredentialsUnavailable:
            raise
        except Exception as error:
            # Files, metadata servers and STS fail in too many ways to list; botocore's texts name no secrets.
            raise CredentialsUnavailable(f"{type(error).__name__}: {error}") from error
        return Signer(frozen, self._plan.region)

    def _loaded(self, task: asyncio.Task[Signer]) -> None:
        self._loading = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._signer, self._failure = task.result(), None
        elif isinstance(error, CredentialsUnavailable):
            self._failure = (time.monotonic() + _FAILURE_PAUSE, error)

    def _find(self) -> ReadOnlyCredentials:
        """Runs in a thread: may block."""
        if self._ready is None:
            self._ready = self._compose()
        return self._ready.get_frozen_credentials()

    def _compose(self) -> Any:
        plan = self._plan
        session = self._session()
        base = self._credentials or session.get_credentials()
        if base is None:
            raise CredentialsUnavailable("no AWS credentials in the configuration, the environment or the SDK's chain")
        if plan.role_arn is None:
            return base
        create_client = partial(
            session.create_client, region_name=plan.region, endpoint_url=plan.sts_endpoint_url, config=_STS_CONFIG
        )
        session_name = plan.role_session_name or _DEFAULT_SESSION_NAME
        fetcher = AssumeRoleCredentialFetcher(
            create_client, base, plan.role_arn, extra_args={"RoleSessionName": session_name}
        )
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
