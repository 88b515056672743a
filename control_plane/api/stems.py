"""Routers that are asked only for paths which begin like one of theirs.

The framework tries its routes one after the other, and a path that stands behind hundreds of others costs a millisecond
to find. A router of this kind looks at the first segments of a path, and says no for all of its routes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from fastapi import APIRouter
from starlette.routing import Match
from starlette.types import Scope

_SEGMENTS = 5
"""How many are looked at: `v2/control-planes/{id}/core-entities/services`."""


class StemRouter(APIRouter):
    """An APIRouter whose routes are complete before the first request."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if not self.may_match(scope["path"]):
            return Match.NONE, {}
        return super().matches(scope)

    def may_match(self, path: str) -> bool:
        """False only when none of the routes matches, whatever the method."""
        segments = _first(path)
        return any(
            len(segments) > max(places, default=-1) and tuple([segments[place] for place in places]) in stems
            for places, stems in self._stems.items()
        )

    @cached_property
    def _stems(self) -> Mapping[tuple[int, ...], set[tuple[str, ...]]]:
        """What stands at the places where a route's first segments have no parameters, by places."""
        found: dict[tuple[int, ...], set[tuple[str, ...]]] = {}
        for route in self.routes:
            segments = _first(str(getattr(route, "path", "")))
            places = tuple(place for place, segment in enumerate(segments) if "{" not in segment)
            found.setdefault(places, set()).add(tuple(segments[place] for place in places))
        return found


def _first(path: str) -> list[str]:
    return path.split("/", _SEGMENTS + 1)[1 : _SEGMENTS + 1]
