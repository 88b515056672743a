"""A declarative file with an entity of every kind, in the places where decK writes them."""

from __future__ import annotations

import copy
from typing import Any

from gateway_schema.registry import ENTITY_TYPES
from tests.pems import certificate_pem, private_pem, public_pem

CERTIFICATE = "10000000-0000-4000-8000-000000000001"
AUTHORITY = "10000000-0000-4000-8000-000000000002"
MTLS = "10000000-0000-4000-8000-000000000003"

KINDS = frozenset(ENTITY_TYPES)


def everything() -> dict[str, Any]:
    """Fresh on every call; the same text in one test run."""
    return copy.deepcopy(_document())


def _document() -> dict[str, Any]:
    return {
        "_format_version": "3.0",
        "certificates": [
            {
                "id": CERTIFICATE,
                "cert": certificate_pem("site"),
                "key": private_pem("site"),
                "snis": [{"name": "site.test"}, {"name": "*.site.test"}],
            }
        ],
        "ca_certificates": [{"id": AUTHORITY, "cert": certificate_pem("authority", authority=True)}],
        "vaults": [{"prefix": "my-env", "name": "env", "config": {"prefix": "SECRET_"}, "description": "from outside"}],
        "partials": [{"name": "cache", "type": "vectordb", "config": _vectors()}],
        "key_sets": [{"name": "signing"}],
        "keys": [
            {"name": "k1", "kid": "k1", "set": {"name": "signing"}, "jwk": '{"kty":"oct","kid":"k1","k":"c2VjcmV0"}'},
            {
                "name": "k2",
                "kid": "k2",
                "set": {"name": "signing"},
                "pem": {"public_key": public_pem("k2"), "private_key": private_pem("k2")},
            },
        ],
        "upstreams": [
            {
                "name": "billing.upstream",
                "hash_on": "header",
                "hash_on_header": "x-user",
                "healthchecks": {"passive": {"unhealthy": {"http_failures": 3}}},
                "targets": [{"target": "a.test:8080", "weight": 20}, {"target": "b.test"}, {"target": "[::1]:9000"}],
            }
        ],
        "consumer_groups": [
            {"name": "gold", "plugins": [{"name": "ai-prompt-decorator", "config": _decorator("gold")}]},
            {"name": "silver", "consumers": [{"username": "bob"}]},
        ],
        "consumers": [
            {
                "username": "alice",
                "custom_id": "a-1",
                "groups": [{"name": "gold"}],
                "keyauth_credentials": [{"key": "alice-key"}],
                "basicauth_credentials": [{"username": "alice", "password": "open sesame"}],
                "hmacauth_credentials": [{"username": "alice", "secret": "shared"}],
                "jwt_secrets": [{"key": "alice-issuer", "secret": "signed", "algorithm": "HS256"}],
                "acls": [{"group": "admins"}],
                "mtls_auth_credentials": [
                    {"id": MTLS, "subject_name": "alice.test", "ca_certificate": {"id": AUTHORITY}}
                ],
            },
            {"username": "bob"},
        ],
        "services": [
            {
                "name": "billing",
                "host": "billing.test",
                "protocol": "https",
                "port": 443,
                "client_certificate": CERTIFICATE,
                "ca_certificates": [AUTHORITY],
                "routes": [
                    {"name": "pay", "paths": ["/pay"], "plugins": [{"name": "key-auth"}]},
                    {"name": "pick", "expression": 'http.path ^= "/pick"', "priority": 7},
                ],
                "filter_chains": [{"name": "chain", "filters": [{"name": "filter", "config": "x"}]}],
            }
        ],
        "plugins": [
            {"name": "key-auth", "instance_name": "everywhere"},
            {
                "name": "ai-proxy-advanced",
                "service": "billing",
                "consumer_group": "gold",
                "config": {"targets": [{"route_type": "llm/v1/chat", "model": {"provider": "openai", "name": "m"}}]},
                "partials": [{"name": "cache", "path": "config.vectordb"}],
            },
        ],
    }


def _decorator(text: str) -> dict[str, Any]:
    return {"prompts": {"prepend": [{"role": "system", "content": text}]}}


def _vectors() -> dict[str, Any]:
    return {"strategy": "pgvector", "dimensions": 3, "distance_metric": "cosine", "pgvector": {"password": "p"}}
