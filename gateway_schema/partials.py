"""Partials, parts of plugin configurations that several plugins share, and filter chains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gateway_schema.base import Record, Referenceable, Secret, Text
from gateway_schema.entities import Entity, Name, Port, Reference
from gateway_schema.plugins.llm import NullableRecord, Target
from gateway_schema.plugins.vectordb import CloudAuthentication, Embeddings, Redis, VectorDb


class RedisCe(NullableRecord):
    """A Redis server, as open-source plugins know it. Milliseconds."""

    host: Referenceable | None = None
    port: Port = 6379
    timeout: Annotated[int, Field(ge=0, le=2_147_483_646)] = 2000
    username: Referenceable | None = None
    password: Secret | None = None
    database: int = 0
    ssl: bool = False
    ssl_verify: bool = True
    server_name: Text | None = None
    cloud_authentication: CloudAuthentication | None = None


PARTIAL_CONFIGS: Mapping[str, type[Record]] = {
    "redis-ce": RedisCe,
    "redis-ee": Redis,
    "vectordb": VectorDb,
    "embeddings": Embeddings,
    "model": Target,
}


class Partial(Entity):
    """A part of a configuration. Which fields `config` has depends on `type`."""

    name: Name | None = None
    type: Literal["redis-ce", "redis-ee", "vectordb", "embeddings", "model"]
    config: dict[str, Any] = Field(default_factory=dict)
    updated_at: int | None = None


class Filter(Record):
    name: Text
    enabled: bool = True
    config: Any = None


class FilterChain(Entity):
    """Filters that run, in order, for a service or a route."""

    name: Name | None = None
    enabled: bool = True
    service: Reference | None = None
    route: Reference | None = None
    filters: Annotated[list[Filter], Field(min_length=1)]
    updated_at: int | None = None

    @model_validator(mode="after")
    def _has_one_scope(self) -> Self:
        if (self.service is None) == (self.route is None):
            raise ValueError("exactly one of these fields must be non-empty: 'service', 'route'")
        return self
