"""ai-proxy-advanced: chats are answered by one of several models."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from gateway_schema.base import Text
from gateway_schema.plugins.base import HTTP_PROTOCOLS, PluginConfig
from gateway_schema.plugins.llm import GenaiCategory, LlmFormat, NullableRecord, Target
from gateway_schema.plugins.vectordb import Embeddings, VectorDb

Milliseconds = Annotated[int, Field(ge=1, le=2_147_483_646)]

FailoverCriterion = Literal[
    "error",
    "http_403",
    "http_404",
    "http_429",
    "http_500",
    "http_502",
    "http_503",
    "http_504",
    "invalid_header",
    "non_idempotent",
    "timeout",
]


class AclMatch(NullableRecord):
    type: Literal["consumer", "consumer_group", "header", "ip", "model", "path", "provider"] = Field(
        description="What is compared."
    )
    key: Text | None = Field(None, description="Which property of it: `id`, `username`, `name`, or a header's name.")
    values: Annotated[list[Text], Field(min_length=1)] = Field(description="Values of which one must be met.")


class AclRule(NullableRecord):
    match: Annotated[list[AclMatch], Field(min_length=1)] = Field(description="Conditions that must all hold.")


class Acls(NullableRecord):
    allow: Annotated[list[AclRule], Field(min_length=1)] | None = Field(
        None, description="Rules of which one must hold, when there are any."
    )
    deny: Annotated[list[AclRule], Field(min_length=1)] | None = Field(
        None, description="Rules of which none may hold."
    )


class Balancer(NullableRecord):
    """How one of several equal targets is chosen, and what happens when it fails. Times in milliseconds."""

    algorithm: Literal[
        "consistent-hashing",
        "least-connections",
        "lowest-latency",
        "lowest-usage",
        "priority",
        "round-robin",
        "semantic",
    ] = Field("round-robin", description="How a target is chosen.")
    retries: Annotated[int, Field(ge=0, le=32_767)] = Field(5, description="Attempts after the first.")
    connect_timeout: Milliseconds = Field(60_000, description="Longest wait for a connection.")
    read_timeout: Milliseconds = Field(60_000, description="Longest wait between two reads.")
    write_timeout: Milliseconds = Field(60_000, description="Longest wait between two writes.")
    slots: Annotated[int, Field(ge=10, le=65_536)] = Field(10_000, description="Places on the hash ring.")
    hash_on_header: Text = Field("X-Kong-LLM-Request-ID", description="Header that consistent hashing goes by.")
    latency_strategy: Literal["e2e", "tpot"] = Field("tpot", description="Whole time, or time per output token.")
    tokens_count_strategy: Literal["completion-tokens", "cost", "llm-accuracy", "prompt-tokens", "total-tokens"] = (
        Field("total-tokens", description="What `lowest-usage` adds up.")
    )
    failover_criteria: list[FailoverCriterion] = Field(
        default=["error", "timeout"],
        description="Failures after which another target is tried. A request that was sent is only repeated when "
        "`non_idempotent` stands here too.",
    )
    max_fails: Annotated[int, Field(ge=0, le=32_767)] = Field(
        0, description="Failures after which a target is left out for a while; 0: never."
    )
    fail_timeout: Milliseconds = Field(10_000, description="How long a failed target is left out.")


class AiProxyAdvancedConfig(PluginConfig, NullableRecord):
    priority: ClassVar[int] = 770
    protocols: ClassVar = (*HTTP_PROTOCOLS, "ws", "wss")

    targets: Annotated[list[Target], Field(min_length=1)] = Field(description="The models that can answer.")
    balancer: Balancer = Field(
        default_factory=Balancer,
        description="How one of several fitting targets is chosen, and when the next is tried.",
    )
    llm_format: LlmFormat = Field("openai", description="What clients speak.")
    response_streaming: Literal["allow", "always", "deny"] = Field(
        "allow", description="Whether answers may, must or must not be streamed."
    )
    max_request_body_size: Annotated[int, Field(ge=0)] = Field(
        1_048_576, description="Bytes of body that are read at the most; 0 means no limit of its own."
    )
    model_name_header: bool = Field(True, description="Whether answers name their model in X-Kong-LLM-Model.")
    genai_category: GenaiCategory = Field("text/generation", description="What kind of generation this is.")
    acls: Acls | None = Field(None, description="Who may ask; a refusal beats a permission.")
    vectordb: VectorDb | None = Field(None, description="Where the semantic balancer keeps its vectors.")
    embeddings: Embeddings | None = Field(None, description="How the semantic balancer makes its vectors.")

    @model_validator(mode="after")
    def _formats_agree(self) -> Self:
        """A native format cannot be converted for another vendor, Anthropic's apart (ai-plugins.md §1.5)."""
        if self.llm_format in {"bedrock", "cohere", "gemini", "huggingface"}:
            for target in self.targets:
                if target.model.provider != self.llm_format:
                    raise ValueError(
                        f"native llm_format '{self.llm_format}' can only be used "
                        f"with the '{self.llm_format}' model.provider"
                    )
        return self
