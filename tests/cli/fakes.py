"""A scripted control plane (and node, and simulator) over plain HTTP: in a thread, or as a process of its own.

As a process: `python fakes.py PORT [EXIT_CODE]` answers on the port, or ends at once with the code.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

EMPTY_PLAN: dict[str, Any] = {
    "changes": {"creating": [], "updating": [], "deleting": []},
    "summary": {"creating": 0, "updating": 0, "deleting": 0, "total": 0},
}
HASH = "0123456789abcdef0123456789abcdef"


def plan_of(**changes: list[dict[str, Any]]) -> dict[str, Any]:
    lists = {verb: changes.get(verb, []) for verb in ("creating", "updating", "deleting")}
    counts = {verb: len(entries) for verb, entries in lists.items()}
    return {"changes": lists, "summary": {**counts, "total": sum(counts.values())}}


def change(kind: str, name: str, new: Any = None, old: Any = None) -> dict[str, Any]:
    return {"kind": kind, "name": name, "body": {"new": new, "old": old}}


def node(state: str = "in_sync", version: int = 1, hash_: str = HASH, **more: Any) -> dict[str, Any]:
    workers = [
        {"index": index, "pid": 100 + index, "version": version, "hash": hash_, "state": "ok"} for index in (1, 2)
    ]
    return {
        "id": "11111111-2222-4333-8444-555555555555",
        "hostname": "host-a",
        "sync_state": state,
        "config_version": version,
        "workers": workers,
        "last_error": None,
        **more,
    }


class FakeControlPlane:
    """Answers the paths that the command uses; `answers` overrides one by (method, end of path).

    For those in `silent` the work is done, but the connection ends without an answer; `before_silence` is called first.
    """

    def __init__(self, port: int = 0, names: tuple[str, ...] = ("default",)) -> None:
        self.control_planes = {name: str(uuid.uuid4()) for name in names}
        self.certificates: list[str] = []
        self.document: Any = None
        self.version = 0
        self.nodes: Callable[[], list[dict[str, Any]]] = lambda: [node(version=self.version)]
        self.answers: dict[tuple[str, str], tuple[int, Any]] = {}
        self.silent: set[tuple[str, str]] = set()
        self.before_silence: Callable[[], object] = lambda: None
        self.requests: list[tuple[str, str, Any, dict[str, str]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, answer = fake.answer(self.command, self.path, body, dict(self.headers))
                if (self.command, "/" + urlsplit(self.path).path.rpartition("/")[2]) in fake.silent:
                    fake.before_silence()
                    self.close_connection = True
                    return
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(0 if status == 204 else len(data)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                """Silence: tests read what the command writes."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def start(self) -> FakeControlPlane:
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def sent(self, method: str, end: str) -> list[Any]:
        """Bodies of the requests to a path."""
        return [body for m, path, body, _ in self.requests if m == method and urlsplit(path).path.endswith(end)]

    def answer(self, method: str, target: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
        self.requests.append((method, target, body, headers))
        url = urlsplit(target)
        for (wanted, end), answer in self.answers.items():
            if wanted == method and url.path.endswith(end):
                return answer
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        parts = unquote(url.path).strip("/").split("/")
        if parts[-1] in ("health", "status"):
            return 200, {"status": "ok"}
        if parts[:2] != ["v2", "control-planes"]:
            return 404, {"status": 404, "title": "Not Found", "detail": "no such path", "message": "no such path"}
        return self._control_planes(method, parts[2:], query, body)

    def _control_planes(self, method: str, parts: list[str], query: dict[str, str], body: Any) -> tuple[int, Any]:
        match method, parts:
            case "GET", []:
                wanted = query.get("filter[name][eq]")
                rows = [{"id": i, "name": n} for n, i in self.control_planes.items() if wanted in (None, n)]
                return 200, {"data": rows, "meta": {"page": {"number": 1, "size": 100, "total": len(rows)}}}
            case "POST", []:
                self.control_planes[body["name"]] = str(uuid.uuid4())
                return 201, {"id": self.control_planes[body["name"]], "name": body["name"]}
            case "DELETE", [cp]:
                self.control_planes = {n: i for n, i in self.control_planes.items() if i != cp}
                return 204, {}
            case "GET", [_, "nodes"]:
                return 200, {"items": self.nodes(), "page": {"total_count": 1}}
            case "GET", [_, "snapshots", version, "receipts"]:
                return 200, self._receipts(int(version))
            case "GET", [_, "dp-client-certificates"]:
                return 200, {"items": [{"cert": pem} for pem in self.certificates], "page": {}}
            case "POST", [_, "dp-client-certificates"]:
                self.certificates.append(body["cert"])
                return 201, {"item": body}
            case "GET", [_, "document"]:
                return 200, self.document or {"_format_version": "3.0"}
            case "POST", [_, "apply"]:
                return self._apply(body)
        return 404, {"status": 404, "title": "Not Found", "message": "Not found"}

    def _receipts(self, version: int) -> dict[str, Any]:
        """From the same nodes that the nodes API shows."""
        items = []
        for row in self.nodes():
            lagging = [w for w in row["workers"] if w["hash"] != HASH and w["version"] <= version]
            state = "refused" if row["sync_state"] == "rejected" else "silent" if lagging else "applied"
            workers = [{**w, "state": state if w in lagging else "applied"} for w in row["workers"]]
            about = {"node_id": row["id"], "hostname": row["hostname"], "error": row["last_error"]}
            items.append({**about, "connected": row["sync_state"] != "offline", "state": state, "workers": workers})
        complete = all(item["state"] in ("applied", "refused") for item in items if item["connected"])
        return {"version": version, "hash": HASH, "complete": complete, "items": items}

    def _apply(self, body: Any) -> tuple[int, Any]:
        """One creation when the document is another than before, one deletion for a reset of something.

        A reset leaves services named "untagged".
        """
        plan = EMPTY_PLAN
        if body["mode"] == "reset":
            plan = plan_of(deleting=[change("service", "s")]) if self.document else EMPTY_PLAN
            rest = [s for s in (self.document or {}).get("services", []) if s["name"] == "untagged"]
            after = {"_format_version": "3.0", "services": rest} if rest else None
        else:
            plan = EMPTY_PLAN if body["document"] == self.document else plan_of(creating=[change("service", "s", {})])
            after = body["document"]
        if body["commit"]:
            self.version += int(after != self.document)
            self.document = after
        return 200, {"plan": plan, "committed": body["commit"], "version": self.version, "hash": HASH}


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print("cannot go on: the reason stands here")
        sys.exit(int(sys.argv[2]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    FakeControlPlane(int(sys.argv[1]), names=()).server.serve_forever(0.01)
