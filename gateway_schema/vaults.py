"""Vaults: where `{vault://prefix/name}` looks for secrets. What is configured is kept as it was written, unfilled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gateway_schema.base import Number, Record, Referenceable, Secret, Text
from gateway_schema.entities import Entity

VaultType = Literal["env", "aws", "gcp", "azure", "hcv", "conjur", "konnect"]
VAULT_TYPES: tuple[str, ...] = ("env", "aws", "gcp", "azure", "hcv", "conjur", "konnect")

HcvAuthMethod = Literal[
    "token",
    "kubernetes",
    "approle",
    "cert",
    "jwt",
    "aws_ec2",
    "aws_iam",
    "azure",
    "gcp_gce",
    "gcp_iam",
]

_PREFIX = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]+")

Seconds = Annotated[Number, Field(ge=0, le=2**53)]


def _check_prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value):
        raise ValueError(f"invalid value: {value}")
    if value in VAULT_TYPES:
        raise ValueError(f"must not be one of: {', '.join(VAULT_TYPES)}")
    return value


class VaultConfig(Record):
    """What every vault knows. Times in seconds."""

    ttl: Seconds | None = None
    neg_ttl: Seconds | None = None
    resurrect_ttl: Seconds | None = None
    base64_decode: bool | None = None


class EnvVault(VaultConfig):
    prefix: Text | None = None


class AwsVault(VaultConfig):
    region: Text | None = None
    endpoint_url: Text | None = None
    assume_role_arn: Text | None = None
    role_session_name: Text | None = None
    sts_endpoint_url: Text | None = None
    ssl_verify: bool | None = None


class GcpVault(VaultConfig):
    project_id: Text | None = None
    ssl_verify: bool | None = None


class AzureVault(VaultConfig):
    vault_uri: Text | None = None
    location: Text | None = None
    type: Text | None = None
    credentials_prefix: Text | None = None
    client_id: Text | None = None
    tenant_id: Text | None = None
    instance_metadata_host: Text | None = None
    ssl_verify: bool | None = None


class HashicorpVault(VaultConfig):
    protocol: Literal["http", "https"] | None = None
    host: Text | None = None
    port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    namespace: Text | None = None
    mount: Text | None = None
    kv: Literal["v1", "v2"] | None = None
    ssl_verify: bool | None = None
    auth_method: HcvAuthMethod | None = None
    token: Secret | None = None
    kube_role: Text | None = None
    kube_auth_path: Text | None = None
    kube_api_token_file: Text | None = None
    approle_auth_path: Text | None = None
    approle_role_id: Referenceable | None = None
    approle_secret_id: Secret | None = None
    approle_secret_id_file: Text | None = None
    approle_response_wrapping: bool | None = None
    cert_auth_role_name: Text | None = None
    cert_auth_cert: Referenceable | None = None
    cert_auth_cert_key: Secret | None = None
    jwt_role: Text | None = None


class ConjurVault(VaultConfig):
    endpoint_url: Text | None = None
    auth_method: Literal["api_key"] | None = None
    account: Referenceable | None = None
    login: Referenceable | None = None
    api_key: Secret | None = None
    ssl_verify: bool | None = None


class KonnectVault(VaultConfig):
    config_store_id: Text | None = None


VAULT_CONFIGS: Mapping[str, type[Record]] = {
    "env": EnvVault,
    "aws": AwsVault,
    "gcp": GcpVault,
    "azure": AzureVault,
    "hcv": HashicorpVault,
    "conjur": ConjurVault,
    "konnect": KonnectVault,
}


class Vault(Entity):
    """A place of secrets, by the prefix that references name it with. `name` is its type."""

    prefix: Annotated[str, AfterValidator(_check_prefix)]
    name: VaultType
    description: Text | None = None
    config: dict[str, Any] | None = None
    updated_at: int | None = None
