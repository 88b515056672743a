"""ai-proxy-advanced: name a group of models as the upstream, and let the chain go on to it."""

from __future__ import annotations

from typing import Any

from data_plane.ai.log_object import ai_proxy_object
from data_plane.ai.upstream import ModelUpstream
from data_plane.exchange import Exchange, Proceed, Supplies
from data_plane.messages import Response
from gateway_schema.plugins.ai_proxy_advanced import AiProxyAdvancedConfig


class AiProxyAdvanced:
    only_adds_to_log = True

    def __init__(self, config: AiProxyAdvancedConfig, supplies: Supplies) -> None:
        """Raises ConfigError, naming the field, for what this version cannot run."""
        agent = f"tandem/{supplies.version}" if supplies.version else "tandem"
        self._models = ModelUpstream(config, supplies.client, supplies.environment, supplies.plugin_id, agent)

    def prelude(self, exchange: Exchange) -> bool:
        exchange.upstream = self._models
        return True

    async def handle(self, exchange: Exchange, proceed: Proceed) -> Response:
        self.prelude(exchange)
        return await proceed(exchange)

    def log(self, exchange: Exchange, record: dict[str, Any]) -> None:
        decision = exchange.decision
        if decision is not None and (facts := ai_proxy_object(decision)) is not None:
            record.setdefault("ai", {})["proxy"] = facts

    async def close(self) -> None:
        await self._models.close()
