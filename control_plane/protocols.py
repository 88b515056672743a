"""Whether a plugin can ever run: its protocols must share one with its route, or with some route of its service.

As in Kong it is asked when a plugin is written, not when a route is: a service's routes may come later than its
plugins.
"""

from __future__ import annotations

from collections.abc import Iterable

from control_plane.holdings import Row
from gateway_schema import defaults
from gateway_schema.violations import Violation


def mismatch(plugin: Row, routes: Iterable[Row]) -> Violation | None:
    """`routes`: the plugin's route, or else all of its service."""
    own = set(plugin.complete["protocols"])
    offered = {protocol for route in routes for protocol in _protocols_of(route)}
    if not offered or own & offered:
        return None
    listed = ", ".join(sorted(offered))
    if plugin.reference("route") is not None:
        return Violation(("protocols",), f"must match the associated route's protocols ({listed})")
    text = f"must match the protocols of at least one route pointing to this Plugin's service ({listed})"
    return Violation(("protocols",), text)


def _protocols_of(route: Row) -> Iterable[str]:
    return route.written.get("protocols") or defaults.ROUTE_PROTOCOLS
