"""A router that says no at once says so for none of its own paths."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match

from control_plane.api import entities, konnect
from control_plane.api.stems import StemRouter

ROUTERS = [router for router in [*entities.routers(), konnect.router] if isinstance(router, StemRouter)]
PATHS = sorted({route.path for router in ROUTERS for route in router.routes if hasattr(route, "path")})


def is_matched(router: StemRouter, path: str) -> bool:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    return any(route.matches(scope)[0] is not Match.NONE for route in router.routes)


@given(st.sampled_from(PATHS), st.lists(st.sampled_from(["x", "services", "v2", "", "a b"]), min_size=4, max_size=4))
def test_no_router_passes_by_a_path_of_its_own(path: str, values: list[str]) -> None:
    filled = re.sub(r"\{.*?\}", lambda _: values.pop(), path)
    for router in ROUTERS:
        assert router.may_match(filled) or not is_matched(router, filled)


def test_a_path_of_one_kind_is_looked_for_in_one_router() -> None:
    path = "/v2/control-planes/x/core-entities/services/y"
    asked = [router for router in entities.routers() if isinstance(router, StemRouter) and router.may_match(path)]
    assert [str(getattr(router.routes[0], "path", "")).rpartition("/")[2] for router in asked] == ["services"]
