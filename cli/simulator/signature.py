"""AWS Signature Version 4, checked from the server's side.

Written from Amazon's description of the algorithm, apart from the signer it judges. The path is taken as it came on the
wire and percent-encoded once more, as every service but S3 does.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote

MAX_SKEW = timedelta(minutes=5)

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/,]+)/(?P<date>\d{8})/(?P<region>[^/,]+)/(?P<service>[^/,]+)/aws4_request,"
    r"\s*SignedHeaders=(?P<headers>[^,]+),\s*Signature=(?P<signature>[0-9a-f]{64})$"
)


class SignatureRefused(Exception):
    """The signature does not hold. `error_type` is Amazon's name for the fault."""

    def __init__(self, error_type: str, message: str) -> None:
        self.error_type = error_type
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Secret:
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"
    service: str = "bedrock"


def verify(
    secret: Secret, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes, now: datetime
) -> None:
    """Check a request's Authorization header. `path` and `query` are raw, header names lower-case.

    Raises SignatureRefused.
    """
    match = _AUTHORIZATION.match(headers.get("authorization", ""))
    if match is None:
        raise SignatureRefused("MissingAuthenticationTokenException", "Missing Authentication Token")
    if match["key"] != secret.access_key_id:
        raise SignatureRefused("UnrecognizedClientException", "The security token included in the request is invalid.")
    timestamp = headers.get("x-amz-date", "")
    _check_scope(secret, match, timestamp, now)
    canonical = _canonical_request(method, path, query, headers, match["headers"], body)
    expected = _signature(secret, match["date"], timestamp, canonical)
    if not hmac.compare_digest(expected, match["signature"]):
        raise SignatureRefused(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method.",
        )


def _check_scope(secret: Secret, match: re.Match[str], timestamp: str, now: datetime) -> None:
    try:
        signed_at = datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise SignatureRefused("IncompleteSignatureException", "Date must be in ISO-8601 'basic format'.") from None
    if abs(now - signed_at) > MAX_SKEW:
        raise SignatureRefused("InvalidSignatureException", "Signature expired or not yet current.")
    if match["date"] != timestamp[:8] or match["service"] != secret.service or match["region"] != secret.region:
        raise SignatureRefused(
            "InvalidSignatureException", "Credential should be scoped to a valid region and service."
        )
    if not {"host", "x-amz-date"} <= set(match["headers"].split(";")):
        raise SignatureRefused("InvalidSignatureException", "host and x-amz-date must be signed.")


def _canonical_request(method: str, path: str, query: str, headers: Mapping[str, str], signed: str, body: bytes) -> str:
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in parse_qsl(query, keep_blank_values=True)
    )
    lines = [f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in signed.split(";")]
    return "\n".join(
        [
            method,
            quote(path, safe="/-_.~"),
            "&".join(f"{name}={value}" for name, value in pairs),
            "".join(lines),
            signed,
            hashlib.sha256(body).hexdigest(),
        ]
    )


def _signature(secret: Secret, date: str, timestamp: str, canonical: str) -> str:
    scope = f"{date}/{secret.region}/{secret.service}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n{digest}"
    key = b"AWS4" + secret.secret_access_key.encode()
    for part in (date, secret.region, secret.service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
