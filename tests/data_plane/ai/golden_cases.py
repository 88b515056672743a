"""The golden wire fixtures: one folder per provider and case, `case.json` beside the provider's own bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_plane.ai.providers import PROVIDERS
from data_plane.ai.providers.base import Adapter, StreamDecoder, StreamEvent, Usage
from gateway_schema.plugins.llm import ModelOptions

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    provider: str
    name: str
    spec: Mapping[str, Any]
    wire: bytes

    @property
    def streams(self) -> bool:
        return bool(self.spec.get("stream"))

    @property
    def adapter(self) -> Adapter:
        options = ModelOptions.model_validate(self.spec.get("options", {}))
        return PROVIDERS[self.provider].adapter(self.spec["model"], options)

    @property
    def usage(self) -> Usage | None:
        return None if self.spec["usage"] is None else Usage(**self.spec["usage"])

    def decoder(self) -> StreamDecoder:
        return self.adapter.stream_decoder(self.spec.get("headers", {}))

    def __str__(self) -> str:
        return f"{self.provider}/{self.name}"


def load() -> list[Case]:
    cases = []
    for path in sorted(GOLDEN.glob("*/*/case.json")):
        (wire,) = [file for file in path.parent.iterdir() if file != path]
        cases.append(Case(path.parts[-3], path.parts[-2], json.loads(path.read_text()), wire.read_bytes()))
    return cases


CASES = load()


def run(decoder: StreamDecoder, pieces: list[bytes]) -> list[StreamEvent]:
    """Everything a decoder gives for a stream that arrived in these pieces and then ended."""
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [*events, *decoder.close()]


def timeless(value: Any) -> Any:
    """The value with its moment of creation out of the way."""
    return {**value, "created": "*"} if isinstance(value, dict) and "created" in value else value
