from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.state import ProcessRecord, StackFolder, StackState
from tests.cli.conftest import Recipe
from tests.cli.fakes import FakeControlPlane

ANSWER = {
    "model": "gpt-4o-mini-2024",
    "choices": [{"message": {"role": "assistant", "content": "four"}}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3},
}


@pytest.fixture
def proxy(home: Path) -> Iterator[FakeControlPlane]:
    """Stands where the proxy of a running stack would."""
    fake = FakeControlPlane().start()
    port = urlsplit(fake.url).port
    assert port is not None
    state = StackState("model-based-routing", token="kpat_x", ports={"proxy": port}, simulated=True)
    state.processes["node"] = ProcessRecord(1, "0", "x")
    StackFolder(home, state.name).save(state)
    fake.answers["POST", "/chat"] = (200, ANSWER)
    yield fake
    fake.stop()


def test_demo_sends_both_prompts_as_the_page_does(recipe: Recipe, proxy: FakeControlPlane) -> None:
    result = recipe("demo", "--answers")
    assert result.code == 0
    assert result.out.splitlines()[0].split()[:4] == ["PROMPT", "TIER", "MODEL", "PROVIDER"]
    assert "12 + 3" in result.out
    assert "\nfour\n" in result.out
    prompts = [body["messages"][0]["content"][:8] for body in proxy.sent("POST", "/chat")]
    assert prompts == ["Hi there", "Write a "]
    assert proxy.requests[0][3]["apikey"] == "demo-consumer-key"


def test_demo_knows_the_tier_by_the_model(recipe: Recipe, proxy: FakeControlPlane) -> None:
    proxy.answers["POST", "/chat"] = (200, {**ANSWER, "model": "gpt-4o-mini"})
    answers = json.loads(recipe("demo", "--json-output").out)["answers"]
    assert [(answer["tier"], answer["provider"]) for answer in answers] == [("fast", "openai")] * 2


def test_demo_fails_when_a_prompt_is_refused(recipe: Recipe, proxy: FakeControlPlane) -> None:
    proxy.answers["POST", "/chat"] = (401, {"message": "No API key found in request"})
    result = recipe("demo")
    assert result.code == 1
    assert "HTTP 401" in result.err
    assert "No API key found" in result.err


def test_demo_without_a_proxy_says_so(recipe: Recipe, home: Path) -> None:
    gone = FakeControlPlane()
    gone.server.server_close()
    state = StackState("model-based-routing", ports={"proxy": urlsplit(gone.url).port or 0})
    StackFolder(home, state.name).save(state)
    result = recipe("demo")
    assert result.code == 1
    assert "the proxy at http://localhost:" in result.err


def test_demo_without_a_stack_says_what_to_do(recipe: Recipe) -> None:
    assert "no stack is up: recipe up starts one" in recipe("demo").err
