"""Which route a request belongs to: Kong's `traditional_compatible` router, decided without I/O.

Theory. Every route becomes one or more *rules*: a route whose paths mix regexes and prefixes, or prefixes of different
lengths, is split into one rule per length and one for its regexes. A rule has a 64-bit priority (number of criteria,
plain hosts, headers, regex or prefix length) and an id; rules are ranked by (priority, id) from the top and the first
that matches wins, so at equal priority the greatest id does. Ids of split rules are derived from the route's.

Walking 10,000 rules would cost milliseconds, so rules lie in buckets by (what their paths begin with, host). A request
looks into the few buckets that its path's beginnings and its host's spellings name; each lies in order of rank, and
is left where it cannot beat the best rule found. Verdicts are remembered under the attributes that the rules look at.

Rules and buckets never change once they are made, so a router that follows another takes over those that still hold.

Source: `reference/gateway.md` §2.2–2.8.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from data_plane import paths
from data_plane.errors import ConfigError
from data_plane.messages import Headers, Request
from gateway_schema.entities import Route, Service
from gateway_schema.patterns import PatternError, compile_path, compile_value, literal_prefix

HTTP_PROTOCOLS: Final = frozenset({"http", "https", "grpc", "grpcs", "ws", "wss"})

_SPLIT_NAMESPACE: Final = uuid.UUID("7f145bf9-0dce-4f91-98eb-debbce4b9f6b")
"""Kong derives the ids of split routes in this namespace; ties between them fall alike only in the same one."""

_CACHED: Final = 5000
_LONGEST_CACHED_TARGET: Final = 1024
_HOST_BIT: Final = 1 << 60
_REGEX_BIT: Final = 1 << 51

RequestHeaders = Mapping[str, Sequence[str]]
"""Values in lower case under names in lower case, with `-` for `_`."""


@dataclass(frozen=True, slots=True)
class Match:
    """A verdict: the route, and what the match says about the path. Shared between requests: it never changes."""

    route: Route
    service: Service | None
    path: str
    """The normalised request path."""
    prefix: str
    """What of the path the route matched (a prefix or the whole regex match); empty when paths were no criterion."""
    upstream_path: str
    """Path for the service, escaped; without the query."""
    captures: tuple[str | None, ...] = ()
    named_captures: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Host:
    """A host criterion: exact, `*.suffix` or `prefix.*`, perhaps with a port."""

    text: str
    """Without port and star; with the dot beside the star."""
    kind: str
    port: int | None

    def accepts(self, host: str, port: int) -> bool:
        if self.port is not None and self.port != port:
            return False
        if self.kind == "exact":
            return host == self.text
        return host.endswith(self.text) if self.kind == "suffix" else host.startswith(self.text)

    @property
    def key(self) -> str:
        """Name of the bucket: what a host's own spellings (`_host_keys`) give."""
        return {"exact": self.text, "suffix": "*" + self.text, "prefix": self.text + "*"}[self.kind]


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """A header criterion: one of the values, or a regex."""

    name: str
    values: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    def accepts(self, given: Sequence[str]) -> bool:
        return any(value in self.values or any(p.search(value) for p in self.patterns) for value in given)


@dataclass(slots=True, eq=False)
class Rule:
    """A route, or a part of one, with all its criteria in a form that is quick to test."""

    route: Route
    service: Service | None
    id: str
    priority: int
    methods: frozenset[str]
    hosts: tuple[Host, ...]
    headers: tuple[HeaderRule, ...]
    snis: tuple[Host, ...]
    prefixes: tuple[str, ...]
    patterns: tuple[tuple[str, re.Pattern[str]], ...]
    """Each with the plain text its matches begin with."""

    @property
    def rank(self) -> tuple[int, str]:
        """Of two rules that match, the one with the greater rank wins."""
        return self.priority, self.id

    def accepts(self, question: Question) -> bool:
        """Whether all criteria other than the path hold."""
        if self.methods and question.method not in self.methods:
            return False
        if self.hosts and not any(host.accepts(question.host, question.port) for host in self.hosts):
            return False
        if self.headers and not all(rule.accepts(question.headers.get(rule.name, ())) for rule in self.headers):
            return False
        # Without TLS there is no server name, and the criterion counts as met.
        return not self.snis or question.scheme != "https" or any(s.accepts(question.sni, 0) for s in self.snis)

    def match_path(self, path: str) -> tuple[str, re.Match[str] | None] | None:
        """What of the path was matched, None when nothing was."""
        if self.prefixes:
            return next(((prefix, None) for prefix in self.prefixes if path.startswith(prefix)), None)
        if self.patterns:
            return next(((m[0], m) for _, pattern in self.patterns if (m := pattern.search(path))), None)
        return "", None


@dataclass(slots=True)
class Question:
    """A request as the router sees it."""

    method: str
    host: str
    port: int
    path: str
    scheme: str
    sni: str
    headers: RequestHeaders


class Router:
    """All routes of one configuration. Raises ConfigError for a route that cannot be compiled."""

    def __init__(self, routes: Iterable[Route], services: Mapping[str, Service]) -> None:
        compiled: dict[str, Sequence[Rule]] = {str(route.id): _rules_of(route, services) for route in routes}
        rules = _rules_in(compiled.values())
        self._set_up(compiled, _Index().changed((), rules), _looked_at(rules))

    def after(self, come: Mapping[str, Route], gone: Iterable[str], services: Mapping[str, Service]) -> Router:
        """A router with some routes put, new or in the place of others, and some taken away; the rest is shared.

        `come` by id, and of routes whose service is another object now too; `gone` are ids. Raises ConfigError.
        """
        compiled = dict(self._compiled)
        former = [compiled.pop(name) for name in (*come, *gone) if name in compiled]
        if not former and not come:
            return self
        newer = {name: _rules_of(route, services) for name, route in come.items()}
        compiled |= newer
        less, more = _rules_in(former), _rules_in(newer.values())
        looked_at = self._looked_at + _looked_at(more)
        looked_at.subtract(_looked_at(less))
        router = Router.__new__(Router)
        router._set_up(compiled, self._index.changed(less, more), +looked_at)
        return router

    def _set_up(self, compiled: dict[str, Sequence[Rule]], index: _Index, looked_at: Counter[str]) -> None:
        self._compiled = compiled
        """Each route's rules, by its id."""
        self._index = index
        self._looked_at = looked_at
        self._uses_method = _METHOD in looked_at
        self._uses_host = _HOST in looked_at
        self._uses_port = _PORT in looked_at
        self._uses_sni = _SNI in looked_at
        self._header_names = frozenset(looked_at) - {_METHOD, _HOST, _PORT, _SNI}
        self._found: OrderedDict[tuple[object, ...], Match] = OrderedDict()
        self._missed: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._looks_no_further = not (self._uses_host or self._uses_sni or self._header_names)
        """Than at path and method: so it is with most configurations."""
        self._found_quickly: dict[tuple[str, str], Match] = {}
        """By path and method, where nothing else matters; emptied when it is full."""

    @property
    def rules(self) -> list[Rule]:
        """In no particular order."""
        return _rules_in(self._compiled.values())

    def match(self, request: Request, *, scheme: str = "http", port: int = 80, sni: str = "") -> Match | None:
        """The route for a request. `port` is the listener's, used when the Host header names none.

        A target in absolute form must have been reduced to path and query before.
        """
        path = request.target.partition("?")[0]
        if self._looks_no_further:
            return self._match_quickly(path, request.method)
        host = ""
        if self._uses_host:
            host, given_port = split_host(request.headers.get("host") or "")
            port = (given_port or port) if self._uses_port else 0
        headers = self._headers(request.headers) if self._header_names else _NO_HEADERS
        question = Question(
            request.method if self._uses_method else "",
            host,
            port if self._uses_port else 0,
            path,
            scheme if self._uses_sni else "",
            sni.rstrip(".") if self._uses_sni else "",
            headers,
        )
        return self._remembered(question)

    def _match_quickly(self, path: str, method: str) -> Match | None:
        key = (path, method)
        found = self._found_quickly.get(key)
        if found is None:
            found = self._remembered(Question(method if self._uses_method else "", "", 0, path, "", "", _NO_HEADERS))
            if found is not None and len(path) <= _LONGEST_CACHED_TARGET:
                if len(self._found_quickly) >= _CACHED:
                    self._found_quickly.clear()
                self._found_quickly[key] = found
        return found

    def _remembered(self, question: Question) -> Match | None:
        headers = tuple(question.headers.items()) if question.headers else ()
        key = (question.path, question.host, question.method, question.port, question.scheme, question.sni, headers)
        found = self._found.get(key)
        if found is not None:
            self._found.move_to_end(key)
            return found
        if key in self._missed:
            self._missed.move_to_end(key)
            return None
        verdict = self._decide(question)
        if len(question.path) <= _LONGEST_CACHED_TARGET:
            self._remember(key, verdict)
        return verdict

    def _remember(self, key: tuple[object, ...], verdict: Match | None) -> None:
        """Misses are kept apart, so that a scan of unknown paths does not push real ones out."""
        if verdict is None:
            self._missed[key] = None
            if len(self._missed) > _CACHED:
                self._missed.popitem(last=False)
        else:
            self._found[key] = verdict
            if len(self._found) > _CACHED:
                self._found.popitem(last=False)

    def _decide(self, question: Question) -> Match | None:
        path = question.path = paths.normalise(question.path)
        best: tuple[Rule, tuple[str, re.Match[str] | None]] | None = None
        for bucket in self._index.buckets(path, question.host, question.headers):
            for rule in bucket:
                if best is not None and rule.rank <= best[0].rank:
                    break
                if rule.accepts(question) and (matched := rule.match_path(path)) is not None:
                    best = (rule, matched)
                    break
        return None if best is None else _verdict(best[0], path, *best[1])

    def _headers(self, headers: Headers) -> RequestHeaders:
        """The headers that some rule looks at, in an order that does not depend on the request's."""
        found: dict[str, tuple[str, ...]] = {}
        for name, value in headers.raw:
            plain = name.lower().replace("_", "-")
            if plain in self._header_names:
                found[plain] = (*found.get(plain, ()), value.lower())
        return dict(sorted(found.items())) if len(found) > 1 else found


_NO_HEADERS: RequestHeaders = {}


def _rules_in(compiled: Iterable[Sequence[Rule]]) -> list[Rule]:
    return [rule for rules in compiled for rule in rules]


_METHOD, _HOST, _PORT, _SNI = ":method", ":host", ":port", ":sni"
"""No header has such a name."""


def _looked_at(rules: Iterable[Rule]) -> Counter[str]:
    """How many rules look at what of a request, beyond its path: names of headers, and those above."""
    counts: Counter[str] = Counter()
    for rule in rules:
        counts.update({header.name for header in rule.headers})
        counts[_METHOD] += bool(rule.methods)
        counts[_HOST] += bool(rule.hosts)
        counts[_PORT] += any(host.port is not None for host in rule.hosts)
        counts[_SNI] += bool(rule.snis)
    return +counts


_Key = tuple[str, str]
"""What a path begins with, and a host's spelling; either may be empty."""


class _Index:
    """Rules by what their paths begin with and by host."""

    def __init__(self, buckets: Mapping[_Key, _Bucket] | None = None, former: _Index | None = None) -> None:
        self._buckets = buckets or {}
        same = former is not None and former._buckets.keys() == self._buckets.keys()
        self._host_names: set[str] = (
            former._host_names if former and same else {name for _, name in self._buckets} - {""}
        )
        self._lengths: list[int] = former._lengths if former and same else sorted({len(s) for s, _ in self._buckets})

    def changed(self, gone: Iterable[Rule], come: Iterable[Rule]) -> _Index:
        """Another index, without some rules and with others; it shares the buckets that they do not concern."""
        less, more = _by_key(gone), _by_key(come)
        buckets = dict(self._buckets)
        for key in less.keys() | more.keys():
            former = buckets.pop(key, None)
            leaving = set(map(id, less.get(key, ())))
            rules = [rule for rule in former.all if id(rule) not in leaving] if former is not None else []
            rules += more.get(key, ())
            if rules:
                buckets[key] = _Bucket(rules)
        return _Index(buckets, self)

    def buckets(self, path: str, host: str, headers: RequestHeaders) -> Iterable[Sequence[Rule]]:
        hosts = ["", *(key for key in _host_keys(host) if key in self._host_names)] if self._host_names else [""]
        for length in self._lengths:
            if length > len(path):
                return
            start = path[:length]
            for name in hosts:
                bucket = self._buckets.get((start, name))
                if bucket is not None:
                    yield from bucket.rules(headers)


class _Bucket:
    """Rules with the same beginning of the path and the same host, by rank; apart, those that ask for a header."""

    __slots__ = ("_by_header", "_others", "all")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.all = sorted(rules, key=lambda rule: rule.rank, reverse=True)
        self._others: list[Rule] = []
        self._by_header: dict[str, dict[str, list[Rule]]] = {}
        for rule in self.all:
            self._add(rule)

    def _add(self, rule: Rule) -> None:
        exact = next((header for header in rule.headers if not header.patterns), None)
        if exact is None:
            self._others.append(rule)
            return
        by_value = self._by_header.setdefault(exact.name, {})
        for value in exact.values:
            by_value.setdefault(value, []).append(rule)

    def rules(self, headers: RequestHeaders) -> Iterable[Sequence[Rule]]:
        for name, by_value in self._by_header.items():
            for value in headers.get(name, ()):
                if value in by_value:
                    yield by_value[value]
        yield self._others


def _by_key(rules: Iterable[Rule]) -> dict[_Key, list[Rule]]:
    found: dict[_Key, list[Rule]] = {}
    for rule in rules:
        starts = set(rule.prefixes) or {literal for literal, _ in rule.patterns} or {""}
        for start in starts:
            for host in {host.key for host in rule.hosts} or {""}:
                found.setdefault((start, host), []).append(rule)
    return found


@lru_cache(maxsize=512)
def split_host(host: str) -> tuple[str, int | None]:
    """A Host header's name in lower case, and its port when there is one."""
    name, colon, port = host.rpartition(":")
    if colon and port.isascii() and port.isdigit() and not name.endswith(":"):
        return name.lower(), int(port)
    return host.lower(), None


def _host_keys(host: str) -> Iterable[str]:
    """The names of all buckets that a host may lie in: itself, each suffix and each prefix at a dot."""
    yield host
    position = host.find(".")
    while position >= 0:
        yield "*" + host[position:]
        yield host[: position + 1] + "*"
        position = host.find(".", position + 1)


def _verdict(rule: Rule, path: str, prefix: str, found: re.Match[str] | None) -> Match:
    service_path = (rule.service.path if rule.service is not None else None) or "/"
    matched = bool(rule.prefixes or rule.patterns)
    strip = rule.route.strip_path
    # Without a matched prefix the remainder is the path itself; its slash then counts as the service's.
    rest = path[len(prefix) :] if matched and strip else path[1:]
    upstream = paths.join(paths.normalise_configured(service_path), path, rest, strip=strip)
    captures = found.groups() if found is not None else ()
    named = found.groupdict() if found is not None else {}
    return Match(rule.route, rule.service, path, prefix, paths.escape(upstream), captures, named)


def _rules_of(route: Route, services: Mapping[str, Service]) -> list[Rule]:
    service = services.get(route.service.id or "") if route.service is not None else None
    if not HTTP_PROTOCOLS & set(route.protocols):
        return []
    groups: dict[int, list[str]] = {}
    for path in route.paths or ():
        groups.setdefault(-1 if path.startswith("~") else len(path.encode()), []).append(path)
    if len(groups) < 2:
        return [_rule(route, service, str(route.id), route.paths or [])]
    return [
        _rule(route, service, str(uuid.uuid5(_SPLIT_NAMESPACE, f"{route.id}#{number}")), group)
        for number, group in enumerate(groups.values(), start=1)
    ]


def _rule(route: Route, service: Service | None, rule_id: str, own_paths: Sequence[str]) -> Rule:
    regexes = [path for path in own_paths if path.startswith("~")]
    hosts = tuple(_host(text) for text in route.hosts or ())
    headers = tuple(_header(route, name, values) for name, values in (route.headers or {}).items())
    return Rule(
        route=route,
        service=service,
        id=rule_id,
        priority=_priority(route, own_paths, hosts, headers),
        methods=frozenset(route.methods or ()),
        hosts=hosts,
        headers=headers,
        snis=tuple(_host(name.rstrip(".")) for name in route.snis or ()),
        prefixes=() if regexes else tuple(paths.normalise_configured(path) for path in own_paths),
        patterns=tuple(_pattern(route, path[1:]) for path in regexes),
    )


def _priority(route: Route, own_paths: Sequence[str], hosts: Sequence[Host], headers: Sequence[HeaderRule]) -> int:
    """64 bits: criteria (61–63), plain hosts (60), headers (52–59), regex (51), its priority (19–50) or the prefix's
    length (0–18)."""
    criteria = (route.methods, hosts, headers, route.snis, own_paths)
    priority = sum(1 for criterion in criteria if criterion) << 61
    priority |= min(len(headers), 255) << 52
    if hosts and all(host.kind == "exact" for host in hosts):
        priority |= _HOST_BIT
    if own_paths and own_paths[0].startswith("~"):
        priority |= _REGEX_BIT | min(max(route.regex_priority, 0), 0xFFFFFFFF) << 19
    elif own_paths:
        priority |= len(own_paths[0].encode()) & 0x7FFFF
    return priority


def _host(text: str) -> Host:
    name, port = split_host(text)
    if name.startswith("*"):
        return Host(name[1:], "suffix", port)
    if name.endswith("*"):
        return Host(name[:-1], "prefix", port)
    return Host(name, "exact", port)


def _header(route: Route, name: str, values: Sequence[str]) -> HeaderRule:
    plain: set[str] = set()
    patterns: list[re.Pattern[str]] = []
    for value in values:
        if not value.startswith("~*"):
            plain.add(value.lower())
            continue
        try:
            patterns.append(compile_value(value[2:]))
        except PatternError as error:
            raise _fault(route, f"headers.{name}", f"not a valid regex: {value[2:]} ({error})") from None
    return HeaderRule(name.lower().replace("_", "-"), frozenset(plain), tuple(patterns))


def _pattern(route: Route, pattern: str) -> tuple[str, re.Pattern[str]]:
    try:
        return literal_prefix(pattern), compile_path(pattern)
    except PatternError as error:
        raise _fault(route, "paths", f"not a valid regex: {pattern} ({error})") from None


def _fault(route: Route, where: str, message: str) -> ConfigError:
    return ConfigError(
        message, entity_type="routes", entity_id=str(route.id or ""), entity_name=route.name or "", field=where
    )
