"""Where embeddings are kept and how they are made: the records that the semantic features of plugins share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway_schema.base import OrReference, Referenceable, Secret, Text
from gateway_schema.plugins.llm import Auth, BedrockOptions, GeminiBaseOptions, HuggingfaceOptions, NullableRecord, Url

Milliseconds = Annotated[int, Field(ge=0, le=2_147_483_646)]
Port = Annotated[int, Field(ge=0, le=65_535)]
CloudProvider = OrReference[Literal["aws", "azure", "gcp"]]


class CloudAuthentication(NullableRecord):
    auth_provider: CloudProvider | None = Field(None, description="Whose identity opens the Redis instance.")
    aws_access_key_id: Secret | None = None
    aws_secret_access_key: Secret | None = None
    aws_assume_role_arn: Secret | None = None
    aws_role_session_name: Secret | None = None
    aws_cache_name: Referenceable | None = None
    aws_is_serverless: bool = True
    aws_region: Referenceable | None = None
    azure_client_id: Secret | None = None
    azure_client_secret: Secret | None = None
    azure_tenant_id: Secret | None = None
    gcp_service_account_json: Secret | None = None


class ClusterNode(NullableRecord):
    ip: Text = "127.0.0.1"
    port: Port = 6379


class SentinelNode(NullableRecord):
    host: Text = "127.0.0.1"
    port: Port = 6379


class Redis(NullableRecord):
    host: Referenceable = "127.0.0.1"
    port: OrReference[Port] = 6379
    database: int = 0
    username: Referenceable | None = None
    password: Secret | None = None
    ssl: bool = False
    ssl_verify: bool = True
    server_name: Referenceable | None = None
    connect_timeout: Milliseconds = 2000
    read_timeout: Milliseconds = 2000
    send_timeout: Milliseconds = 2000
    keepalive_pool_size: Annotated[int, Field(ge=1, le=2_147_483_646)] = 256
    keepalive_backlog: Milliseconds | None = None
    cluster_nodes: Annotated[list[ClusterNode], Field(min_length=1)] | None = None
    cluster_max_redirections: int = 5
    sentinel_master: Text | None = None
    sentinel_role: Literal["any", "master", "slave"] | None = None
    sentinel_nodes: Annotated[list[SentinelNode], Field(min_length=1)] | None = None
    sentinel_username: Referenceable | None = None
    sentinel_password: Secret | None = None
    connection_is_proxied: bool = False
    cloud_authentication: CloudAuthentication | None = None


class Pgvector(NullableRecord):
    host: Text = "127.0.0.1"
    port: int = 5432
    database: Text = "kong-pgvector"
    user: Referenceable = "postgres"
    password: Secret | None = None
    ssl: bool = False
    ssl_required: bool = False
    ssl_verify: bool = True
    ssl_version: Literal["any", "tlsv1_2", "tlsv1_3"] = "tlsv1_2"
    ssl_cert: Text | None = None
    ssl_cert_key: Text | None = None
    timeout: float = Field(5000, description="Milliseconds.")


class VectorDb(NullableRecord):
    strategy: Literal["pgvector", "redis"] = Field(description="Which database keeps the vectors.")
    dimensions: int = Field(description="Dimensions of the vectors.")
    distance_metric: Literal["cosine", "euclidean"] = Field(description="How near two vectors are.")
    threshold: float | None = Field(None, description="Largest distance that still counts as a match.")
    redis: Redis | None = None
    pgvector: Pgvector | None = None


class AzureEmbeddings(NullableRecord):
    api_version: Text = "2023-05-15"
    deployment_id: Text | None = None
    instance: Text | None = None


class EmbeddingsOptions(NullableRecord):
    upstream_url: Url | None = Field(None, description="URL that replaces the provider's.")
    azure: AzureEmbeddings | None = None
    bedrock: BedrockOptions | None = None
    gemini: GeminiBaseOptions | None = None
    huggingface: HuggingfaceOptions | None = None


class EmbeddingsModel(NullableRecord):
    provider: Literal["azure", "bedrock", "gemini", "huggingface", "mistral", "ollama", "openai"] = Field(
        description="Whose API makes the embeddings."
    )
    name: Text = Field(description="Model that makes the embeddings.")
    options: EmbeddingsOptions | None = None


class Embeddings(NullableRecord):
    model: EmbeddingsModel
    auth: Auth | None = None
