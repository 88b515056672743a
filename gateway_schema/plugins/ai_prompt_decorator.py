"""ai-prompt-decorator: put messages before and after those of a chat request."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from gateway_schema.base import Record
from gateway_schema.plugins.base import PluginConfig

LlmFormat = Literal["openai", "anthropic", "bedrock", "cohere", "gemini", "huggingface"]


class Message(Record):
    role: Literal["system", "assistant", "user"] = Field("system", description="Role of the added message.")
    content: Annotated[str, Field(min_length=1, max_length=100_000)] = Field(description="Text of the added message.")


class Prompts(Record):
    prepend: Annotated[list[Message], Field(max_length=15)] | None = Field(
        None, description="Messages put before the request's own, in this order."
    )
    append: Annotated[list[Message], Field(max_length=15)] | None = Field(
        None, description="Messages put after the request's own, in this order."
    )

    @model_validator(mode="after")
    def _adds_something(self) -> Self:
        if not self.prepend and not self.append:
            raise ValueError("at least one of these fields must be non-empty: 'prepend', 'append'")
        return self


class AiPromptDecoratorConfig(PluginConfig):
    priority: ClassVar[int] = 772

    prompts: Prompts | None = Field(None, description="The messages to add.")
    llm_format: LlmFormat = Field("openai", description="Format of requests and answers.")
    max_request_body_size: Annotated[int, Field(ge=0)] = Field(
        1_048_576, description="Bytes of body that are read at the most; 0 means no limit of its own."
    )
