"""The router finds what a plain walk over all rules would find, for any routes and requests."""

from __future__ import annotations

import uuid
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane import paths
from data_plane.messages import BufferedBody, Headers, Request
from data_plane.router import Question, Router, Rule, split_host
from gateway_schema.entities import Route

SEGMENT = st.sampled_from(["a", "ab", "b", "v1", "x-y"])
PATH = st.lists(SEGMENT, max_size=3).map(lambda parts: "/" + "/".join(parts))
REGEX = st.sampled_from(["~/a", "~/(a|b)", "~/v\\d", "~/a/.*/b$", "~/(?<n>[ab]+)/", "~/ab?"])
HOST = st.sampled_from(["a.com", "b.a.com", "*.a.com", "a.*", "*.com", "b.*", "a.com:80"])
HEADER = st.dictionaries(
    st.sampled_from(["x-a", "x_b"]),
    st.lists(st.sampled_from(["1", "2", "~*^[12]$"]), min_size=1, max_size=2),
    max_size=2,
)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    fields: dict[str, Any] = {
        "id": str(uuid.UUID(int=draw(st.integers(0, 2**128 - 1)))),
        "methods": draw(st.none() | st.lists(st.sampled_from(["GET", "POST"]), min_size=1, max_size=2)),
        "hosts": draw(st.none() | st.lists(HOST, min_size=1, max_size=2)),
        "paths": draw(st.none() | st.lists(PATH | REGEX, min_size=1, max_size=3)),
        "headers": draw(st.none() | HEADER),
        "regex_priority": draw(st.integers(0, 2)),
    }
    if not any(fields[name] for name in ("methods", "hosts", "paths", "headers")):
        fields["paths"] = ["/"]
    return Route.model_validate(fields)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    headers = [("Host", draw(st.sampled_from(["a.com", "b.a.com", "A.com:80", "a.org", "b.x", "", "c"])))]
    headers += draw(
        st.lists(st.tuples(st.sampled_from(["X-A", "x-b", "X_B"]), st.sampled_from(["1", "2", "3"])), max_size=3)
    )
    target = draw(PATH) + draw(st.sampled_from(["", "/", "/q", "?a=b"]))
    return Request(draw(st.sampled_from(["GET", "POST", "PUT"])), target, Headers(headers), BufferedBody())


def naive(rules: list[Rule], request: Request) -> str | None:
    """Every rule in turn, from the top."""
    host, port = split_host(request.headers.get("host") or "")
    headers: dict[str, list[str]] = {}
    for name, value in request.headers:
        headers.setdefault(name.lower().replace("_", "-"), []).append(value.lower())
    path = paths.normalise(request.path)
    question = Question(request.method, host, port or 80, path, "http", "", headers)
    for rule in sorted(rules, key=lambda rule: (rule.priority, rule.id), reverse=True):
        if rule.accepts(question) and rule.match_path(path) is not None:
            return str(rule.route.id)
    return None


@settings(max_examples=300, deadline=None)
@given(st.lists(routes(), max_size=12, unique_by=lambda route: route.id), st.lists(requests(), min_size=1, max_size=6))
def test_the_index_and_the_memory_change_nothing(some: list[Route], asked: list[Request]) -> None:
    router = Router(some, {})
    for request in [*asked, *asked]:
        match = router.match(request, port=80)
        assert (match.route.id if match else None) == naive(list(router.rules), request)
