"""What Terraform's provider for Konnect sent once is answered today as it needs it.

The provider compares every answer with what it planned: a value that it sent and gets back otherwise is an error, and
one that is read otherwise later is a difference that never ends. The transcript is a list of runs (`apply`, `plan`,
`change`, `plan again`, `destroy`) of requests, in the order in which they were answered. `{1}`, `{2}`, … stand for the
ids that the control plane gives; `makes` says which one an answer gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.control_plane.client import Client
from tests.control_plane.deck.replay import marks

TRANSCRIPT = Path(__file__).with_name("terraform.json")
UNCOMPUTED = frozenset({"title"})
"""What the provider holds to be null when it sent null; for other fields it takes a default from the answer."""
UNSHOWN = frozenset({"password", "value", "consumer"})
"""Of basic-auth only a digest is kept; the value of a config store's secret is never told; who joins a group is
answered by the group."""


class Replay:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._ids: dict[str, str] = {}
        self._sent: dict[str, Mapping[str, Any]] = {}
        """What was last sent for a path."""

    async def run(self, request: Mapping[str, Any]) -> None:
        path, body = self._placed(request["path"]), self._placed(request.get("body"))
        response = await self._send(request["method"], path, body)
        assert response.status_code == request["status"], f"{request['method']} {path}: {response.text}"
        if request["method"] == "DELETE" or response.status_code == 204:
            self._sent.pop(path, None)
            return
        answered = _flat(response.json())
        if "makes" in request:
            self._ids[f"{{{request['makes']}}}"] = answered["id"]
            path = f"{path}/{answered['id']}"
        if body is not None:
            self._sent[path] = body
        found = list(_differences(self._sent.get(path, {}), answered, ""))
        assert not found, f"{request['method']} {path}: {found}"

    async def _send(self, method: str, path: str, body: Any) -> httpx.Response:
        return await self._client.http.request(method, path, **({} if body is None else {"json": body}))

    def _placed(self, value: Any) -> Any:
        """With the ids of today in their places."""
        if isinstance(value, str):
            return re.sub(r"\{\d+\}", lambda place: self._ids[place[0]], value)
        if isinstance(value, list):
            return [self._placed(item) for item in value]
        return {key: self._placed(item) for key, item in value.items()} if isinstance(value, dict) else value


def _flat(answered: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of an answer where a request has them."""
    entity: Mapping[str, Any] = answered.get("item") or answered.get("consumer_group") or answered
    config = entity.get("config")
    return {**entity, **config} if isinstance(config, dict) and "control_plane_endpoint" in config else entity


def _differences(sent: Any, answered: Any, place: str) -> Iterator[str]:
    if isinstance(sent, dict) and isinstance(answered, dict):
        for name, value in sent.items():
            if name in UNSHOWN or name in ("created_at", "updated_at"):
                continue
            if value is not None or name in UNCOMPUTED:
                yield from _differences(value, answered.get(name), f"{place}.{name}")
    elif isinstance(sent, list) and isinstance(answered, list) and len(sent) == len(answered):
        for position, (one, other) in enumerate(zip(sent, answered, strict=True)):
            yield from _differences(one, other, f"{place}[{position}]")
    elif sent != answered:
        yield f"{place}: sent {sent!r}, answered {answered!r}"


async def test_a_recorded_run_of_the_provider_finds_what_it_planned(client: Client) -> None:
    text = TRANSCRIPT.read_text()
    for mark, pem in marks().items():
        text = text.replace(mark, json.dumps(pem)[1:-1])
    replay = Replay(client)
    for run in json.loads(text):
        for request in run["requests"]:
            await replay.run(request)
    assert [kind["name"] for kind in (await client.get("/v2/control-planes"))["data"]] == ["first"]
