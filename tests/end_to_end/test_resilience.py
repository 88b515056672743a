"""What callers notice when a process dies: nothing, or at most what was in flight inside it."""

from __future__ import annotations

import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import httpx

from tests.end_to_end.stack import CLIENT_KEY, Stack, eventually, kill, pids_of, prompt


class Traffic:
    """Steady requests from a thread; what failed is kept."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._stop = threading.Event()
        self.sent = 0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        eventually("traffic flows", lambda: self.sent > 5)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def flows_on(self, more: int = 20) -> None:
        mark = self.sent
        eventually("traffic goes on", lambda: self.sent >= mark + more)

    def _run(self) -> None:
        with httpx.Client(headers={"apikey": CLIENT_KEY}, timeout=30) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(f"{self._stack.proxy}/chat", json=prompt("simple"))
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code} {answer.text}")
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                self.sent += 1


def counted(stack: Stack, start: datetime) -> int:
    rows = stack.usage(start.isoformat(), ["ai_request_count"], [])
    return sum(row["event"]["ai_request_count"] for row in rows)


def test_the_control_plane_s_death_is_not_noticed_and_nothing_is_lost(fresh_stack: Stack) -> None:
    stack = fresh_stack
    start = datetime.now(UTC).replace(second=0, microsecond=0)
    stack.forget_ledger()
    with Traffic(stack) as traffic:
        for pid in pids_of(stack.home, "-m control_plane"):
            kill(pid)
        traffic.flows_on(50)
    assert traffic.failures == []

    for pid in pids_of(stack.home, "-m data_plane"):
        kill(pid)
    eventually("the node is gone", lambda: not pids_of(stack.home, "-m data_plane"))
    restarted = stack.up()
    assert restarted.returncode == 0, restarted.stdout + restarted.stderr
    expected = sum(totals["requests"] for totals in stack.ledger()["providers"].values())
    eventually("the analytics are complete", lambda: counted(stack, start) >= expected)
    assert counted(stack, start) == expected


def test_a_node_restarted_without_its_control_plane_serves_from_disk(fresh_stack: Stack) -> None:
    stack = fresh_stack
    with httpx.Client() as client:
        for pid in pids_of(stack.home, "-m control_plane"):
            kill(pid)
        agent = next(pid for pid in pids_of(stack.home, "-m data_plane agent"))
        arguments, environment = started_with(agent)
        for pid in pids_of(stack.home, "-m data_plane"):
            kill(pid)
        eventually("the node is gone", lambda: not pids_of(stack.home, "-m data_plane"))
        node = subprocess.Popen(
            arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            eventually("the node is ready", lambda: ready(client, stack))
            assert stack.ask(prompt("complex")).status_code == 200
        finally:
            node.terminate()
            node.wait(30)


def started_with(pid: int) -> tuple[list[str], dict[str, str]]:
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().rstrip("\0").split("\0")
    return arguments, dict(pair.partition("=")[::2] for pair in pairs)


def ready(client: httpx.Client, stack: Stack) -> bool:
    try:
        return client.get(f"http://127.0.0.1:{stack.status_port}/status/ready").status_code == 200
    except httpx.HTTPError:
        return False


def test_a_worker_that_is_killed_is_replaced(fresh_stack: Stack) -> None:
    stack = fresh_stack
    (worker,) = pids_of(stack.home, "-m data_plane worker")
    kill(worker)

    def answered() -> bool:
        try:
            return stack.ask(prompt("simple")).status_code == 200
        except httpx.HTTPError:
            return False

    eventually("the worker is back", answered)
    assert worker not in pids_of(stack.home, "-m data_plane worker")


def test_an_agent_that_is_killed_leaves_the_traffic_flowing_and_is_taken_up_again(fresh_stack: Stack) -> None:
    stack = fresh_stack
    start = datetime.now(UTC).replace(second=0, microsecond=0)
    stack.forget_ledger()
    with Traffic(stack) as traffic:
        for pid in pids_of(stack.home, "-m data_plane agent"):
            kill(pid)
        traffic.flows_on()
        again = stack.up()
        assert again.returncode == 0, again.stdout + again.stderr
        traffic.flows_on()
    assert traffic.failures == []
    expected = sum(totals["requests"] for totals in stack.ledger()["providers"].values())
    eventually("the analytics are complete", lambda: counted(stack, start) >= expected)
    assert counted(stack, start) == expected


def test_a_snapshot_that_cannot_be_built_is_refused_by_name_and_the_old_one_serves_on(fresh_stack: Stack) -> None:
    stack = fresh_stack
    with stack.control_client() as control:
        base = f"/v2/control-planes/{stack.control_plane_id()}/core-entities"
        body = {
            "name": "ai-proxy-advanced",
            "instance_name": "not-yet",
            "config": {
                "targets": [
                    {
                        "route_type": "llm/v1/chat",
                        "model": {"provider": "cohere", "name": "command-r"},
                        "auth": {"header_name": "Authorization", "header_value": "Bearer x"},
                    }
                ]
            },
        }
        created = control.post(f"{base}/plugins", json=body)
        assert created.status_code == 201, created.text
        node = eventually(
            "the node refuses", lambda: next((n for n in stack.nodes() if n["sync_state"] == "rejected"), None)
        )
        assert node["last_error"]["entity_id"] == created.json()["id"]
        assert "provider" in node["last_error"]["field"]
        assert stack.ask(prompt("complex")).status_code == 200
        control.delete(f"{base}/plugins/{created.json()['id']}")
        eventually("the node is in sync again", lambda: stack.nodes()[0]["sync_state"] == "in_sync")
