"""The providers that this gateway can talk to. Adding one is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from data_plane.ai.providers import bedrock, openai
from data_plane.ai.providers.base import ProviderRow

PROVIDERS: Final[Mapping[str, ProviderRow]] = {
    "bedrock": bedrock.ROW,
    "openai": openai.ROW,
}
