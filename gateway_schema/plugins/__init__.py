"""The plugins that the gateway knows, by name: each a configuration class with its place in the chain.

Adding a plugin is one file here, one line in `PLUGINS`, one handler in the data plane and one line in its table.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway_schema.plugins.ai_prompt_decorator import AiPromptDecoratorConfig
from gateway_schema.plugins.ai_proxy_advanced import AiProxyAdvancedConfig
from gateway_schema.plugins.base import PluginConfig
from gateway_schema.plugins.datakit import DatakitConfig
from gateway_schema.plugins.key_auth import KeyAuthConfig

PLUGINS: Mapping[str, type[PluginConfig]] = {
    "ai-prompt-decorator": AiPromptDecoratorConfig,
    "ai-proxy-advanced": AiProxyAdvancedConfig,
    "datakit": DatakitConfig,
    "key-auth": KeyAuthConfig,
}
