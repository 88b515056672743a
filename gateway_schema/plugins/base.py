"""What every plugin configuration states beside its fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gateway_schema.base import Record

HTTP_PROTOCOLS: tuple[str, ...] = ("grpc", "grpcs", "http", "https")


class PluginConfig(Record):
    """The base of all plugin configurations: strict, immutable, every field with a description.

    `priority` is Kong's static priority (`reference`: priorities of Gateway 3.15); the chain runs higher ones first.
    """

    priority: ClassVar[int]
    protocols: ClassVar[Sequence[str]] = HTTP_PROTOCOLS
    forbidden_scopes: ClassVar[frozenset[str]] = frozenset()
    """Scopes (`consumer`, …) that an entity of this plugin must leave empty."""

    @classmethod
    def expand(cls, written: dict[str, Any]) -> dict[str, Any]:
        """What was written, with deprecated shorthands moved to where they belong."""
        return written
