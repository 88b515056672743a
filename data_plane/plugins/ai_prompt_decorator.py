"""ai-prompt-decorator: put messages before and after those of a chat."""

from __future__ import annotations

from typing import Any

from data_plane.ai.chat import chat_at_hand, has_messages, mark_changed, read_chat
from data_plane.errors import ConfigError, LlmError
from data_plane.exchange import Exchange, Proceed, Supplies
from data_plane.messages import Response
from gateway_schema.plugins.ai_prompt_decorator import AiPromptDecoratorConfig, Message


class AiPromptDecorator:
    def __init__(self, config: AiPromptDecoratorConfig, supplies: Supplies) -> None:
        if config.llm_format != "openai":
            raise ConfigError(
                f"'{config.llm_format}' is not available in this version (has: openai)", field="config.llm_format"
            )
        prompts = config.prompts
        self._before = _messages(prompts.prepend if prompts is not None else None)
        self._after = _messages(prompts.append if prompts is not None else None)
        self._limit = config.max_request_body_size

    def prelude(self, exchange: Exchange) -> bool:
        if not (self._before or self._after):
            return True
        try:
            chat = chat_at_hand(exchange, self._limit)
        except LlmError as error:
            raise _NotAChat from error
        if chat is None:
            return False
        self._decorate(exchange, chat)
        return True

    async def handle(self, exchange: Exchange, proceed: Proceed) -> Response:
        if not self.prelude(exchange):
            try:
                chat = await read_chat(exchange, self._limit)
            except LlmError as error:
                raise _NotAChat from error
            self._decorate(exchange, chat)
        return await proceed(exchange)

    def _decorate(self, exchange: Exchange, chat: dict[str, Any]) -> None:
        if not has_messages(chat):
            raise _NotAChat
        # A new list: the configuration's is shared by all exchanges, and others may look at the chat's own.
        chat["messages"] = [*self._before, *chat["messages"], *self._after]
        mark_changed(exchange)


class _NotAChat(LlmError):
    def __init__(self) -> None:
        super().__init__(400, "this LLM route only supports llm/chat type requests", kind="not_a_chat")


def _messages(configured: list[Message] | None) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in configured or ()]
