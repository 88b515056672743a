"""A target of the configuration, made ready: its adapter, its address, its credentials.

What does not depend on the request is worked out once. A target whose model holds templates, or that has no name of its
own, is worked out per request, in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import orjson

from data_plane.ai.balancer import Breaker
from data_plane.ai.providers import PROVIDERS
from data_plane.ai.providers.base import Adapter, EncodedRequest, ProviderRow, Unaddressable
from data_plane.ai.providers.bedrock import region_of
from data_plane.ai.signing import CredentialPlan, CredentialsUnavailable, Signer, SignerSource
from data_plane.ai.templates import expand, expand_name, has_template
from data_plane.errors import ConfigError, LlmError
from data_plane.exchange import Exchange
from data_plane.http1.client import Origin
from data_plane.http1.framing import request_head
from data_plane.messages import BufferedBody, Head, Headers, Request
from gateway_schema.plugins.ai_proxy_advanced import Balancer as BalancerConfig
from gateway_schema.plugins.llm import Auth, ModelOptions
from gateway_schema.plugins.llm import Target as TargetConfig

MODEL_HEADER: Final = "X-Kong-LLM-Model"

_TUNING: Final = ("max_tokens", "temperature", "top_p", "top_k")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_SOURCES: Final = 64
"""Sources of credentials that one target keeps; templates could otherwise make one for every request."""
_VAULT: Final = "{vault://"
_ANY_MODEL: Final = "any"
"""Stands for the model that requests will name, when only the address is to be checked."""
_UNFIT_FOR_HEADERS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]|^\s|\s$")
_FIT_FOR_URLS: Final = re.compile(r"[\x21-\x7e]*")


@dataclass(frozen=True, slots=True)
class Ready:
    """A target for one model: everything that a request to it needs."""

    model: str
    model_field: tuple[str, str]
    """The header that tells the client."""
    options: ModelOptions
    adapter: Adapter
    origin: Origin
    base_path: str
    fixed_path: str | None
    """Path, perhaps with a query, that replaces the provider's own, where the configuration says so."""
    tuning: Mapping[str, Any]
    signer: SignerSource | None

    def tuned(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        """The chat with the configuration's tuning, which wins over the client's."""
        if not self.tuning:
            return chat
        tuned = {**chat, **self.tuning}
        if "max_tokens" in self.tuning:
            tuned.pop("max_completion_tokens", None)  # the same limit under its newer name
        return tuned


class Target:
    def __init__(
        self, number: int, config: TargetConfig, balancer: BalancerConfig, environment: Mapping[str, str], agent: str
    ) -> None:
        """`agent` is the User-Agent. Raises ConfigError for what this version cannot run."""
        self._field = f"config.targets[{number}]"
        self._environment = environment
        self._row = self._check(config)
        self._auth = config.auth or Auth()
        self._sources: dict[CredentialPlan, SignerSource] = {}
        self.config = config
        self.number = number
        self.provider = config.model.provider
        self.alias = config.model.model_alias
        self.alias_text = self.alias or ""
        self.logs_payloads = config.logging.log_payloads
        self.weight = config.weight
        self.breaker = Breaker(balancer.max_fails, balancer.fail_timeout / 1000)
        self._headers = {
            stream: _fixed_headers(self._auth, agent, accept)
            for stream, accept in ((False, "application/json"), (True, "text/event-stream"))
        }
        self._heads = {stream: Head(fields) for stream, fields in self._headers.items()}
        self._asks_nothing = self._needs_no_request()
        self._options = config.model.options or ModelOptions()
        self._templated = self._options.model_dump(exclude_none=True) if self._has_templates() else None
        self._ready = self._prepare_once()
        self._wire: dict[str, tuple[Ready, bytes]] = {}
        """By path: heads of requests for whole answers, up to the length, where nothing else in them varies."""

    def describe(self) -> dict[str, Any]:
        """Who it is, for people; no secrets."""
        return {
            "target": self.number,
            "provider": self.provider,
            "model": self.config.model.name,
            "alias": self.alias,
            "weight": self.weight,
        }

    async def close(self) -> None:
        for source in self._sources.values():
            await source.close()

    # Making it ready.

    def ready(self, exchange: Exchange, named: str | None, *, by_alias: bool) -> Ready:
        """The target for this request, which named the model `named`. Raises LlmError(400)."""
        ready = self._ready
        if by_alias and ready is not None:
            return ready
        if ready is None:
            ready = self._prepare_for(exchange, named)
        if named and not by_alias and named != ready.model:
            raise LlmError(400, f"cannot use own model - must be: {ready.model}")
        return ready

    def _check(self, config: TargetConfig) -> ProviderRow:
        provider = config.model.provider
        row = PROVIDERS.get(provider)
        if row is None:
            available = ", ".join(sorted(PROVIDERS))
            raise self._refusal("model.provider", f"'{provider}' is not available in this version (has: {available})")
        if config.route_type not in row.route_types:
            available = ", ".join(sorted(row.route_types))
            raise self._refusal(
                "route_type",
                f"'{config.route_type}' is not available for {provider} in this version (has: {available})",
            )
        auth = config.auth
        for name in ("azure_use_managed_identity", "gcp_use_service_account"):
            if auth is not None and getattr(auth, name):
                raise self._refusal(f"auth.{name}", f"{provider} has no such identity")
        for name in ("header_name", "header_value", "param_value", "aws_access_key_id", "aws_secret_access_key"):
            self._check_credential(name, getattr(auth, name, None) or "")
        return row

    def _check_credential(self, name: str, value: str) -> None:
        if value.startswith(_VAULT):
            raise self._refusal(f"auth.{name}", "vault references are not available in this version")
        if _UNFIT_FOR_HEADERS.search(value):
            raise self._refusal(f"auth.{name}", "holds a line break, a control character, or blanks at its ends")

    def _refusal(self, field: str, message: str) -> ConfigError:
        return ConfigError(message, field=f"{self._field}.{field}")

    def _has_templates(self) -> bool:
        name = self.config.model.name
        return has_template(name) or has_template(self._options.model_dump(exclude_none=True))

    def _prepare_once(self) -> Ready | None:
        """None when the request has a say in it. Raises ConfigError when it is not known where the model lives."""
        name = self.config.model.name
        if self._templated is not None:
            return None
        try:
            ready = self._prepare(name or _ANY_MODEL, self._options)
        except Unaddressable as fault:
            raise self._refusal(fault.field, fault.message) from None
        return ready if name else None

    def _prepare_for(self, exchange: Exchange, named: str | None) -> Ready:
        configured = self.config.model.name
        model = expand_name(configured, exchange) if configured else named
        if not model:
            raise LlmError(400, "model parameter not found in request, nor in gateway configuration")
        options = self._options
        if self._templated is not None:
            try:
                options = ModelOptions.model_validate(expand(self._templated, exchange))
            except ValueError:
                raise LlmError(400, "the request does not give valid options for the model") from None
        try:
            return self._prepare(model, options)
        except Unaddressable as fault:
            raise LlmError(400, fault.message) from None

    def _prepare(self, model: str, options: ModelOptions) -> Ready:
        url = options.upstream_url or self._row.base_url(options, self._environment)
        origin, path = _split(url)
        return Ready(
            model=model,
            model_field=(MODEL_HEADER, model),
            options=options,
            adapter=self._row.adapter(model, options),
            origin=origin,
            base_path=path,
            fixed_path=_own_path(options) or (path if options.upstream_url and path else None),
            tuning={name: getattr(options, name) for name in _TUNING if getattr(options, name) is not None},
            signer=self._signer(options),
        )

    def _signer(self, options: ModelOptions) -> SignerSource | None:
        if self._row.identity != "aws" or self._auth.header_name is not None or self._auth.param_name is not None:
            return None
        bedrock = options.bedrock
        plan = CredentialPlan(
            self._auth.aws_access_key_id,
            self._auth.aws_secret_access_key,
            region_of(options, self._environment),
            bedrock.aws_assume_role_arn if bedrock is not None else None,
            bedrock.aws_role_session_name if bedrock is not None else None,
            bedrock.aws_sts_endpoint_url if bedrock is not None else None,
        )
        source = self._sources.get(plan)
        if source is None:
            source = SignerSource(plan, self._environment)
            if len(self._sources) < _MAX_SOURCES:
                self._sources[plan] = source
        return source

    # Addressing and authorising a request.

    def _needs_no_request(self) -> bool:
        """Whether all that a request to the provider is made of beside its body is known from the configuration."""
        auth = self._auth
        overrides = auth.allow_override and auth.header_name is not None
        credential_elsewhere = auth.param_name is not None and auth.param_value is not None
        return not overrides and not credential_elsewhere and "content-length" not in self._heads[False].index

    def request_at_once(self, ready: Ready, encoded: EncodedRequest, stream: bool) -> Request | None:
        """What `request` gives, where nothing in it depends on the exchange or has to be waited for; else None.

        Unless it is signed, the fields are the same every time: whoever writes them finds their head.
        """
        if not self._asks_nothing or encoded.headers or encoded.query:
            return None
        target = ready.base_path + encoded.path if ready.fixed_path is None else ready.fixed_path
        headers = self._heads[stream].headers("")
        if ready.signer is not None:
            signer = ready.signer.at_hand()
            if signer is None:
                return None
            headers.extend(_signature(signer, ready, target, encoded.method, encoded.body))
        return Request(encoded.method, target, headers, BufferedBody(encoded.body), scheme=ready.origin.scheme)

    def wire_at_once(self, ready: Ready, encoded: EncodedRequest) -> bytes | None:
        """The request for a whole answer in wire form, under the same conditions as in `request_at_once`."""
        noted = self._wire.get(encoded.path)
        if noted is not None and noted[0] is ready and not (encoded.headers or encoded.query):
            return b"%b%d\r\n\r\n%b" % (noted[1], len(encoded.body), encoded.body)
        request = self.request_at_once(ready, encoded, False)
        if request is None:
            return None
        head = request_head(request, ready.origin, len(encoded.body))
        ending = b"%d\r\n\r\n" % len(encoded.body)
        if ready is self._ready and ready.signer is None and encoded.method == "POST" and head.endswith(ending):
            self._wire[encoded.path] = (ready, head[: -len(ending)])
        return head + encoded.body

    async def request(self, ready: Ready, encoded: EncodedRequest, exchange: Exchange, *, stream: bool) -> Request:
        """The provider's request. Nothing of the client's own headers or query goes into it, unless `allow_override`
        asks for the client's credential. Raises LlmError(500) when there are no credentials.
        """
        headers = list(self._headers[stream])
        body, query = encoded.body, dict(encoded.query)
        auth = self._auth
        if auth.allow_override and auth.header_name is not None:
            _override_header(headers, auth.header_name, exchange)
        if auth.param_name is not None and auth.param_value is not None:
            if auth.param_location == "query":
                query[auth.param_name] = self._query_credential(auth.param_name, auth.param_value, exchange)
            else:
                body = self._with_credential(body, auth.param_name, auth.param_value)
        headers += encoded.headers.items()
        target = ready.fixed_path if ready.fixed_path is not None else ready.base_path + encoded.path
        if query:
            target += ("&" if "?" in target else "?") + urlencode(query, quote_via=quote)
        if ready.signer is not None:
            headers += _signature(await _signer_of(ready.signer), ready, target, encoded.method, body)
        return Request(encoded.method, target, Headers(headers), BufferedBody(body), scheme=ready.origin.scheme)

    def _query_credential(self, name: str, value: str, exchange: Exchange) -> str:
        if not self._auth.allow_override:
            return value
        given = parse_qs(exchange.request.query).get(name, [""])[0]
        return given if given and not _is_gateways_own(given, exchange) else value

    def _with_credential(self, body: bytes, name: str, value: str) -> bytes:
        fields = orjson.loads(body)
        if not (self._auth.allow_override and fields.get(name)):
            fields[name] = value
        return orjson.dumps(fields)


class IdentityFailed(LlmError):
    """No credentials for the provider; `detail` is for the log."""

    def __init__(self, detail: str) -> None:
        super().__init__(500, "LLM request failed before proxying", kind="identity")
        self.detail = detail


async def _signer_of(source: SignerSource) -> Signer:
    try:
        return await source.signer()
    except CredentialsUnavailable as fault:
        raise IdentityFailed(str(fault)) from fault


def _signature(signer: Signer, ready: Ready, target: str, method: str, body: bytes) -> list[tuple[str, str]]:
    authority = ready.origin.authority
    signed = {"host": authority, "content-type": "application/json"}
    added = signer.sign(method, f"{ready.origin.scheme}://{authority}{target}", signed, body)
    return [("Host", authority), *added.items()]


def _split(url: str) -> tuple[Origin, str]:
    """Where to connect, and the path with its query; leading slashes collapse. Raises Unaddressable."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.hostname is None or port is None or not _FIT_FOR_URLS.fullmatch(url):
        raise Unaddressable("model.options.upstream_url", "the provider's address is not a valid http or https URL")
    path = "/" + parts.path.lstrip("/") if parts.path else ""
    return Origin(parts.scheme, parts.hostname, port), f"{path}?{parts.query}" if parts.query else path


def _own_path(options: ModelOptions) -> str | None:
    if not options.upstream_path:
        return None
    if not _FIT_FOR_URLS.fullmatch(options.upstream_path):
        raise Unaddressable("model.options.upstream_path", "the path holds characters that no URL may hold")
    return "/" + options.upstream_path.lstrip("/")


def _fixed_headers(auth: Auth, agent: str, accept: str) -> list[tuple[str, str]]:
    headers = [
        ("Content-Type", "application/json"),
        ("Accept", accept),
        ("Accept-Encoding", "identity"),
        ("User-Agent", agent),
    ]
    if auth.header_name is not None and auth.header_value is not None:
        headers.append((auth.header_name, auth.header_value))
    return headers


def _override_header(headers: list[tuple[str, str]], name: str, exchange: Exchange) -> None:
    """Put the client's own value in the configured one's place; never the key by which the gateway knows the client."""
    value = exchange.request.headers.get(name)
    if value is None or _is_gateways_own(value, exchange):
        return
    lowered = name.lower()
    headers[:] = [pair for pair in headers if pair[0].lower() != lowered] + [(name, value)]


def _is_gateways_own(value: str, exchange: Exchange) -> bool:
    """Whether a value holds the key by which the gateway knows the client."""
    credential = exchange.credential
    return credential is not None and credential.key is not None and credential.key in value
