"""The control plane as the command sees it: its HTTP API, with answers as plain data and failures as messages."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from cli.errors import ApiError, CliError, Interrupted, OutcomeUnknown, Unreachable
from cli.texts import unbroken

APPLY_TIMEOUT = 120.0
"""Seconds that one apply may take: ten thousand entities on a busy machine, and some."""

_NAMES_SHOWN = 20
_SENDING = "send_request_body.started"
"""What httpcore's trace says last before the control plane could have acted."""
_GAVE_UP = frozenset({502, 504})
"""How a proxy answers that had no answer itself; a control plane never says so."""
_IN_DOUBT = "it is unknown whether the change was made"
_CONFIGURATION = "`recipe diff` shows what still differs, `recipe history` what was written"
_TOKENS = "`recipe token list` shows which tokens there are"


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the control plane is and by what right we ask, each with where that was said."""

    address: str
    token: str
    address_source: str
    token_source: str
    control_plane_name: str
    timeout: float = 30.0

    def __repr__(self) -> str:
        return f"Connection({self.address}, token from {self.token_source})"


@dataclass(frozen=True, slots=True)
class Consent:
    """What a caller agrees to beforehand: taking over what others own, deleting an alarming share; or leaving what
    others own where a plan would delete it."""

    adopt: bool = False
    force: bool = False
    spare: bool = False


NO_CONSENT = Consent()


class ControlPlane:
    """One control plane process, reached over HTTP. Close it, or use it as a context manager."""

    def __init__(self, connection: Connection, transport: httpx.BaseTransport | None = None) -> None:
        self.connection = connection
        headers = {"Authorization": f"Bearer {connection.token}"} if connection.token else {}
        try:
            self._http = httpx.Client(
                base_url=connection.address.rstrip("/"),
                headers=headers,
                timeout=connection.timeout,
                transport=transport,
                trust_env=not is_loopback(connection.address),  # A proxy would look for loopback addresses on itself.
            )
        except (ValueError, httpx.InvalidURL) as error:
            raise self._no_address(error) from None

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # Control planes

    def find(self, name: str) -> dict[str, Any] | None:
        """The control plane of that name, or None."""
        rows = self._get("/v2/control-planes", {"filter[name][eq]": name, "page[size]": "100"})["data"]
        return next((dict(row) for row in rows if row["name"] == name), None)

    def require(self, name: str) -> dict[str, Any]:
        """The control plane of that name. Raises CliError that tells which names there are."""
        if (row := self.find(name)) is not None:
            return row
        found = self._get("/v2/control-planes", {"page[size]": str(_NAMES_SHOWN)})
        names = ", ".join(unbroken(str(row["name"])) for row in found["data"]) or "none"
        further = int(found["meta"]["page"]["total"]) - len(found["data"])
        names += f" and {further} more" if further > 0 else ""
        raise CliError(
            f"control plane not found: {unbroken(name)} (at {self.connection.address} there are: {names}); choose one "
            "with --konnect-control-plane-name, or make it with `recipe up --control-plane-name`"
        )

    def create(self, name: str) -> dict[str, Any]:
        return dict(self._call("POST", "/v2/control-planes", json={"name": name}))

    def delete(self, control_plane_id: str) -> None:
        """Delete a control plane and all it holds; one that is gone already is no error."""
        try:
            self._call("DELETE", f"/v2/control-planes/{control_plane_id}")
        except ApiError as error:
            if error.status != 404:
                raise

    # Configuration

    def apply(
        self,
        control_plane_id: str,
        document: Mapping[str, Any],
        select_tags: Sequence[str],
        mode: str,
        commit: bool,
        consent: Consent = NO_CONSENT,
    ) -> dict[str, Any]:
        """The plan for a declarative document and, when committed, the version and hash that hold it."""
        body = {"document": document, "mode": mode, "commit": commit, **_wishes(select_tags, consent)}
        return self._write(f"/v2/control-planes/{control_plane_id}/apply", body, _CONFIGURATION if commit else "")

    def save_plan(
        self, control_plane_id: str, document: Mapping[str, Any], select_tags: Sequence[str], adopt: bool
    ) -> dict[str, Any]:
        """Make the plan of a sync and keep it in the control plane: its id, version, expiry, and what it would do."""
        body = {"document": document, "mode": "sync", **_wishes(select_tags, Consent(adopt=adopt))}
        return self._write(f"/v2/control-planes/{control_plane_id}/plans", body)

    def apply_plan(self, control_plane_id: str, plan_id: str, force: bool) -> dict[str, Any]:
        path = f"/v2/control-planes/{control_plane_id}/plans/{quote(plan_id, safe='')}/apply"
        return self._write(path, {"force": True} if force else {}, _CONFIGURATION)

    # History

    def snapshots(self, control_plane_id: str, size: int) -> list[dict[str, Any]]:
        """The kept snapshots, newest first."""
        found = self._get(f"/v2/control-planes/{control_plane_id}/snapshots", {"size": str(size)})
        return [dict(item) for item in found["data"]]

    def snapshot_diff(self, control_plane_id: str, version: int) -> dict[str, Any]:
        """What a version changed, as a plan."""
        return dict(self._get(f"/v2/control-planes/{control_plane_id}/snapshots/{version}/diff")["plan"])

    def rollback(
        self, control_plane_id: str, version: int, select_tags: Sequence[str], commit: bool, consent: Consent
    ) -> dict[str, Any]:
        body = {"commit": commit, **_wishes(select_tags, consent)}
        path = f"/v2/control-planes/{control_plane_id}/snapshots/{version}/rollback"
        return self._write(path, body, _CONFIGURATION if commit else "")

    def receipts(self, control_plane_id: str, version: int, wait: float) -> dict[str, Any]:
        """Who runs a version; answered when every connected node has said so or refused, or after `wait` seconds."""
        path = f"/v2/control-planes/{control_plane_id}/snapshots/{version}/receipts"
        timeout = wait + self.connection.timeout
        return dict(self._call("GET", path, params={"wait": f"{wait:.3f}"}, timeout=timeout))

    def _write(self, path: str, body: Mapping[str, Any], doubt: str = "") -> dict[str, Any]:
        timeout = max(APPLY_TIMEOUT, self.connection.timeout)
        return dict(self._call("POST", path, doubt, json=body, timeout=timeout))

    def document(self, control_plane_id: str, select_tags: Sequence[str]) -> dict[str, Any]:
        """What the control plane holds, as a declarative document, secrets in clear."""
        query = {"tags": ",".join(select_tags)} if select_tags else {}
        return dict(self._get(f"/v2/control-planes/{control_plane_id}/document", query))

    def entity(self, control_plane_id: str, collection: str, key: str) -> dict[str, Any] | None:
        """An entity by id or name, or None."""
        path = f"/v2/control-planes/{control_plane_id}/core-entities/{collection}/{quote(key, safe='')}"
        try:
            return dict(self._get(path))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    # Nodes

    def nodes(self, control_plane_id: str) -> list[dict[str, Any]]:
        return [dict(item) for item in self._get(f"/v2/control-planes/{control_plane_id}/nodes")["items"]]

    def certificates(self, control_plane_id: str) -> list[str]:
        """The client certificates (PEM) that nodes of this control plane may show."""
        items = self._get(f"/v2/control-planes/{control_plane_id}/dp-client-certificates")["items"]
        return [str(item["cert"]) for item in items]

    def register_certificate(self, control_plane_id: str, certificate: str, title: str) -> None:
        path = f"/v2/control-planes/{control_plane_id}/dp-client-certificates"
        self._call("POST", path, json={"cert": certificate, "title": title})

    # Who may, and who did

    def tokens(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self._get("/v2/tokens", {"page[size]": "1000", "page[number]": str(len(found) // 1000 + 1)})
            found += page["data"]
            if len(page["data"]) < 1000:
                return found

    def create_token(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The token, with its value: it cannot be had again."""
        return dict(self._call("POST", "/v2/tokens", _TOKENS, json=body))

    def revoke_token(self, token_id: str) -> None:
        self._call("DELETE", f"/v2/tokens/{token_id}", _TOKENS)

    def control_plane_names(self) -> dict[str, str]:
        """By id, of the first thousand."""
        rows = self._get("/v2/control-planes", {"page[size]": "1000"})["data"]
        return {str(row["id"]): str(row["name"]) for row in rows}

    def audit_logs(self, query: Mapping[str, str]) -> dict[str, Any]:
        return dict(self._get("/v2/audit-logs", query))

    # Analytics

    def metrics(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self._call("POST", "/v2/metrics", json=body))

    def health(self) -> dict[str, Any]:
        return dict(self._get("/health"))

    # Speaking

    def _get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        return self._call("GET", path, params=query)

    def _call(self, method: str, path: str, doubt: str = "", **arguments: Any) -> Any:
        """`doubt`, for what changes something: how to find out whether it did when no answer came."""
        steps: list[str] = []
        traced = {"trace": lambda step, _: steps.append(step)}
        try:
            response = self._http.request(method, path, extensions=traced, **arguments)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._no_address(error) from None
        except httpx.HTTPError as error:
            if doubt and _was_sent(steps):
                raise self._unknown(_reason(error), doubt) from None
            raise self._unreachable(error) from None
        except KeyboardInterrupt:
            if doubt and _was_sent(steps):
                raise Interrupted(f"interrupted while the control plane was at work: {_IN_DOUBT}; {doubt}") from None
            raise
        if doubt and response.status_code in _GAVE_UP:
            raise self._unknown(f"HTTP {response.status_code}", doubt)
        if response.status_code >= 400:
            raise self._refused(response)
        return _decoded(response, self.connection.address) if response.content else {}

    def _no_address(self, error: Exception) -> CliError:
        return CliError(f"not an address: {self.connection.address!r} from {self.connection.address_source} ({error})")

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        return Unreachable(
            f"the control plane at {self.connection.address} (from {self.connection.address_source}) cannot be "
            f"reached: {_reason(error)}. Start one with `recipe up` or `recipe control-plane`, or say where it is "
            "with --konnect-addr or DECK_KONNECT_ADDR"
        )

    def _unknown(self, reason: str, doubt: str) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"the control plane at {self.connection.address} took the request, but no answer came ({reason}): "
            f"{_IN_DOUBT}; {doubt}"
        )

    def _refused(self, response: httpx.Response) -> ApiError:
        connection = self.connection
        if response.status_code == 401:
            given = f"the token from {connection.token_source}" if connection.token else "a request without a token"
            reason = str(_problem(response).get("detail") or "")
            why = f": {reason}" if "expired" in reason else ""
            return ApiError(
                f"the control plane at {connection.address} refused {given} (401){why}; give one with --konnect-token, "
                "--konnect-token-file or DECK_KONNECT_TOKEN",
                401,
            )
        body = _problem(response)
        message = str(body.get("message") or body.get("detail") or body.get("title") or response.reason_phrase)
        parameters = body.get("invalid_parameters") or []
        reasons = "; ".join(f"{p.get('field')}: {p.get('reason')}" for p in parameters if isinstance(p, dict))
        text = f"{message} ({reasons})" if reasons not in message else message  # most messages say them themselves
        errors = [error for error in body.get("errors") or [] if isinstance(error, dict)]
        return ApiError(f"{text} [HTTP {response.status_code} from {connection.address}]", response.status_code, errors)


def _wishes(select_tags: Sequence[str], consent: Consent) -> dict[str, Any]:
    wishes: dict[str, Any] = {"select_tags": list(select_tags)} if select_tags else {}
    given = {"adopt": consent.adopt, "force": consent.force, "spare": consent.spare}
    return {**wishes, **{name: True for name, agreed in given.items() if agreed}}


def _was_sent(steps: Sequence[str]) -> bool:
    return any(step.endswith(_SENDING) for step in steps)


def _reason(error: httpx.HTTPError) -> str:
    said = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    return said.rstrip(".")


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _decoded(response: httpx.Response, address: str) -> Any:
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise CliError(f"what answers at {address} is not a control plane: {response.request.url.path} gave no JSON")
    return body


def is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
