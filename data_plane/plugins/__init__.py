"""The handlers of the gateway's plugins, by name. A plugin is one file here and one line in `HANDLERS`.

A handler is made once per plugin entity, `Handler(config, supplies)`, and raises ConfigError (or ValueError) for a
configuration that its class accepts but that cannot run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data_plane.exchange import Handler, Supplies
from data_plane.plugins.ai_prompt_decorator import AiPromptDecorator
from data_plane.plugins.ai_proxy_advanced import AiProxyAdvanced
from data_plane.plugins.datakit import Datakit
from data_plane.plugins.key_auth import KeyAuth

HANDLERS: Mapping[str, Callable[[Any, Supplies], Handler]] = {
    "ai-prompt-decorator": AiPromptDecorator,
    "ai-proxy-advanced": AiProxyAdvanced,
    "datakit": Datakit,
    "key-auth": KeyAuth,
}
