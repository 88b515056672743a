"""Transcripts: what the real decK sent in a run, kept as JSON, sent again to the application of today.

A transcript is a list of runs, each with the command that was given and the requests that it made, in the order in
which they were answered: method, path (`{core}` stands for the control plane's core entities), query, body, status, and
how many entries a list had. Certificates and keys are made anew for each test; their places are marked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.control_plane.client import Client
from tests.control_plane.deck.comparison import differences
from tests.control_plane.deck.documents import certificate_pair, public_key

DIRECTORY = Path(__file__).parent / "transcripts"


def names(directory: Path = DIRECTORY) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.json"))


def load(name: str, directory: Path = DIRECTORY) -> list[dict[str, Any]]:
    """The runs of a transcript, with certificates and keys in their places."""
    text = (directory / f"{name}.json").read_text()
    for mark, pem in marks().items():
        text = text.replace(mark, json.dumps(pem)[1:-1])
    runs: list[dict[str, Any]] = json.loads(text)
    return runs


def marks() -> dict[str, str]:
    certificate, key = certificate_pair()
    return {"{certificate}": certificate, "{private key}": key, "{public key}": public_key()}


class Replay:
    """One transcript against one control plane resource."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sent: dict[tuple[str, str], dict[str, Any]] = {}
        """What was last sent for an entity, by collection and id."""

    def core(self) -> str:
        """Where the entities are."""
        return f"/v2/control-planes/{self._client.id}/core-entities"

    async def run(self, run: Mapping[str, Any]) -> None:
        """Every request of a run. Raises AssertionError at the first answer that decK could not go on with."""
        writes = 0
        for request in run["requests"]:
            response = await self._send(request)
            said = f"{run['command']}: {request['method']} {request['path']}: {response.status_code} {response.text}"
            assert response.status_code == request["status"], said
            if request["status"] >= 400:
                assert response.json()["message"], said
            elif request["method"] == "GET":
                self._check_read(request, response.json(), compare=writes == 0)
            else:
                writes += 1
                self._remember(request, response)

    async def _send(self, request: Mapping[str, Any]) -> httpx.Response:
        path, body = request["path"].replace("{core}", self.core()), request.get("body")
        options = {"json": body} if body is not None else {}
        return await self._client.http.request(request["method"], path, params=request.get("query"), **options)

    def _remember(self, request: Mapping[str, Any], response: httpx.Response) -> None:
        collection, _, key = request["path"].removeprefix("{core}/").rpartition("/")
        if request["method"] == "DELETE":
            self._sent.pop((_flat(collection), key), None)
        elif request["method"] == "PUT":
            answered = response.json()
            assert answered["id"] == key, f"{request['path']}: another id is answered: {answered['id']}"
            self._sent[_flat(collection), key] = request["body"]
            self._compare(_flat(collection), request["body"], answered)

    def _check_read(self, request: Mapping[str, Any], answered: Any, *, compare: bool) -> None:
        if "entries" not in request:
            return
        path = request["path"]
        assert isinstance(answered["data"], list), path
        assert len(answered["data"]) == request["entries"], f"{path}: {len(answered['data'])} entries"
        assert answered.get("offset") != "", f"{path}: an empty offset is asked for again, without end"
        collection = _flat(path.removeprefix("{core}/"))
        for entity in answered["data"] if compare else ():
            sent = self._sent.get((collection, entity.get("id")))
            if sent is not None:
                self._compare(collection, sent, entity)

    @staticmethod
    def _compare(collection: str, sent: Mapping[str, Any], answered: Mapping[str, Any]) -> None:
        found = list(differences(collection, sent, answered))
        assert not found, f"{collection} {sent.get('name') or sent['id']}: {found}"


_FLAT = {
    "key-auth": "key-auths",
    "basic-auth": "basic-auths",
    "hmac-auth": "hmac-auths",
    "jwt": "jwts",
    "mtls-auth": "mtls-auths",
}


def _flat(collection: str) -> str:
    """`consumers/{id}/key-auth` is read back as `key-auths`."""
    last = collection.rpartition("/")[2]
    return _FLAT.get(last, last)
