"""Counts and tokens of the analytics against the simulator's own ledger."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime
from typing import Any

import httpx

from tests.end_to_end.stack import CLIENT_KEY, Stack, eventually, prompt

REQUESTS = 1_000
AT_ONCE = 16


async def one_of_the_crowd(client: httpx.AsyncClient, dice: random.Random) -> str:
    """A plain request, a stream read to its end, or one that the client cuts off after its first bytes."""
    body = prompt(dice.choice(["simple", "complex"]))
    kind = dice.choice(["plain", "plain", "stream", "cut"])
    if kind == "plain":
        answer = await client.post("/chat", json=body)
        assert answer.status_code == 200, answer.text
        return kind
    async with client.stream("POST", "/chat", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_raw():
            if kind == "cut":
                break
    return kind


async def crowd(stack: Stack) -> dict[str, int]:
    dice = random.Random(20261122)
    places = asyncio.Semaphore(AT_ONCE)
    seen: dict[str, int] = {}

    async def place(client: httpx.AsyncClient) -> None:
        async with places:
            kind = await one_of_the_crowd(client, dice)
            seen[kind] = seen.get(kind, 0) + 1

    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(
        base_url=stack.proxy, headers={"apikey": CLIENT_KEY}, timeout=60, limits=limits
    ) as client:
        await asyncio.gather(*(place(client) for _ in range(REQUESTS)))
    return seen


def by_provider(rows: list[dict[str, Any]]) -> dict[str, tuple[int, int, int]]:
    return {
        row["event"]["ai_provider"]: (
            row["event"]["ai_request_count"],
            row["event"]["prompt_tokens"],
            row["event"]["completion_tokens"],
        )
        for row in rows
    }


async def test_a_thousand_mixed_requests_are_counted_to_the_token(stack: Stack) -> None:
    stack.forget_ledger()
    start = datetime.now(UTC).replace(second=0, microsecond=0)
    before = by_provider(usage(stack, start))
    seen = await crowd(stack)
    assert min(seen["plain"], seen["stream"], seen["cut"]) > 100

    eventually("all of the simulator's streams are over", lambda: stack.ledger()["open"] == 0)
    ledger = stack.ledger()["providers"]
    expected = {
        name: (totals["requests"], totals["prompt_tokens"], totals["completion_tokens"])
        for name, totals in ledger.items()
    }
    assert sum(requests for requests, _, _ in expected.values()) == 2 * REQUESTS

    def counted() -> dict[str, tuple[int, int, int]]:
        return {
            name: tuple(a - b for a, b in zip(row, before.get(name, (0, 0, 0)), strict=True))  # type: ignore[misc]
            for name, row in by_provider(usage(stack, start)).items()
        }

    def all_counted() -> bool:
        return sum(row[0] for row in counted().values()) >= 2 * REQUESTS

    eventually("the analytics have all events", all_counted)
    assert counted() == expected

    shown = json.loads(stack.recipe("analytics", "--by", "provider", "--since", "1h", "--json-output").stdout)
    assert shown


def usage(stack: Stack, start: datetime) -> list[dict[str, Any]]:
    metrics = ["ai_request_count", "prompt_tokens", "completion_tokens"]
    return list(stack.usage(start.isoformat(), metrics, ["ai_provider"]))


def test_requests_errors_and_latencies_are_told_per_service(stack: Stack) -> None:
    start = datetime.now(UTC).replace(second=0, microsecond=0).isoformat()
    stack.ask(prompt("simple"), "wrong")

    def rows() -> dict[str, Any]:
        metrics = ["request_count", "error_rate", "response_latency_p99"]
        return {
            row["event"]["gateway_service"]: row["event"]
            for row in stack.usage(start, metrics, ["gateway_service"], "api_usage")
        }

    events = eventually("the refused request is counted", rows)
    assert any(event["request_count"] >= 1 and event["response_latency_p99"] > 0 for event in events.values())
