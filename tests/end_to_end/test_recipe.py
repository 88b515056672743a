"""The recipe, on its own file, through the real processes."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import yaml

from tests.end_to_end.stack import (
    CLIENT_KEY,
    FAST_MODEL,
    RECIPES,
    ROUTER_KEY,
    SELECTOR_MODEL,
    SMART_MODEL,
    Stack,
    in_sync,
    prompt,
)


def test_a_simple_prompt_is_answered_by_the_fast_model(stack: Stack) -> None:
    answer = stack.ask(prompt("simple"))
    assert (answer.status_code, answer.headers["X-Kong-LLM-Model"]) == (200, FAST_MODEL)
    assert "simulated" in answer.json()["choices"][0]["message"]["content"]


def test_a_complex_prompt_is_answered_by_the_smart_model_though_it_asks_for_fast(stack: Stack) -> None:
    assert prompt("complex")["model"] == "fast"
    answer = stack.ask(prompt("complex"))
    assert (answer.status_code, answer.headers["X-Kong-LLM-Model"]) == (200, SMART_MODEL)
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]


def test_an_answered_request_carries_ids_latencies_and_its_decision(stack: Stack) -> None:
    headers = stack.ask(prompt("simple")).headers
    assert len(headers["X-Kong-Request-Id"]) == 32
    assert int(headers["X-Kong-Upstream-Latency"]) >= 0
    assert int(headers["X-Kong-Proxy-Latency"]) >= 0
    assert headers["X-Tandem-Decision"]


def test_the_selector_is_asked_through_the_gateway_with_the_router_s_own_instructions(stack: Stack) -> None:
    stack.forget_ledger()
    stack.ask(prompt("simple"))
    calls = stack.ledger()["calls"]
    assert [call["model"] for call in calls] == [SELECTOR_MODEL, FAST_MODEL]
    selector = json.loads(calls[0]["body"])
    assert [message["role"] for message in selector["messages"]] == ["system", "user"]
    assert selector["messages"][0]["content"].startswith("You are a model router.")
    assert "max_tokens" not in selector


@pytest.mark.parametrize("key", [None, "wrong-key"])
def test_without_a_valid_key_the_answer_is_kong_s_and_no_provider_is_asked(stack: Stack, key: str | None) -> None:
    stack.forget_ledger()
    answer = stack.ask(prompt("simple"), key)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Key"
    body = answer.json()
    assert body["message"] == ("No API key found in request" if key is None else "Unauthorized")
    assert body["request_id"] == answer.headers["X-Kong-Request-Id"]
    assert stack.ledger()["calls"] == []


def test_no_key_of_ours_reaches_a_provider_a_log_or_an_error(stack: Stack) -> None:
    stack.forget_ledger()
    stack.ask(prompt("simple"))
    stack.ask(prompt("complex"))
    stack.ask({"model": "fast"})
    stack.ask(prompt("simple"), "wrong-key-of-a-client")
    received = json.dumps(stack.ledger()["calls"])
    logs = "".join(path.read_text(errors="replace") for path in stack.home.rglob("*.log*"))
    assert logs
    for secret in (CLIENT_KEY, ROUTER_KEY, "wrong-key-of-a-client", stack.token):
        assert secret not in received
        assert secret not in logs
    simulated = next(call["headers"]["authorization"] for call in json.loads(received) if call["provider"] == "openai")
    assert simulated.startswith("Bearer ")
    assert simulated not in logs


def test_a_route_that_does_not_exist_is_a_404_with_kong_s_body(stack: Stack) -> None:
    answer = httpx.get(f"{stack.proxy}/nowhere", headers={"Accept": "application/json"})
    assert answer.status_code == 404
    assert answer.json()["message"] == "no Route matched with those values"


def test_a_prompt_without_messages_is_refused_without_naming_secrets(stack: Stack) -> None:
    answer = stack.ask({"model": "fast"})
    assert answer.status_code == 500
    assert answer.json()["node"]["name"] == "CALL_MODEL_SELECTOR"
    assert ROUTER_KEY not in answer.text


def test_syncing_again_and_diffing_find_nothing(stack: Stack) -> None:
    values = {
        "DECK_OPENAI_SELECTOR_SLM": SELECTOR_MODEL,
        "DECK_OPENAI_FAST_MODEL": FAST_MODEL,
        "DECK_BEDROCK_SMART_MODEL": SMART_MODEL,
        "DECK_INTERNAL_ROUTER_KEY": ROUTER_KEY,
        "DECK_OPENAI_TOKEN": "Bearer sk-other",
        "DECK_AWS_ACCESS_KEY_ID": "AKIDOTHER",
        "DECK_AWS_SECRET_ACCESS_KEY": "other-secret",
        "DECK_AWS_REGION": "us-east-1",
    }
    file = str(RECIPES / "multi-provider.yaml")
    restore = stack.recipe("dump", "--select-tag", "model-based-routing-recipe").stdout
    first = stack.recipe("sync", file, "--wait", env=values)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Updated: 2" in first.stdout
    for secret in ("sk-other", "AKIDOTHER", "other-secret"):
        assert secret not in first.stdout + first.stderr
    again = stack.recipe("diff", file, "--non-zero-exit-code", env=values)
    assert again.returncode == 0, again.stdout
    assert "Created: 0" in again.stdout
    path = Path(stack.home) / "dump.yaml"
    path.write_text(restore)
    restored = stack.recipe("sync", str(path), "--wait")
    assert restored.returncode == 0, restored.stdout + restored.stderr
    assert stack.ask(prompt("simple")).status_code == 200


def test_a_dump_syncs_to_nothing(stack: Stack, tmp_path: Path) -> None:
    dump = stack.recipe("dump", "--select-tag", "model-based-routing-recipe")
    assert dump.returncode == 0, dump.stderr
    path = tmp_path / "dump.yaml"
    path.write_text(dump.stdout)
    result = stack.recipe("sync", str(path), "--json-output")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["summary"]["total"] == 0


def test_the_demo_shows_both_tiers(stack: Stack) -> None:
    demo = stack.recipe("demo")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert FAST_MODEL in demo.stdout
    assert SMART_MODEL in demo.stdout


EXPLAINED_MENDS = {
    "jq: '{apikey: (.apikey // .Apikey)}'": "jq: '{apikey: \"internal-router-key\"}'",
    'jq: .original | .model = (.selected | gsub("\\""; ""))': (
        'jq: . as $in | .original | .model = ($in.selected | gsub("\\""; ""))'
    ),
}


def test_the_explained_node_list_routes_the_same_once_its_two_slips_are_mended(fresh_stack: Stack) -> None:
    explained = (Path(__file__).parent / "data" / "explained-nodes.yaml").read_text()
    for slip, mended in EXPLAINED_MENDS.items():
        assert slip in explained
        explained = explained.replace(slip, mended)
    nodes = yaml.safe_load(explained)["nodes"]
    with fresh_stack.control_client() as client:
        base = f"/v2/control-planes/{fresh_stack.control_plane_id()}/core-entities"
        plugins = client.get(f"{base}/plugins").json()["data"]
        datakit = next(plugin for plugin in plugins if plugin["name"] == "datakit")
        changed = client.patch(f"{base}/plugins/{datakit['id']}", json={"config": {"nodes": nodes, "debug": False}})
        assert changed.status_code == 200, changed.text
    in_sync(fresh_stack)
    for name, model in (("simple", FAST_MODEL), ("complex", SMART_MODEL)):
        answer = fresh_stack.ask(prompt(name))
        assert (answer.status_code, answer.headers.get("X-Kong-LLM-Model")) == (200, model), answer.text
