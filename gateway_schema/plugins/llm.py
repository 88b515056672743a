"""What a target of LLM traffic is: its provider, its model, its credentials. Shared by the plugins that call models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from gateway_schema.base import Record, Referenceable, Secret, Text

LlmFormat = Literal["openai", "anthropic", "bedrock", "cohere", "gemini", "huggingface"]

Provider = Literal[
    "anthropic",
    "azure",
    "bedrock",
    "cerebras",
    "cohere",
    "dashscope",
    "databricks",
    "deepseek",
    "gemini",
    "huggingface",
    "llama2",
    "mistral",
    "ollama",
    "openai",
    "vllm",
    "xai",
]

RouteType = Literal[
    "audio/v1/audio/speech",
    "audio/v1/audio/transcriptions",
    "audio/v1/audio/translations",
    "image/v1/images/edits",
    "image/v1/images/generations",
    "llm/v1/assistants",
    "llm/v1/batches",
    "llm/v1/chat",
    "llm/v1/completions",
    "llm/v1/embeddings",
    "llm/v1/files",
    "llm/v1/responses",
    "preserve",
    "realtime/v1/realtime",
    "video/v1/videos/generations",
]

GenaiCategory = Literal[
    "audio/speech",
    "audio/transcription",
    "image/generation",
    "realtime/generation",
    "text/embeddings",
    "text/generation",
    "video/generation",
]


class NullableRecord(Record):
    """A record in which null means absent: Kong's own exports spell every unset field as null."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


def _check_url(value: str) -> str:
    """An absolute http(s) URL; one with a template in it can only be judged once the template is filled."""
    if "$(" in value:
        return value
    try:
        parts = urlsplit(value)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"invalid value: {value} (an absolute URL, such as https://host:443/v1/chat/completions)")
    return value


Url = Annotated[Text, AfterValidator(_check_url)]


def require_together(record: Record, *names: str) -> None:
    """Raises ValueError unless all or none of the fields are set."""
    given = [getattr(record, name) is not None for name in names]
    if any(given) and not all(given):
        listed = ", ".join(f"'{name}'" for name in names)
        raise ValueError(f"all or none of these fields must be set: {listed}")


class Auth(NullableRecord):
    """How the gateway proves itself to the provider: a header, a parameter, or a cloud identity."""

    header_name: Referenceable | None = Field(None, description="Header that carries the credential.")
    header_value: Secret | None = Field(None, description="Whole value of that header, such as `Bearer sk-…`.")
    param_name: Referenceable | None = Field(None, description="Parameter that carries the credential.")
    param_value: Secret | None = Field(None, description="Whole value of that parameter.")
    param_location: Literal["body", "query"] | None = Field(None, description="Where the parameter goes.")
    allow_override: bool = Field(False, description="Whether a credential sent by the client replaces the configured.")
    aws_access_key_id: Secret | None = Field(None, description="AWS access key; else the environment or SDK chain.")
    aws_secret_access_key: Secret | None = Field(None, description="AWS secret; else the environment or SDK chain.")
    azure_use_managed_identity: bool = Field(False, description="Whether Azure's managed identity is used.")
    azure_client_id: Referenceable | None = Field(None, description="Client id of a user-assigned Azure identity.")
    azure_client_secret: Secret | None = Field(None, description="Client secret of a user-assigned Azure identity.")
    azure_tenant_id: Referenceable | None = Field(None, description="Tenant of a user-assigned Azure identity.")
    gcp_use_service_account: bool = Field(False, description="Whether a Google service account is used.")
    gcp_service_account_json: Secret | None = Field(None, description="The service account's JSON document.")
    gcp_metadata_url: Referenceable | None = Field(None, description="Metadata server in place of Google's.")
    gcp_oauth_token_url: Referenceable | None = Field(None, description="Token endpoint in place of Google's.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        require_together(self, "header_name", "header_value")
        require_together(self, "param_name", "param_value", "param_location")
        return self


class BedrockOptions(NullableRecord):
    aws_region: Text | None = Field(None, description="AWS region; else AWS_REGION or AWS_DEFAULT_REGION.")
    aws_assume_role_arn: Text | None = Field(None, description="Role to assume with the base credentials.")
    aws_role_session_name: Text | None = Field(None, description="Session name under which the role is assumed.")
    aws_sts_endpoint_url: Text | None = Field(None, description="STS endpoint in place of the region's own.")
    batch_bucket_prefix: Text | None = Field(None, description="S3 prefix of batch inputs and results.")
    batch_role_arn: Text | None = Field(None, description="Role that batch jobs run under.")
    embeddings_normalize: bool = Field(False, description="Whether embeddings are normalised.")
    performance_config_latency: Text | None = Field(None, description="Latency setting forced on every request.")
    video_output_s3_uri: Text | None = Field(None, description="S3 prefix where generated videos are stored.")


class CohereOptions(NullableRecord):
    embedding_input_type: Literal["classification", "clustering", "image", "search_document", "search_query"] = Field(
        "classification", description="What embedded texts are for."
    )
    wait_for_model: bool | None = Field(None, description="Whether to wait for a model that is not ready.")


class DashscopeOptions(NullableRecord):
    international: bool = Field(True, description="Whether the international endpoint is used.")


class DatabricksOptions(NullableRecord):
    workspace_instance_id: Text | None = Field(None, description="Workspace instance, the host's first label.")


class GeminiBaseOptions(NullableRecord):
    api_endpoint: Text | None = Field(None, description="Regional Vertex host.")
    location_id: Text | None = Field(None, description="Vertex location.")
    project_id: Text | None = Field(None, description="Vertex project.")

    @model_validator(mode="after")
    def _vertex_is_whole(self) -> Self:
        require_together(self, "api_endpoint", "project_id", "location_id")
        return self


class GeminiOptions(GeminiBaseOptions):
    endpoint_id: Text | None = Field(None, description="Model Garden endpoint.")


class HuggingfaceOptions(NullableRecord):
    use_cache: bool | None = Field(None, description="Whether the inference API's cache is used.")
    wait_for_model: bool | None = Field(None, description="Whether to wait for a model that is not ready.")


class CacheWriteCost(NullableRecord):
    ttl: Text = Field(description="Label of the cache's lifetime, such as `5m` or `1h`.")
    cost: float = Field(description="Price per million tokens written with that lifetime.")


class ContextWindowFactor(NullableRecord):
    above: Text = Field(description="Prompt tokens above which the factors hold.")
    input_factor: float = Field(description="Multiplier of the input price.")
    output_factor: float = Field(description="Multiplier of the output price.")

    @model_validator(mode="after")
    def _threshold_is_a_number(self) -> Self:
        if not self.above.strip().isdecimal():
            raise ValueError("above: expected a number of tokens, written as a string")
        return self


class ServiceTierFactor(NullableRecord):
    tier: Text = Field(description="Word looked for in the provider's service tier.")
    factor: float = Field(description="Multiplier of the whole price.")


class ModelOptions(NullableRecord):
    """What is known and wanted of a model. Tuning values win over what the client asks for."""

    max_tokens: int | None = Field(None, description="Most tokens of the answer.")
    temperature: Annotated[float, Field(ge=0, le=5)] | None = Field(None, description="Sampling temperature.")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Nucleus sampling mass.")
    top_k: Annotated[int, Field(ge=0, le=500)] | None = Field(None, description="Number of likeliest tokens.")
    input_cost: float | None = Field(None, description="Price per million prompt tokens.")
    output_cost: float | None = Field(None, description="Price per million completion tokens.")
    cache_read_cost: float | None = Field(None, description="Price per million prompt tokens read from a cache.")
    cache_write_cost: float | None = Field(None, description="Price per million prompt tokens written to a cache.")
    cache_write_cost_list: list[CacheWriteCost] | None = Field(None, description="Cache-write prices by lifetime.")
    context_window_factor: list[ContextWindowFactor] | None = Field(None, description="Price factors of long prompts.")
    service_tier_factor: list[ServiceTierFactor] | None = Field(None, description="Price factors of service tiers.")
    upstream_url: Url | None = Field(None, description="URL that replaces the provider's, path included.")
    upstream_path: Text | None = Field(None, description="Path that replaces the provider's own (deprecated).")
    anthropic_version: Text | None = Field(None, description="Version of Anthropic's API.")
    azure_instance: Text | None = Field(None, description="Azure OpenAI instance.")
    azure_deployment_id: Text | None = Field(None, description="Azure OpenAI deployment.")
    azure_api_version: Text = Field("2023-05-15", description="Version of Azure's API.")
    bedrock: BedrockOptions | None = None
    cohere: CohereOptions | None = None
    dashscope: DashscopeOptions | None = None
    databricks: DatabricksOptions | None = None
    gemini: GeminiOptions | None = None
    huggingface: HuggingfaceOptions | None = None
    embeddings_dimensions: int | None = Field(None, description="Dimensions of embeddings.")
    llama2_format: Literal["ollama", "openai", "raw"] | None = Field(None, description="What a llama2 server speaks.")
    mistral_format: Literal["ollama", "openai"] | None = Field(None, description="What a mistral server speaks.")


class Model(NullableRecord):
    provider: Provider = Field(description="Whose API the target speaks.")
    name: Text | None = Field(None, description="Model asked for; may hold templates such as `$(headers.x-model)`.")
    model_alias: Text | None = Field(None, description="Name under which clients ask for this target.")
    options: ModelOptions | None = None


class Logging(NullableRecord):
    log_statistics: bool = Field(False, description="Whether usage, latency and cost stand in the log record.")
    log_payloads: bool = Field(False, description="Whether request and answer stand in the log record.")


class Target(NullableRecord):
    """One model that can answer, and how it is reached."""

    route_type: RouteType = Field(description="What the model does.")
    model: Model
    auth: Auth | None = None
    logging: Logging = Field(default_factory=Logging)
    weight: Annotated[int, Field(ge=1, le=65_535)] = Field(100, description="Share of the traffic.")
    description: Text | None = Field(None, description="What the target is good at; `CATCHALL` takes the rest.")
    metadata: dict[str, Any] | None = Field(None, description="Kept and shown, not interpreted.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for fault in _target_faults(self):
            raise ValueError(fault)
        return self


def _target_faults(target: Target) -> Iterator[str]:
    """Kong's cross-field rules (`reference/ai-plugins.md` §1.3)."""
    provider = target.model.provider
    options = target.model.options or ModelOptions()
    if provider in {"bedrock", "gemini"} and target.auth is not None and target.auth.allow_override:
        yield "bedrock and gemini only support auth.allow_override = false"
    yield from _missing_options(provider, target.route_type, options)
    self_hosted = provider == "llama2" or (provider == "mistral" and options.mistral_format == "ollama")
    if self_hosted and options.upstream_url is None:
        yield "must set 'model.options.upstream_url' for self-hosted providers/models"
    if target.logging.log_statistics:
        if provider == "anthropic" and target.route_type == "llm/v1/completions":
            yield "anthropic does not support statistics when route_type is llm/v1/completions"
        if target.route_type.startswith("audio/"):
            yield f"{provider} does not support statistics when route_type is {target.route_type}"


def _missing_options(provider: str, route_type: str, options: ModelOptions) -> Iterator[str]:
    needed = list(_NEEDED_OPTIONS.get(provider, ()))
    if provider == "azure" and options.upstream_url is None:
        needed.append("azure_instance")
    if provider == "azure" and route_type not in _WITHOUT_DEPLOYMENT:
        needed.append("azure_deployment_id")
    for name in needed:
        if getattr(options, name) is None:
            yield f"must set model.options.{name} for {provider} provider"


_NEEDED_OPTIONS = {
    "anthropic": ("anthropic_version",),
    "llama2": ("llama2_format",),
    "mistral": ("mistral_format",),
}

_WITHOUT_DEPLOYMENT = frozenset({"llm/v1/files", "llm/v1/batches", "llm/v1/responses"})
