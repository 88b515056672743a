"""Datakit's node lists: what is accepted, how it is connected, and each fault by its path and in words."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway_schema.plugins.datakit import DatakitConfig
from gateway_schema.plugins.datakit_graph import Feed, Plan, compile_nodes
from gateway_schema.violations import SchemaViolation, Violation, parse
from tests.gateway_schema.datakit_lists import APPLIED, EXPLAINED


def plan_of(*nodes: dict[str, Any]) -> Plan:
    return parse(DatakitConfig, {"nodes": list(nodes)}).plan


def faults_of(*nodes: Any, **config: Any) -> dict[str, str]:
    """Message by field; of a field with several faults the last."""
    with pytest.raises(SchemaViolation) as refused:
        parse(DatakitConfig, {"nodes": list(nodes), **config})
    return {f"config.{violation.field}": violation.message for violation in refused.value.violations}


def feeds(plan: Plan, name: str) -> dict[str | None, str]:
    node = next(node for node in plan.nodes if node.name == name)
    return {feed.field: _source(feed) for feed in node.feeds}


def _source(feed: Feed) -> str:
    return feed.source if feed.source_field is None else f"{feed.source}.{feed.source_field}"


def jq(name: str, program: str = ".", **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": "jq", "jq": program, **fields}


def call(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": "call", "url": "http://service.test/", **fields}


def static(name: str, values: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": name, "type": "static", "values": values, **fields}


# What is accepted


def test_the_recipes_list_has_the_edges_that_its_author_drew() -> None:
    plan = plan_of(*APPLIED)

    assert feeds(plan, "EXTRACT_PROMPT") == {None: "request.body"}
    assert feeds(plan, "EXTRACT_AUTH") == {None: "request.headers"}
    assert feeds(plan, "CALL_MODEL_SELECTOR") == {"body": "EXTRACT_PROMPT", "headers": "EXTRACT_AUTH"}
    assert feeds(plan, "EXTRACT_MODEL") == {"body": "CALL_MODEL_SELECTOR.body"}
    assert feeds(plan, "UPDATE_REQUEST") == {"original": "request.body", "selected": "EXTRACT_MODEL"}
    assert [(feed.field, _source(feed)) for feed in plan.sinks["service_request"]] == [
        ("headers", "EXTRACT_AUTH"),
        ("body", "UPDATE_REQUEST"),
    ]
    assert plan.reads_request_body
    assert not plan.has_response_phase
    assert not plan.reads_response_body


def test_the_explained_list_is_the_same_graph_by_names_of_results() -> None:
    plan = plan_of(*EXPLAINED)

    assert feeds(plan, "CALL_MODEL_SELECTOR") == {"body": "EXTRACT_PROMPT", "headers": "EXTRACT_AUTH"}
    assert feeds(plan, "EXTRACT_MODEL") == {None: "CALL_MODEL_SELECTOR.body"}
    assert feeds(plan, "UPDATE_REQUEST") == {"original": "request.body", "selected": "EXTRACT_MODEL"}
    assert [(feed.field, _source(feed)) for feed in plan.sinks["service_request"]] == [("body", "UPDATE_REQUEST")]
    assert [node.index for node in plan.nodes] == [1, 2, 3, 4, 5]


def test_both_ends_may_declare_an_edge_and_it_stays_one() -> None:
    plan = plan_of(jq("A", output="B"), jq("B", input="A"))

    assert feeds(plan, "B") == {None: "A"}


def test_the_source_side_names_members_of_a_jq_nodes_input_too() -> None:
    plan = plan_of(jq("A", output="C.left"), jq("B", output="C.right"), jq("C"))

    assert feeds(plan, "C") == {"left": "A", "right": "B"}


def test_nulls_are_not_connected() -> None:
    plan = plan_of(jq("A", inputs={"x": "request.body", "y": None}, input=None), call("C", inputs={"body": None}))

    assert feeds(plan, "A") == {"x": "request.body"}
    assert feeds(plan, "C") == {}


@pytest.mark.parametrize(
    ("source", "target", "fields"),
    [
        (jq("unused"), call("T", input="request"), {"body", "headers", "query"}),
        (call("S"), {"name": "T", "type": "exit", "input": "S"}, {"body", "headers"}),
        (call("S"), call("T", input="S"), {"body", "headers"}),
    ],
)
def test_object_to_object_connects_the_fields_that_both_have(
    source: dict[str, Any], target: dict[str, Any], fields: set[str]
) -> None:
    assert set(feeds(plan_of(source, target), "T")) == fields


def test_a_call_into_the_outgoing_request_gives_body_and_headers() -> None:
    plan = plan_of(call("S", output="service_request"))

    assert {feed.field for feed in plan.sinks["service_request"]} == {"body", "headers"}


def test_a_call_feeds_a_jq_node_as_a_whole() -> None:
    assert feeds(plan_of(call("S"), jq("T", input="S")), "T") == {None: "S"}


@pytest.mark.parametrize(
    "nodes",
    [
        [static("S", {"url": 8080}), call("T", inputs={"url": "S.url"})],  # number to string: converted
        [static("S", {"headers": {"a": "b"}, "unknown": 1}), call("T", input="S")],  # map to object
        [static("S", {"a": "b", "meant-for": ["others"]}), call("T", inputs={"headers": "S"})],
        [static("S", {"flag": True}), {"name": "T", "type": "branch", "input": "S.flag", "then": ["S2"]}, jq("S2")],
        [jq("S"), call("T", inputs={"headers": "S"})],  # any to map: checked when it runs
        [jq("S"), {"name": "T", "type": "call", "input": "S"}],  # any to object: may bring a URL
        [{"name": "response_", "type": "jq", "jq": ".", "input": "service_response.raw_body"}],
        [jq("T", inputs={"v": "request.version", "p": "request.port", "r": "request.raw_path"})],
    ],
)
def test_types_that_fit_are_accepted(nodes: list[dict[str, Any]]) -> None:
    assert plan_of(*nodes).nodes


# What is refused


REFUSED: list[tuple[str, list[Any], dict[str, str]]] = [
    (
        "an unknown source, with the nearest name",
        [jq("EXTRACT"), jq("B", input="EXTRACTS")],
        {"config.nodes[1].input": "unknown node \"EXTRACTS\" (did you mean 'EXTRACT'?)"},
    ),
    (
        "a name in another case",
        [jq("EXTRACT"), jq("B", inputs={"x": "extract"})],
        {"config.nodes[1].inputs.x": "unknown node \"extract\" (did you mean 'EXTRACT'?)"},
    ),
    (
        "an unknown target",
        [call("C", outputs={"body": "service_reqest.body"})],
        {"config.nodes[0].outputs.body": "unknown node \"service_reqest\" (did you mean 'service_request'?)"},
    ),
    (
        "an unknown output of a call",
        [call("C"), jq("J", input="C.bdy")],
        {"config.nodes[1].input": 'unknown output "bdy" of node "C" (did you mean \'body\'?)'},
    ),
    (
        "an unknown field of an implicit node",
        [jq("J", input="request.cookies")],
        {
            "config.nodes[0].input": 'unknown output "cookies" of node "request" (outputs: body, headers, query, path, '
            "raw_path, port, method, scheme, version)"
        },
    ),
    (
        "a named output of a jq node that has no name",
        [jq("A"), jq("B", input="A.result")],
        {"config.nodes[1].input": 'unknown output "result" of node "A": a jq node has one result, connect \'A\''},
    ),
    (
        "another name than the one that was given",
        [jq("A", output="tier"), jq("B", input="A.teir")],
        {
            "config.nodes[1].input": 'unknown output "teir" of node "A": a jq node has one result, connect '
            "'A.tier' or 'A'"
        },
    ),
    (
        "a slip in a target's name, which no one reads as a name of a result",
        [jq("SOURCE", output="TARGT"), jq("TARGET")],
        {"config.nodes[0].output": "unknown node \"TARGT\" (did you mean 'TARGET'?)"},
    ),
    (
        "an unknown input",
        [jq("A", output="C.bodyy"), call("C")],
        {"config.nodes[0].output": 'unknown input "bodyy" of node "C" (did you mean \'body\'?)'},
    ),
    (
        "a value that a static node does not have",
        [static("S", {"a": 1}, outputs={"b": "J"}), jq("J")],
        {"config.nodes[0].outputs.b": 'unknown value "b" of node "S" (values: a)'},
    ),
    (
        "three-part labels, with a hint",
        [jq("J", input="request.headers.authorization")],
        {
            "config.nodes[0].input": '"request.headers.authorization" has 3 parts, a label has one or two (NODE or '
            'NODE.FIELD): connect "request.headers" to a jq node and select the member there'
        },
    ),
    (
        "a label with an empty part",
        [jq("J", input="request.")],
        {"config.nodes[0].input": '"request." is not a label: write NODE or NODE.FIELD'},
    ),
    (
        "connections into what can only be read",
        [jq("J", output="request.body")],
        {"config.nodes[0].output": 'invalid connection: nothing can be connected into "request"'},
    ),
    (
        "connections from what can only be written",
        [jq("J", input="service_request.body")],
        {"config.nodes[0].input": 'invalid connection: nothing can be read from "service_request"'},
    ),
    (
        "connections from an exit",
        [{"name": "E", "type": "exit"}, jq("J", input="E")],
        {"config.nodes[1].input": 'invalid connection: node "E" has no output'},
    ),
    (
        "the vault node",
        [jq("J", input="vault.secret")],
        {"config.nodes[0].input": '"vault.secret": the vault node is not available yet'},
    ),
    (
        "object to map",
        [call("invalid", output="service_request.headers")],
        {
            "config.nodes[0].output": 'invalid connection ("invalid" -> "service_request.headers"): type mismatch: '
            "object -> map"
        },
    ),
    (
        "a static value of the wrong type",
        [static("S", {"headers": "text"}), call("C", input="S")],
        {
            "config.nodes[1].input": 'invalid connection ("S.headers" -> "C.headers"): type mismatch: string -> map',
        },
    ),
    (
        "an array as headers",
        [static("S", {"h": ["a"]}), call("C", inputs={"headers": "S.h"})],
        {"config.nodes[1].inputs.headers": 'invalid connection ("S.h" -> "C.headers"): type mismatch: array -> map'},
    ),
    (
        "a string as a condition",
        [static("S", {"f": "true"}), {"name": "B", "type": "branch", "input": "S.f", "then": ["J"]}, jq("J")],
        {"config.nodes[1].input": 'invalid connection ("S.f" -> "B"): type mismatch: string -> boolean'},
    ),
    (
        "two sources of one input",
        [jq("GET_FOO", output="FILTER"), jq("GET_BAR", output="FILTER"), jq("FILTER")],
        {
            "config.nodes[1].output": 'invalid connection ("GET_BAR" -> "FILTER"): conflicts with existing connection '
            '("GET_FOO" -> "FILTER")'
        },
    ),
    (
        "a field beside the whole",
        [jq("get-foo", output="response"), jq("get-bar", output="response.body")],
        {
            "config.nodes[1].output": 'invalid connection ("get-bar" -> "response.body"): conflicts with existing '
            'connection ("get-foo" -> "response")'
        },
    ),
    (
        "a field that an expansion feeds already",
        [call("get-foo", output="response"), jq("get-bar", output="response.body")],
        {
            "config.nodes[1].output": 'invalid connection ("get-bar" -> "response.body"): conflicts with existing '
            'connection ("get-foo.body" -> "response.body")'
        },
    ),
    (
        "both spellings on one side of a node",
        [jq("A", input="request.body", inputs={"b": "request.query"})],
        {
            "config.nodes[0].inputs": "cannot be given together with 'input'",
            "config.nodes[0].inputs.b": 'invalid connection ("request.query" -> "A.b"): conflicts with existing '
            'connection ("request.body" -> "A")',
        },
    ),
    (
        "a node that waits for itself",
        [jq("A", input="A")],
        {
            "config.nodes[0].input": "invalid dependency (node #1 (A) -> node #1 (A)): circular dependency (A -> A)",
        },
    ),
    (
        "a circle, with its whole path",
        [jq("A", input="C"), jq("B", input="A"), jq("C", input="B")],
        {
            "config.nodes[0].input": "invalid dependency (node #1 (A) -> node #3 (C)): circular dependency "
            "(A -> C -> B -> A)"
        },
    ),
    (
        "a circle through a branch",
        [jq("A"), {"name": "B", "type": "branch", "input": "A", "then": ["C"]}, jq("C", output="A")],
        {
            "config.nodes[2].output": "invalid dependency (node #1 (A) -> node #3 (C)): circular dependency "
            "(A -> C -> B -> A)"
        },
    ),
    (
        "the outgoing request made from the response",
        [call("CALL", input="service_response", output="service_request")],
        {
            "config.nodes[0].input": "invalid dependency (node #1 (CALL) -> node service_response): circular "
            "dependency (service_response -> service_request -> CALL -> service_response)"
        },
    ),
    (
        "a reserved name",
        [{"name": "request", "type": "static", "values": {}}],
        {"config.nodes[0].name": '"request" is a reserved name: it is an implicit node and cannot be declared'},
    ),
    (
        "a reserved name with a type, though it may be declared without",
        [{"name": "service_request", "type": "static", "values": {}}],
        {"config.nodes[0].name": '"service_request" is a reserved name: it is an implicit node and cannot be declared'},
    ),
    (
        "a second declaration of the outgoing request",
        [{"name": "service_request"}, {"name": "service_request"}],
        {"config.nodes[1].name": '"service_request" is declared twice'},
    ),
    (
        "another implicit node without a type",
        [jq("J"), {"name": "response", "inputs": {"body": "J"}}],
        {
            "config.nodes[1].type": "required field missing",
            "config.nodes[1].name": '"response" is a reserved name: it is an implicit node and cannot be declared',
        },
    ),
    (
        "an input that the outgoing request does not have",
        [jq("J"), {"name": "service_request", "inputs": {"bdy": "J"}}],
        {"config.nodes[1].inputs.bdy": "unknown field (did you mean 'body'?)"},
    ),
    (
        "a name that is used twice",
        [jq("A"), jq("A")],
        {"config.nodes[1].name": 'node #1 has the name "A" already'},
    ),
    (
        "a name that is none",
        [jq("1A"), jq("A B"), jq("")],
        {
            "config.nodes[0].name": "must match the pattern ^[A-Za-z_][A-Za-z0-9_-]*$",
            "config.nodes[1].name": "must match the pattern ^[A-Za-z_][A-Za-z0-9_-]*$",
            "config.nodes[2].name": "length must be at least 1",
        },
    ),
    (
        "nodes without name or type, and what is no node",
        [{"type": "jq", "jq": "."}, {"name": "A"}, 5],
        {
            "config.nodes[0].name": "required field missing",
            "config.nodes[1].type": "required field missing",
            "config.nodes[2]": "expected a record",
        },
    ),
    (
        "an unknown type, with the nearest",
        [{"name": "A", "type": "cal", "url": "http://a/"}],
        {
            "config.nodes[0].type": "expected one of: branch, call, exit, jq, property, static (did you mean 'call'?)",
        },
    ),
    (
        "an unknown field, with the nearest",
        [call("C", metod="GET")],
        {"config.nodes[0].metod": "unknown field (did you mean 'method'?)"},
    ),
    (
        "outputs of a jq node",
        [jq("J", outputs={"a": "K"}), jq("K")],
        {"config.nodes[0].outputs": "unknown field (did you mean 'output'?)"},
    ),
    (
        "a program that does not compile",
        [jq("A", ".a |")],
        {
            "config.nodes[0].jq": 'node "A": the jq program does not compile: syntax error, unexpected end of file, '
            "line 1, column 4:"
        },
    ),
    (
        "a program that would only compile inside ours",
        [jq("A", ".a) | (.b")],
        {
            "config.nodes[0].jq": 'node "A": the jq program does not compile: syntax error, unexpected '
            "INVALID_CHARACTER, expecting end of file, line 1, column 3:"
        },
    ),
    (
        "a program that includes files",
        [jq("A", 'import "a" as a; .')],
        {"config.nodes[0].jq": 'node "A": the jq program does not compile: module not found: a'},
    ),
    (
        "a call to nowhere",
        [{"name": "C", "type": "call"}],
        {"config.nodes[0].url": "required field missing: give a url or connect inputs.url"},
    ),
    (
        "a call to something that is not a URL",
        [call("C", url="ftp://host/"), call("D", url="/path"), call("E", url="http://host:port/")],
        {f"config.nodes[{number}].url": "expected an http or https URL with a host" for number in range(3)},
    ),
    (
        "a call through a proxy",
        [static("S", {"p": "http://proxy:3128"}), call("C", inputs={"http_proxy": "S.p"})],
        {"config.nodes[1].inputs.http_proxy": 'node "C": calls through a proxy are not available yet'},
    ),
    (
        "methods and statuses out of range",
        [call("C", method="get", timeout=-1), {"name": "E", "type": "exit", "status": 199}],
        {
            "config.nodes[0].method": "must match the pattern ^[A-Z]+$",
            "config.nodes[0].timeout": "value should be between 0 and 2147483646",
            "config.nodes[1].status": "value should be between 200 and 599",
        },
    ),
    (
        "values that are not JSON",
        [
            static("A", {"a": [2**64]}),
            static("B", {"a": {"b": float("nan")}}),
            static("C", {"a": datetime.date(2026, 1, 1)}),
            static("D", {"a": {1: 2}}),
        ],
        {
            f"config.nodes[{number}].values": "expected JSON: strings, finite numbers (integers of 64 bits), booleans, "
            "arrays, maps"
            for number in range(4)
        },
    ),
    (
        "nodes that a branch cannot list",
        [{"name": "B", "type": "branch", "input": "J", "then": ["K"], "else": ["request"]}, jq("J")],
        {
            "config.nodes[0].then[0]": 'unknown node "K"',
            "config.nodes[0].else[0]": '"request" is an implicit node: only declared nodes can stand in a branch',
        },
    ),
    (
        "an unknown property, with the nearest",
        [{"name": "P", "type": "property", "property": "kong.client.consmer"}],
        {
            "config.nodes[0].property": 'unknown property "kong.client.consmer" '
            "(did you mean 'kong.client.consumer'?)",
        },
    ),
    (
        "reading what can only be set, setting what can only be read",
        [
            {"name": "P", "type": "property", "property": "kong.response.status"},
            {"name": "Q", "type": "property", "property": "kong.version", "input": "request.body"},
            {"name": "R", "type": "property", "property": "kong.ctx.shared."},
        ],
        {
            "config.nodes[0].property": 'property "kong.response.status" can only be set: connect an input',
            "config.nodes[1].property": 'property "kong.version" can only be read: leave its input unconnected',
            "config.nodes[2].property": "unknown property \"kong.ctx.shared.\" (did you mean 'kong.ctx.shared.KEY'?)",
        },
    ),
    (
        "properties that this data plane does not know",
        [
            {"name": "P", "type": "property", "property": "kong.configuration.prefix"},
            {"name": "Q", "type": "property", "property": "kong.service.upstream", "input": "request.body"},
        ],
        {
            "config.nodes[0].property": 'property "kong.configuration.prefix" is not available yet',
            "config.nodes[1].property": 'property "kong.service.upstream" is not available yet',
        },
    ),
    (
        "a property of the response before there is one",
        [
            {
                "name": "P",
                "type": "property",
                "property": "kong.service.response.status",
                "output": "service_request.body",
            }
        ],
        {
            "config.nodes[0].property": "invalid dependency (node #1 (P) -> node service_response): circular "
            "dependency (service_response -> service_request -> P -> service_response)"
        },
    ),
]


@pytest.mark.parametrize(("nodes", "expected"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refuses(nodes: list[Any], expected: dict[str, str]) -> None:
    assert faults_of(*nodes) == expected


@pytest.mark.parametrize("kind", ["cache", "xml_to_json", "json_to_xml", "jwt_decode", "jwt_sign", "jwt_verify"])
def test_kinds_that_do_not_run_yet_are_refused_by_name_whatever_their_fields(kind: str) -> None:
    node = {"name": "LATER", "type": kind, "inputs": {"key": "request.path", "token": "J"}, "algorithm": "HS256"}

    assert faults_of(jq("J"), node, jq("K", input="LATER.data")) == {
        "config.nodes[1].type": f'node "LATER": nodes of type {kind} are not available yet'
    }


@pytest.mark.parametrize("name", ["cache", "vault"])
def test_resources_are_refused_by_name(name: str) -> None:
    assert faults_of(jq("J"), resources={name: {"x": "y"}}) == {
        f"config.resources.{name}": f"datakit's {name} is not available yet"
    }
    assert parse(DatakitConfig, {"nodes": [jq("J")], "resources": {name: None}}).plan.nodes


def test_all_faults_are_told_at_once_and_each_once() -> None:
    """The kinds of fault that Kong finds in the explained list, where the extension does not cover them."""
    faults = faults_of(
        jq("PROMPT", output="nowhere.body"),
        jq("MODEL", input="PROMPT.prompt_data"),
        call("SELECT", inputs={"body": "PROMPT.prompt_data", "headers": "AUTH.header"}),
        jq("UPDATE", ".a |", outputs={"x": "SELECT"}),
        {"name": "response", "inputs": {"body": "UPDATE.modified_body"}},
        debugg=True,
    )

    assert sorted(faults) == [
        "config.debugg",
        "config.nodes[0].output",
        "config.nodes[1].input",
        "config.nodes[2].inputs.body",
        "config.nodes[2].inputs.headers",
        "config.nodes[3].jq",
        "config.nodes[3].outputs",
        "config.nodes[4].name",
        "config.nodes[4].type",
    ]


# Phases


def test_what_depends_on_the_response_runs_after_it() -> None:
    plan = plan_of(
        jq("EARLY", input="request.body"),
        jq("STATUS", input="service_response.status"),
        {"name": "B", "type": "branch", "input": "STATUS", "then": ["LISTED"]},
        call("LISTED", output="response"),
        {"name": "P", "type": "property", "property": "kong.response.source"},
        {"name": "V", "type": "property", "property": "kong.version"},
    )

    assert {node.name for node in plan.nodes if node.in_response} == {"STATUS", "B", "LISTED", "P"}
    assert plan.has_response_phase
    assert not plan.reads_response_body


def test_a_response_sink_fed_early_needs_no_response_phase() -> None:
    plan = plan_of(static("H", {"X-A": "b"}, output="response.headers"))

    assert not plan.has_response_phase
    assert [feed.field for feed in plan.sinks["response"]] == ["headers"]


@pytest.mark.parametrize("label", ["service_response.body", "service_response.raw_body", "service_response"])
def test_only_nodes_that_read_the_responses_body_ask_for_it(label: str) -> None:
    assert plan_of(jq("J", input=label)).reads_response_body


def test_implicit_nodes_alone_can_close_a_circle_too() -> None:
    assert faults_of({"name": "service_request", "inputs": {"headers": "service_response.headers"}}) == {
        "config.nodes[0].inputs.headers": "invalid dependency (node service_request -> node service_response): "
        "circular dependency (service_response -> service_request -> service_response)"
    }


@pytest.mark.parametrize("entry", [None, 1, "x", [], {"name": 5, "type": []}, jq("A", inputs=[1]), jq("A", input=[])])
def test_compiling_takes_anything_for_an_entry_without_raising(entry: Any) -> None:
    plan, faults = compile_nodes([entry])

    assert plan is not None
    assert faults == []


LABELS = st.sampled_from(
    ["A", "B", "A.body", "B.x", "request", "request.body", "service_request.headers", "C.", "vault.k"]
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["A", "B", "C", "request", "service_request", 5]),
        "type": st.sampled_from(["jq", "call", "static", "exit", "branch", "property", "cache", "nope", None]),
        "jq": st.sampled_from([".", ".a |"]),
        "url": st.just("http://x/"),
        "property": st.sampled_from(["kong.version", "kong.service.response.status"]),
        "values": st.dictionaries(st.sampled_from(["x", "body"]), st.integers() | st.text()),
        "input": LABELS,
        "output": LABELS,
        "inputs": st.dictionaries(st.sampled_from(["body", "x"]), LABELS | st.none()),
        "outputs": st.dictionaries(st.sampled_from(["body", "x", "then"]), LABELS | st.none()),
        "then": st.lists(st.sampled_from(["A", "B", "Z"]), max_size=2),
    },
)


@given(st.lists(ENTRIES | st.none() | st.text(), max_size=5))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_list_is_a_plan_or_a_list_of_faults(nodes: list[Any]) -> None:
    faults: tuple[Violation, ...] = ()
    plan: Plan | None = None
    try:
        plan = parse(DatakitConfig, {"nodes": nodes}).plan
    except SchemaViolation as refused:
        faults = refused.violations
    if plan is None:
        assert faults
        assert all(fault.path for fault in faults)
        return
    settled: set[str] = set()
    waiting = list(plan.nodes)
    while waiting:  # every plan can be run to its end
        ready = [node for node in waiting if set(node.waits_for) <= settled]
        assert ready
        settled |= {node.name for node in ready}
        waiting = [node for node in waiting if node not in ready]
