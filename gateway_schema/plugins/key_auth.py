"""key-auth: name the consumer whose key the request carries."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from gateway_schema import defaults
from gateway_schema.base import Record, Text
from gateway_schema.plugins.base import HTTP_PROTOCOLS, PluginConfig

KeyName = Annotated[Text, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class IdentityRealm(Record):
    id: Text | None = Field(None, description="UUID of the realm.")
    region: Text | None = None
    scope: Literal["cp", "realm"] = "cp"


class Principals(Record):
    directory: Text = Field("default", description="Directory of identities to authenticate against.")
    enabled: bool = False
    error_on_miss: bool = True


class KeyAuthConfig(PluginConfig):
    priority: ClassVar[int] = 1250
    protocols: ClassVar = (*HTTP_PROTOCOLS, "ws", "wss")
    forbidden_scopes: ClassVar = frozenset({"consumer", "consumer_group"})

    key_names: list[KeyName] = Field(
        default=["apikey"], description="Names under which a key is looked for, in this order."
    )
    hide_credentials: bool = Field(
        defaults.HIDE_CREDENTIALS, description="Whether the key is removed before the request goes on."
    )
    anonymous: Text | None = Field(None, description="Consumer (id or username) to fall back to when no key is valid.")
    key_in_header: bool = Field(True, description="Whether keys are looked for in headers.")
    key_in_query: bool = Field(True, description="Whether keys are looked for in the query string.")
    key_in_body: bool = Field(False, description="Whether keys are looked for in JSON and form bodies.")
    run_on_preflight: bool = Field(True, description="Whether OPTIONS requests need a key too.")
    realm: Text | None = Field(None, description="Realm that the WWW-Authenticate header names.")
    identity_realms: list[IdentityRealm] | None = Field(None, description="Konnect identity realms: accepted, unused.")
    principals: Principals | None = Field(None, description="Kong Identity; accepted while `enabled` is false.")
