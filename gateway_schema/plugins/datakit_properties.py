"""The gateway properties that a `property` node reads and writes, and which of them this data plane knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway_schema.violations import nearest


@dataclass(frozen=True, slots=True)
class Property:
    """`readable` and `writable` as Kong documents them; the two `…_here` say what this version does."""

    readable: bool = True
    writable: bool = False
    readable_here: bool = True
    writable_here: bool = True
    response_only: bool = False
    """Reading it needs the service's response."""
    request_only: bool = False
    """Writing it makes sense only before the service is called."""


_READ = Property()
_MISSING = Property(readable_here=False)
_BOTH = Property(writable=True)
_REROUTE = Property(readable=False, writable=True, writable_here=False, request_only=True)

PROPERTIES: Mapping[str, Property] = {
    "kong.client.consumer": _BOTH,
    "kong.client.consumer_groups": _MISSING,
    "kong.client.credential": _READ,
    "kong.client.identity_realm_source": _MISSING,
    "kong.client.forwarded_ip": _READ,
    "kong.client.forwarded_port": _READ,
    "kong.client.ip": _READ,
    "kong.client.port": _READ,
    "kong.client.protocol": _READ,
    "kong.request.forwarded_host": _READ,
    "kong.request.forwarded_port": _READ,
    "kong.request.forwarded_scheme": _READ,
    "kong.request.port": _READ,
    "kong.response.source": Property(response_only=True),
    "kong.response.status": Property(readable=False, writable=True),
    "kong.router.route": _READ,
    "kong.router.service": _READ,
    "kong.route_id": _READ,
    "kong.route_name": _READ,
    "kong.service_id": _READ,
    "kong.service_name": _READ,
    "kong.service.request.scheme": _REROUTE,
    "kong.service.response.status": Property(response_only=True),
    "kong.service.target": _REROUTE,
    "kong.service.upstream": _REROUTE,
    "kong.version": _READ,
    "kong.nginx.subsystem": _READ,
    "kong.node.id": _READ,
    "kong.node.memory_stats": _MISSING,
}

KEYED: Mapping[str, Property] = {
    "kong.ctx.plugin.": _BOTH,
    "kong.ctx.shared.": _BOTH,
    "kong.configuration.": _MISSING,
}
"""Prefixes that any key may follow."""


def find(name: str) -> Property | None:
    """The property of a name, None when there is none."""
    for prefix, found in KEYED.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return found
    return PROPERTIES.get(name)


def fault_of(name: str, *, setting: bool) -> str | None:
    """Why a property cannot be read (or, when `setting`, written), None when it can."""
    found = find(name)
    if found is None:
        known = [*PROPERTIES, *(f"{prefix}KEY" for prefix in KEYED)]
        suggestion = nearest(name, known)
        return f'unknown property "{name}"' + (f" (did you mean '{suggestion}'?)" if suggestion else "")
    if setting and not found.writable:
        return f'property "{name}" can only be read: leave its input unconnected'
    if not setting and not found.readable:
        return f'property "{name}" can only be set: connect an input'
    if not (found.writable_here if setting else found.readable_here):
        return f'property "{name}" is not available yet'
    return None
