from __future__ import annotations

import uuid
from typing import Any

import pytest

from data_plane.errors import ConfigError
from data_plane.messages import BufferedBody, Headers, Request
from data_plane.router import Match, Router
from gateway_schema.entities import Route, Service
from tests.data_plane.builders import entity_id

SERVICE = Service(id=entity_id("service"), name="service", host="backend")


def route(name: str, **fields: Any) -> Route:
    fields.setdefault("id", entity_id(name))
    return Route.model_validate({"name": name, "service": {"id": SERVICE.id}, **fields})


def find(
    routes: list[Route],
    target: str = "/",
    method: str = "GET",
    host: str = "example.com",
    service: Service = SERVICE,
    headers: list[tuple[str, str]] | None = None,
    **given: Any,
) -> Match | None:
    request = Request(method, target, Headers([("Host", host), *(headers or [])]), BufferedBody())
    return Router(routes, {str(service.id): service}).match(request, **given)


def found(*args: Any, **given: Any) -> str | None:
    match = find(*args, **given)
    return match.route.name if match else None


def test_nothing_matches_an_empty_router() -> None:
    assert find([]) is None


def test_all_criteria_must_hold_and_one_value_of_each_is_enough() -> None:
    routes = [route("r", methods=["GET", "PUT"], hosts=["a.com", "b.com"], paths=["/x", "/y"])]
    assert found(routes, "/y/1", "PUT", "b.com") == "r"
    assert found(routes, "/y/1", "POST", "b.com") is None
    assert found(routes, "/z", "PUT", "b.com") is None
    assert found(routes, "/y", "PUT", "c.com") is None


def test_prefixes_are_plain_strings_not_segments() -> None:
    routes = [route("r", paths=["/foo"])]
    assert [found(routes, path) for path in ("/foo", "/foobar", "/foo/bar", "/fo")] == ["r", "r", "r", None]
    assert found([route("r", paths=["/foo/"])], "/foo") is None


def test_the_query_is_no_part_of_the_path() -> None:
    assert found([route("r", paths=["~/a$"])], "/a?b=/c") == "r"


class TestHosts:
    @pytest.mark.parametrize(
        ("pattern", "host", "matches"),
        [
            ("example.com", "example.com", True),
            ("example.com", "EXAMPLE.com", True),
            ("example.com", "example.com:8443", True),
            ("example.com", "a.example.com", False),
            ("example.com:8080", "example.com:8080", True),
            ("example.com:8080", "example.com:8081", False),
            ("*.example.com", "a.example.com", True),
            ("*.example.com", "b.a.example.com", True),
            ("*.example.com", "example.com", False),
            ("*.example.com:80", "a.example.com:80", True),
            ("*.example.com:80", "a.example.com:81", False),
            ("example.*", "example.org", True),
            ("example.*", "example.co.uk", True),
            ("example.*", "example", False),
        ],
    )
    def test_host_criterion(self, pattern: str, host: str, matches: bool) -> None:
        assert (found([route("r", hosts=[pattern])], host=host) == "r") is matches

    def test_a_host_without_port_is_on_the_listeners(self) -> None:
        routes = [route("r", hosts=["example.com:8000"])]
        assert found(routes, port=8000) == "r"
        assert found(routes, port=9000) is None

    def test_a_request_without_host_matches_routes_that_ask_for_none(self) -> None:
        assert found([route("r", hosts=["*.a.com"]), route("any", paths=["/"])], host="") == "any"


class TestHeaders:
    def test_values_and_names_ignore_case_and_spell_hyphens_as_underscores(self) -> None:
        routes = [route("r", headers={"X_Version": ["V1", "v2"]})]
        assert found(routes, headers=[("x-version", "v1")]) == "r"
        assert found(routes, headers=[("X-Version", "v3")]) is None
        assert found(routes) is None

    def test_any_of_several_values_of_a_request_may_match(self) -> None:
        routes = [route("r", headers={"x-tier": ["gold"]})]
        assert found(routes, headers=[("X-Tier", "silver"), ("X-Tier", "gold")]) == "r"

    def test_names_are_anded(self) -> None:
        routes = [route("r", headers={"a": ["1"], "b": ["2"]})]
        assert found(routes, headers=[("a", "1")]) is None
        assert found(routes, headers=[("b", "2"), ("a", "1")]) == "r"

    def test_a_regex_is_found_anywhere_in_any_case(self) -> None:
        routes = [route("r", headers={"user-agent": ["~*curl/\\d+"]})]
        assert found(routes, headers=[("User-Agent", "my CURL/8")]) == "r"
        assert found(routes, headers=[("User-Agent", "curl/x")]) is None

    def test_headers_that_a_later_router_uses_are_part_of_its_memory(self) -> None:
        router = Router([route("plain", paths=["/"]), route("gold", paths=["/"], headers={"x": ["1"]})], {})
        for value, name in (("0", "plain"), ("1", "gold"), ("0", "plain"), ("1", "gold")):
            match = router.match(Request("GET", "/", Headers([("X", value)]), BufferedBody()))
            assert match is not None
            assert match.route.name == name


class TestSni:
    ROUTES = (route("r", protocols=["https"], snis=["a.com", "*.b.com"]),)

    def test_counts_over_tls(self) -> None:
        assert found(list(self.ROUTES), scheme="https", sni="a.com.") == "r"
        assert found(list(self.ROUTES), scheme="https", sni="x.b.com") == "r"
        assert found(list(self.ROUTES), scheme="https", sni="c.com") is None

    def test_is_met_without_tls(self) -> None:
        assert found(list(self.ROUTES), scheme="http") == "r"


class TestPriority:
    """Each pair: what wins, what loses, for a request that both accept."""

    @pytest.mark.parametrize(
        ("winner", "loser"),
        [
            ({"paths": ["/a"], "methods": ["GET"]}, {"paths": ["/a/b/c/d"]}),
            ({"hosts": ["example.com"]}, {"hosts": ["*.com"]}),
            ({"hosts": ["example.com"]}, {"hosts": ["example.com", "*.org"]}),
            ({"hosts": ["example.com"]}, {"paths": ["/a/b/c/d"]}),
            ({"paths": ["~/a"]}, {"paths": ["/a/b/c/d"]}),
            ({"paths": ["~/a"], "regex_priority": 1}, {"paths": ["~/a/b"], "regex_priority": 0}),
            ({"paths": ["/a/b"]}, {"paths": ["/a"], "regex_priority": 100}),
            ({"headers": {"x": ["1"], "y": ["1"]}}, {"headers": {"x": ["1"]}}),
            ({"headers": {"x": ["1"]}}, {"methods": ["GET"]}),
            ({"headers": {"x": ["1"]}, "methods": ["GET"]}, {"hosts": ["example.com"]}),
        ],
    )
    def test_wins(self, winner: dict[str, Any], loser: dict[str, Any]) -> None:
        for ids in (("0" * 8, "f" * 8), ("f" * 8, "0" * 8)):
            tail = "-0000-4000-8000-000000000000"
            routes = [route("winner", id=ids[0] + tail, **winner), route("loser", id=ids[1] + tail, **loser)]
            assert found(routes, "/a/b/c/d", headers=[("x", "1"), ("y", "1")]) == "winner"
            assert found(routes[::-1], "/a/b/c/d", headers=[("x", "1"), ("y", "1")]) == "winner"

    def test_a_tie_goes_to_the_greatest_id(self) -> None:
        low, high = sorted((str(uuid.uuid4()), str(uuid.uuid4())))
        routes = [route("low", id=low, paths=["/a"]), route("high", id=high, paths=["/a"])]
        assert found(routes, "/a") == found(routes[::-1], "/a") == "high"

    def test_a_tie_with_a_split_route_goes_by_the_derived_id(self) -> None:
        """Derived in Kong's own namespace from `<route id>#<group number>`, groups in order of appearance."""
        split_id = "11111111-1111-4111-8111-111111111111"
        derived = str(uuid.uuid5(uuid.UUID("7f145bf9-0dce-4f91-98eb-debbce4b9f6b"), f"{split_id}#2"))
        split = route("split", id=split_id, paths=["/longer", "/a"])
        below = route("plain", id=str(uuid.UUID(int=uuid.UUID(derived).int - 1)), paths=["/a"])
        above = route("plain", id=str(uuid.UUID(int=uuid.UUID(derived).int + 1)), paths=["/a"])
        assert found([split, below], "/a") == "split"
        assert found([split, above], "/a") == "plain"

    def test_each_part_of_a_split_route_has_its_own_priority(self) -> None:
        routes = [route("split", paths=["/", "/a/b/c", "~/x\\d"]), route("middle", paths=["/a/b"])]
        assert found(routes, "/a/b/c") == "split"
        assert found(routes, "/a/b/x") == "middle"
        assert found(routes, "/x1") == "split"
        assert found(routes, "/x") == "split"


class TestRegexPaths:
    def test_is_bound_to_the_beginning_only(self) -> None:
        routes = [route("r", paths=["~/v\\d+/items"])]
        assert found(routes, "/v1/items/3") == "r"
        assert found(routes, "/x/v1/items") is None

    def test_captures_by_number_and_name(self) -> None:
        match = find([route("r", paths=["~/(?<version>v\\d+)/(\\w+)"])], "/v2/items")
        assert match is not None
        assert match.captures == ("v2", "items")
        assert match.named_captures == {"version": "v2"}

    def test_the_whole_match_is_stripped(self) -> None:
        match = find([route("r", paths=["~/v\\d+/a"])], "/v2/a/rest")
        assert match is not None
        assert (match.prefix, match.upstream_path) == ("/v2/a", "/rest")

    @pytest.mark.parametrize("pattern", ["~/a(?=b)", "~/(a)\\1", "~/a(?<!b)c", "~/a++", "~/(?P=n)", "~/a[", "~/(?>a)"])
    def test_what_the_dialect_lacks_is_refused_by_name(self, pattern: str) -> None:
        broken = Route.model_construct(
            id=entity_id("broken"), name="broken", paths=[pattern], protocols=["http"], regex_priority=0,
            methods=None, hosts=None, headers=None, snis=None, service=None,
        )  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            Router([broken], {})
        assert (caught.value.entity_type, caught.value.entity_name, caught.value.field) == ("routes", "broken", "paths")


# Kong's table of service path × route path × request path (path handling v0): §2.6 of the reference, row by row.
PATH_TABLE = [
    # service    route      strip  request        upstream
    ("/",        "/",       True,  "/",           "/"),
    ("/",        "/",       False, "/route/",     "/route/"),
    ("/",        "/route",  False, "/routereq",   "/routereq"),
    ("/",        "/route",  True,  "/route",      "/"),
    ("/",        "/route",  True,  "/route/",     "/"),
    ("/",        "/route",  True,  "/routereq",   "/req"),
    ("/",        "/route/", True,  "/route/",     "/"),
    ("/",        "/route/", True,  "/route/req",  "/req"),
    ("/srv",     "/rou",    False, "/roureq",     "/srv/roureq"),
    ("/srv",     "/rou",    True,  "/roureq",     "/srv/req"),
    ("/srv/",    "/rou",    False, "/rou",        "/srv/rou"),
    ("/srv/",    "/rou",    True,  "/rou",        "/srv"),
    ("/service", "/",       True,  "/",           "/service"),
    ("/service", "/",       False, "/",           "/service"),
    ("/service", "/",       True,  "/route/",     "/service/route/"),
    ("/service", "/",       False, "/route/req",  "/service/route/req"),
    ("/service", "/route",  False, "/route",      "/service/route"),
    ("/service", "/route",  True,  "/route",      "/service"),
    ("/service", "/route",  True,  "/route/",     "/service/"),
    ("/service", "/route",  True,  "/routereq",   "/service/req"),
    ("/service", "/route",  True,  "/route../req", "/service/req"),
    ("/service", "/route",  True,  "/route./req", "/service/req"),
    ("/service", "/route",  True,  "/route..",    "/service"),
    ("/service", "/route/", True,  "/route/",     "/service/"),
    ("/service", "/route/", True,  "/route/req",  "/service/req"),
    ("/service/", "/",      False, "/",           "/service/"),
    ("/service/", "/",      True,  "/",           "/service/"),
    ("/service/", "/",      True,  "/route",      "/service/route"),
    ("/service/", "/route", True,  "/route",      "/service"),
    ("/service/", "/route", True,  "/route/",     "/service/"),
    ("/service/", "/route", True,  "/routereq",   "/service/req"),
    ("/service/", "/route/", True, "/route/",     "/service/"),
    ("/service/", "/route/", False, "/route/req", "/service/route/req"),
    ("/",        None,      True,  "/route/",     "/route/"),
    ("/service", None,      False, "/",           "/service"),
    ("/service", None,      True,  "/route",      "/service/route"),
    ("/service/", None,     True,  "/",           "/service/"),
    ("/service/", None,     False, "/route",      "/service/route"),
    ("/s",       "/fv0",    True,  "/fv0/req",    "/s/req"),
    ("/s",       "/fv0",    False, "/fv0/req",    "/s/fv0/req"),
]  # fmt: skip


@pytest.mark.parametrize(("service_path", "route_path", "strip", "request_path", "upstream"), PATH_TABLE)
def test_the_upstream_path(
    service_path: str, route_path: str | None, strip: bool, request_path: str, upstream: str
) -> None:
    criteria: dict[str, Any] = {"paths": [route_path]} if route_path else {"hosts": ["example.com"]}
    service = Service(id=entity_id("service"), host="backend", path=service_path)
    match = find([route("r", strip_path=strip, **criteria)], request_path, service=service)
    assert match is not None
    assert match.upstream_path == upstream


class TestNormalisation:
    @pytest.mark.parametrize(
        ("sent", "upstream"),
        [
            ("/a/../b", "/b"),
            ("/a//b/./c", "/a/b/c"),
            ("/a/..", "/"),
            ("/../../a", "/a"),
            ("/a/%2e%2e/b", "/b"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%20b", "/a%20b"),
            ("/%7Euser", "/~user"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/%ff", "/%FF"),
            ("/a/.hidden", "/a/.hidden"),
            ("/a/b/", "/a/b/"),
            ("/100%", "/100%"),
        ],
    )
    def test_paths_are_normalised_before_matching_and_escaped_when_sent(self, sent: str, upstream: str) -> None:
        match = find([route("r", paths=["/"], strip_path=False)], sent)
        assert match is not None
        assert match.upstream_path == upstream

    def test_an_escaped_letter_matches_a_plain_one(self) -> None:
        assert found([route("r", paths=["/admin"])], "/%61dmin") == "r"

    def test_dots_do_not_lead_around_a_route(self) -> None:
        routes = [route("admin", paths=["/admin"]), route("public", paths=["/public"])]
        assert found(routes, "/public/../admin") == "admin"


def test_stream_routes_take_no_part() -> None:
    assert found([route("tcp", protocols=["tcp"], sources=[{"ip": "10.0.0.1"}])]) is None


def test_a_scan_of_unknown_paths_leaves_the_memory_bounded_and_right() -> None:
    router = Router([route("r", paths=["/a"])], {str(SERVICE.id): SERVICE})
    for number in range(6000):
        assert router.match(Request("GET", f"/x{number}", Headers(), BufferedBody())) is None
        assert router.match(Request("GET", f"/a{number}", Headers(), BufferedBody())) is not None
    assert len(router._found) == len(router._missed) == 5000
