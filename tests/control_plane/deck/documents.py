"""Files as decK's users write them: one with every kind of entity, and many of a kind."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

JWK = (
    '{"kty":"EC","crv":"P-256","kid":"signing-1","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",'
    '"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}'
)


@cache
def certificate_pair() -> tuple[str, str]:
    """A certificate that may sign others, and its key: PEM, made anew for each run."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("global.api.konghqhttp")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


@cache
def public_key() -> str:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def everything() -> dict[str, Any]:
    """Every kind of entity that decK knows and we keep, with each way in which decK scopes, nests and refers."""
    certificate, key = certificate_pair()
    return {
        "_format_version": "3.0",
        "services": _services(),
        "routes": [
            {"name": "stray", "hosts": ["stray.test", "*.stray.test"], "protocols": ["https"], "snis": ["stray.test"]},
            {"name": "by-name", "paths": ["/by-name"], "service": {"name": "shop"}},
        ],
        "plugins": [
            {
                "name": "key-auth",
                "route": "by-name",
                "config": {"key_names": ["x-key"]},
                "protocols": ["https", "http"],
            },
            {
                "name": "ai-prompt-decorator",
                "service": "shop",
                "consumer": "alice",
                "config": {"prompts": {"append": [{"content": "Be kind.", "role": "system"}]}},
            },
            {"name": "ai-proxy-advanced", "config": _models(), "enabled": False, "tags": ["b", "a"]},
            {
                "name": "ai-proxy-advanced",
                "service": "balanced",
                "config": {"targets": [_TARGET], "balancer": {"algorithm": "lowest-usage"}},
                "partials": [{"name": "vectors", "path": "config.vectordb"}],
            },
        ],
        "consumers": [_alice(), {"username": "bob", "groups": [{"name": "gold"}]}, {"custom_id": "only-an-id"}],
        "consumer_groups": [
            {
                "name": "gold",
                "tags": ["metal"],
                "plugins": [{"name": "ai-prompt-decorator", "config": _prompts("Gold.")}],
            },
            {"name": "empty"},
        ],
        "upstreams": _upstreams(),
        "certificates": [
            {
                "id": "aa1cf3dd-cbbd-4a5c-8f1f-2d4d1bbd3bd1",
                "cert": certificate,
                "key": key,
                "tags": ["tls"],
                "snis": [{"name": "gateway.test"}, {"name": "*.gateway.test", "tags": ["wild"]}],
            }
        ],
        "ca_certificates": [{"id": "c5a1a6c3-5a0c-4e0e-a7a4-5c8a1e3a4f10", "cert": certificate}],
        "vaults": [{"name": "env", "prefix": "my-env", "config": {"prefix": "SECRET_"}, "description": "Environment"}],
        "key_sets": [{"name": "signing"}, {"name": "spare", "tags": ["old"]}],
        "keys": [
            {"name": "first", "kid": "signing-1", "jwk": JWK, "set": {"name": "signing"}},
            {"name": "second", "kid": "pem-1", "pem": {"public_key": public_key()}},
        ],
        "partials": [{"name": "vectors", "type": "vectordb", "config": _vectors()}],
    }


def _services() -> list[dict[str, Any]]:
    return [
        {
            "name": "shop",
            "url": "http://shop.test:8080/api",
            "tags": ["team-a", "blue"],
            "routes": [
                {
                    "name": "shop",
                    "paths": ["/shop", "~/s(h)op$"],
                    "methods": ["GET", "POST"],
                    "headers": {"x-a": ["1"]},
                },
                {"name": "grpc", "protocols": ["grpc", "grpcs"], "paths": ["/pkg.Service/"], "strip_path": False},
                {
                    "name": "expressed",
                    "expression": 'http.path ^= "/exp" && http.method == "GET"',
                    "priority": 7,
                    "plugins": [{"name": "key-auth", "instance_name": "expressed-door"}],
                },
            ],
            "plugins": [{"name": "datakit", "config": _workflow(), "ordering": {"before": {"access": ["key-auth"]}}}],
        },
        {
            "name": "bank",
            "url": "https://bank.test",
            "retries": 0,
            "client_certificate": "aa1cf3dd-cbbd-4a5c-8f1f-2d4d1bbd3bd1",
            "ca_certificates": ["c5a1a6c3-5a0c-4e0e-a7a4-5c8a1e3a4f10"],
            "tls_verify": True,
            "tls_verify_depth": 2,
        },
        {"name": "balanced", "host": "pool.test", "port": 8000, "enabled": False},
    ]


def _alice() -> dict[str, Any]:
    return {
        "username": "alice",
        "custom_id": "a-1",
        "tags": ["people"],
        "groups": [{"name": "gold"}],
        "keyauth_credentials": [{"key": "alice-key", "tags": ["k"]}],
        "basicauth_credentials": [{"username": "alice", "password": "alice-password"}],
        "hmacauth_credentials": [{"username": "alice-hmac", "secret": "alice-hmac-secret"}],
        "jwt_secrets": [
            {"key": "alice-issuer", "secret": "alice-jwt-secret", "algorithm": "HS256"},
            {"key": "alice-rsa", "secret": "unused", "algorithm": "RS256", "rsa_public_key": public_key()},
        ],
        "acls": [{"group": "buyers"}, {"group": "sellers", "tags": ["s"]}],
        "mtls_auth_credentials": [{"id": "0c2b2f4e-3d9b-4b57-9d77-17fb4d3b1b11", "subject_name": "alice.test"}],
        "plugins": [{"name": "ai-prompt-decorator", "config": _prompts("Alice asks.")}],
    }


def _upstreams() -> list[dict[str, Any]]:
    return [
        {
            "name": "pool.test",
            "hash_on": "header",
            "hash_on_header": "x-session",
            "hash_fallback": "ip",
            "healthchecks": {"active": {"http_path": "/up", "healthy": {"interval": 5}}, "threshold": 20},
            "tags": ["pool"],
            "targets": [
                {"target": "10.0.0.1:8080", "weight": 50},
                {"target": "host.test", "tags": ["t"]},
                {"target": "[2001:db8::1]:9000"},
            ],
        },
        {"name": "plain.test", "slots": 100},
    ]


def _prompts(text: str) -> dict[str, Any]:
    return {"prompts": {"prepend": [{"content": text}]}}


_TARGET = {"route_type": "llm/v1/chat", "model": {"provider": "openai", "name": "m"}}


def _models() -> dict[str, Any]:
    auth = {"header_name": "Authorization", "header_value": "Bearer model-key"}
    return {
        "targets": [{**_TARGET, "auth": auth, "metadata": {"a": [1, 2]}}, {**_TARGET, "weight": 3}],
        "balancer": {"failover_criteria": ["timeout", "error"]},
    }


def _vectors() -> dict[str, Any]:
    return {"strategy": "redis", "dimensions": 3, "distance_metric": "cosine", "redis": {"host": "redis.test"}}


def _workflow() -> dict[str, Any]:
    nodes = [
        {"name": "ASK", "type": "call", "url": "http://a.test/", "inputs": {"body": "request.body"}},
        {"name": "PICK", "type": "jq", "jq": ".a", "input": "ASK.body", "output": "service_request.body"},
    ]
    return {"nodes": nodes}


def shortened() -> dict[str, Any]:
    """What decK completes by itself: shorthands, defaults of the file, and its own in the place of what is left out."""
    return {
        "_format_version": "3.0",
        "_info": {
            "defaults": {
                "service": {"path": "/default", "tags": ["default"], "retries": 3},
                "route": {"service": {"name": "whole"}, "headers": {"x-default": ["1"]}},
                "upstream": {"healthchecks": {"threshold": 5, "active": {"concurrency": 3}}},
            }
        },
        "services": [
            {"name": "whole", "url": "https://Host.Test:8443/A%20b"},
            {"name": "beside", "url": "http://host.test/x", "path": "/y", "port": 9, "tags": ["own"]},
            {"name": "without-a-path", "url": "https://host.test"},
        ],
        "routes": [{"name": "bare", "paths": ["/bare"], "headers": {"x-own": ["2"]}}],
        "upstreams": [
            {"name": "hashed.test", "hash_on": "header", "hash_on_header": "x-user"},
            {"name": "checked.test", "healthchecks": {"active": {"timeout": 9}}},
        ],
    }


def tagged(tag: str, name: str) -> dict[str, Any]:
    """One team's file."""
    return {
        "_format_version": "3.0",
        "_info": {"select_tags": [tag]},
        "services": [{"name": name, "host": f"{name}.test", "routes": [{"name": name, "paths": [f"/{name}"]}]}],
        "consumers": [{"username": name, "keyauth_credentials": [{"key": f"{name}-key"}]}],
    }


def many(kind: str, count: int) -> dict[str, Any]:
    """`count` services or consumers."""
    entries = [
        {"name": f"s-{number:05}", "host": "a.test"} if kind == "services" else {"username": f"c-{number:05}"}
        for number in range(count)
    ]
    return {"_format_version": "3.0", kind: entries}


def stable_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))
