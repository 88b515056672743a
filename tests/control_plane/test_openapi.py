"""The OpenAPI document is true: nothing that it allows ends in a fault, and every answer is one that it describes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.control_plane.client import TOKEN, Client
from tests.control_plane.everything import everything
from tests.control_plane.surface import Surface, surface

EXAMPLES = int(os.environ.get("TANDEM_OPENAPI_EXAMPLES", "3"))
"""Calls of each operation: a few for every run of the suite; thousands by hand, now and then."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
LONGEST_QUERY = 4000
"""Characters. The HTTP server below the application cuts off heads of 64 KiB, in words of its own."""
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
METHODS = ("GET", "POST", "PATCH", "PUT", "DELETE")
"""What is deleted cannot be read any more: deletions come last."""


@pytest.fixture(scope="module")
def served(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surface]:
    directory = tmp_path_factory.mktemp("surface")
    path = directory / "control-plane.db"
    shutil.copy(migrated_sqlite, path)
    with surface(directory / "state", f"sqlite:///{path}") as found:
        yield found


@pytest.mark.parametrize("method", METHODS)
def test_every_answer_is_one_that_the_document_describes(
    served: Surface, subtests: pytest.Subtests, method: str
) -> None:
    for found in schemathesis.openapi.from_dict(served.document).get_all_operations():
        operation = found.ok()
        if operation.method.upper() == method:
            with subtests.test(operation.label):
                _exercise(served.url, operation, served.known(method, operation.path))


def _exercise(url: str, operation: Any, known: dict[str, Any]) -> None:
    """Half of the calls go where something is; half carry what the document forbids."""
    strategies = [
        operation.as_strategy(mode, **paths)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        for paths in ([{"path_parameters": known}, {}] if known else [{}])
    ]

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(st.one_of(strategies))
    def call(case: Case) -> None:
        hypothesis.assume(sum(len(str(value)) for value in (case.query or {}).values()) < LONGEST_QUERY)
        case.call_and_validate(base_url=url, session=session, headers=AUTHORIZATION, checks=CHECKS)

    with requests.Session() as session:
        call()


DIMENSIONS = ["control_plane", "gateway_service", "consumer"]
FULL: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v2/metrics", {"dimensions": ["time", *DIMENSIONS[:2]]}),
    ("POST", "/v2/metrics", {"datasource": "llm_usage", "dimensions": ["ai_provider", "ai_request_model"]}),
    ("POST", "/v2/api-requests", {"size": 5}),
    ("POST", "/v2/control-planes/{documents}/apply", {"document": everything()}),
    ("POST", "/v2/control-planes/{documents}/plans", {"document": everything()}),
    ("POST", "/v2/control-planes/{documents}/snapshots/{version}/rollback", {}),
    ("GET", "/v2/control-planes/{documents}/snapshots/{version}/receipts", None),
    ("GET", "/v2/control-planes/{documents}/snapshots/{version}/diff", None),
    ("GET", "/v2/control-planes/{control_plane_id}/document", None),
    ("GET", "/v2/control-planes/{control_plane_id}/nodes", None),
    ("GET", "/v2/control-planes/{group}/group-memberships", None),
    ("GET", "/v2/audit-logs?size=1000", None),
    ("GET", "/v2/tokens", None),
]
"""What a made-up call seldom reaches: answers with something of everything in them."""


@pytest.mark.parametrize(("method", "path", "body"), FULL, ids=[f"{method} {path}" for method, path, _ in FULL])
def test_a_full_answer_is_as_the_document_says(
    served: Surface, method: str, path: str, body: dict[str, Any] | None
) -> None:
    url = served.url + path.format(**served.ids)
    response = requests.request(method, url, json=body, headers=AUTHORIZATION, timeout=60)
    assert response.status_code < 300, response.text
    template = re.sub(r"/control-planes/{\w+}", "/control-planes/{control_plane_id}", path.partition("?")[0])
    schemathesis.openapi.from_dict(served.document)[template][method].validate_response(response)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"{method.upper()} {path}", operation


async def test_every_body_and_every_answer_has_a_shape_of_its_own(client: Client) -> None:
    document = (await client.http.get("/openapi.json")).json()
    for label, operation in _operations(document):
        if label.startswith(("POST", "PUT", "PATCH")):
            [body] = operation["requestBody"]["content"].items()
            assert body[0] == "application/json"
            assert body[1]["schema"], label
        done = {code: answer for code, answer in operation["responses"].items() if code < "300"}
        assert done or label.endswith("/workspaces"), label
        for code, answer in done.items():
            shapes = [content["schema"] for content in answer.get("content", {}).values()]
            assert shapes == [] if code == "204" else all(shapes), label
            assert code == "204" or shapes, label


async def test_every_refusal_is_a_problem_and_none_is_frameworks_own(client: Client) -> None:
    document = (await client.http.get("/openapi.json")).json()
    for label, operation in _operations(document):
        refusals = {code: answer for code, answer in operation["responses"].items() if code >= "400"}
        assert "422" not in refusals, label
        for answer in refusals.values():
            assert list(answer["content"]) == ["application/problem+json"], label
        if operation.get("security"):
            assert {"401", "403", "429", "500", "503"} <= set(refusals), label


async def test_every_reference_in_the_document_leads_somewhere(client: Client) -> None:
    response = await client.http.get("/openapi.json")
    schemas = response.json()["components"]["schemas"]
    named = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', response.text))
    assert named
    assert named <= set(schemas)


async def test_what_may_be_written_of_an_entity_and_what_is_answered_differ(client: Client) -> None:
    """A shorthand can be written and is never shown; an answer has every field."""
    document = (await client.http.get("/openapi.json")).json()
    services = document["paths"]["/v2/control-planes/{control_plane_id}/core-entities/services"]
    body = services["post"]["requestBody"]["content"]["application/json"]["schema"]
    shown = document["components"]["schemas"]["Service"]
    assert set(body["properties"]) - set(shown["properties"]) == {"url"}
    assert set(shown["required"]) == set(shown["properties"])
    assert body["required"] == ["host"]
    created = await client.call("POST", "services", {"name": "s", "url": "http://h.test/p"}, 201)
    assert set(created) == set(shown["properties"])


async def test_a_method_that_is_not_there_is_refused_with_those_that_are(client: Client) -> None:
    response = await client.http.request("PATCH", "/v2/tokens")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD, POST"
    assert response.headers["content-type"] == "application/problem+json"
