"""The model-based-routing recipe's node lists at work, with a selector that answers as a model would."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from data_plane.messages import Response
from tests.data_plane.plugins.datakit.kit import Kit, Node, Sent, failure, json_of, json_response
from tests.gateway_schema.datakit_lists import APPLIED, EXPLAINED, mended

PROMPT = {
    "model": "fast",
    "messages": [{"role": "user", "content": "Prove it."}],
    "max_tokens": 100,
    "tools": [],
    "metadata": {},
    "seed": 12345678901234567890,
}


def selecting(content: Any) -> Any:
    async def answer(request: Sent) -> Response:
        if request.headers.get("apikey") != "internal-router-key":
            return json_response({"message": "No API key found in request"}, 401)
        return json_response({"choices": [{"message": {"role": "assistant", "content": content}}]})

    return answer


@pytest.mark.parametrize("nodes", [APPLIED, mended()], ids=["applied", "explained, mended"])
@pytest.mark.parametrize("content", ["smart", "smart\n"])
async def test_the_selectors_answer_becomes_the_model(nodes: list[Node], content: str) -> None:
    kit = Kit(nodes, script=selecting(content))

    response = await kit.send(PROMPT, headers={"Host": "localhost:8000"})

    assert response.status == 200
    assert orjson.loads(kit.upstream.body) == {**PROMPT, "model": "smart"}
    assert list(orjson.loads(kit.upstream.body)) == list(PROMPT)
    assert kit.exchange.request.headers.get("content-type") == "application/json"
    assert kit.exchange.request.headers.get("content-length") == str(len(kit.upstream.body))


@pytest.mark.parametrize("nodes", [APPLIED, mended()], ids=["applied", "explained, mended"])
async def test_the_selector_is_asked_with_the_messages_and_the_internal_key_only(nodes: list[Node]) -> None:
    kit = Kit(nodes, script=selecting("fast"))

    await kit.send(PROMPT, headers={"Authorization": "Bearer client", "Host": "localhost:8000"})

    (sent,) = kit.network.sent
    assert (sent.method, sent.url) == ("POST", "http://localhost:8000/model-selection")
    assert sent.headers == {"apikey": "internal-router-key", "Content-Type": "application/json"}
    assert sent.json == {"messages": PROMPT["messages"]}
    assert sent.options["parent"] is kit.exchange
    assert sent.options["timeout"] == pytest.approx(60.0)
    assert kit.network.closed == 1
    assert kit.exchange.marks.callouts > 0


async def test_the_applied_list_also_sends_the_internal_key_on() -> None:
    kit = Kit(APPLIED, script=selecting("fast"))

    await kit.send(PROMPT)

    assert kit.exchange.request.headers.get("apikey") == "internal-router-key"


async def test_the_explained_list_as_it_stands_asks_without_a_key_and_fails() -> None:
    kit = Kit(EXPLAINED, script=selecting("fast"))

    response = await kit.send(PROMPT)

    told = json_of(response)
    assert response.status == 500
    assert told == {
        "message": "node execution error",
        "request_id": kit.exchange.id,
        "error": "non-2XX response code: 401",
        "node": {"index": 3, "name": "CALL_MODEL_SELECTOR", "type": "call"},
    }
    assert kit.network.sent[0].headers == {"Content-Type": "application/json"}
    assert not kit.upstream.called


async def test_the_explained_list_with_its_key_mended_fails_where_it_reads_the_wrong_dot() -> None:
    kit = Kit(mended("EXTRACT_AUTH"), script=selecting("fast"))

    assert failure(await kit.send(PROMPT)) == (
        "UPDATE_REQUEST",
        "null (null) cannot be matched, as it is not a string",
    )


@pytest.mark.parametrize("nodes", [APPLIED, mended()], ids=["applied", "explained, mended"])
async def test_an_answer_without_content_fails(nodes: list[Node]) -> None:
    kit = Kit(nodes, script=selecting(None))

    name, reason = failure(await kit.send(PROMPT))

    assert name == "EXTRACT_MODEL"
    assert reason
    assert not kit.upstream.called


async def test_without_debug_the_client_learns_only_that_it_failed() -> None:
    kit = Kit(EXPLAINED, debug=False, script=selecting("fast"))

    response = await kit.send(PROMPT, headers={"Accept": "application/json"})

    assert response.status == 500
    assert json_of(response) == {
        "message": "An unexpected error occurred",
        "request_id": kit.exchange.id,
    }


async def test_the_log_names_the_node_in_words(caplog: pytest.LogCaptureFixture) -> None:
    await Kit(EXPLAINED, debug=False, script=selecting("fast")).send(PROMPT)

    assert 'node #3 (CALL_MODEL_SELECTOR) failed with error: "non-2XX response code: 401"' in caplog.text


async def test_a_stream_is_passed_on_unread() -> None:
    async def pieces() -> Any:
        yield b"data: 1\n\n"

    body = pieces()
    kit = Kit(APPLIED, script=selecting("fast"))

    response = await kit.send(PROMPT, upstream=Response(200, body=body))

    assert response.body is body


async def test_a_body_that_is_no_object_fails_the_node_that_reads_it() -> None:
    assert failure(await Kit(APPLIED).send([1])) == ("EXTRACT_PROMPT", 'Cannot index array with string ("messages")')
    assert failure(await Kit(APPLIED).send(b"{", headers={"Content-Type": "application/json"})) == (
        "EXTRACT_PROMPT",
        "the body is not valid JSON, though its content type says so",
    )
