"""Defaults that differ between Kong's versions, in one place; the schema endpoints serve the same values.

Where Kong changed a default (route protocols in 3.14, for example), this table says what Tandem uses, so that the
entities that are stored, the ones that are shown and the schemas that decK downloads can never disagree.
"""

from __future__ import annotations

from typing import Final

from gateway_schema.base import Protocol

# As before Kong 3.14: a first try over plain HTTP on a laptop must not end in 426.
ROUTE_PROTOCOLS: Final[tuple[Protocol, ...]] = ("http", "https")

# As since Kong 3.14: a client's key is for the gateway, not for the service behind it.
HIDE_CREDENTIALS: Final = True

# As since Kong 3.14: upstream certificates are verified unless a service says otherwise.
TLS_VERIFY: Final = True

SERVICE_TIMEOUT_MS: Final = 60_000
SERVICE_RETRIES: Final = 5
