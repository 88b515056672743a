"""Up, up again, ports taken, down, down again: what a newcomer does in the first hour."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx

from tests.end_to_end.stack import Stack, eventually, kill, pids_of, processes, prompt


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_up_prints_what_is_needed_next_and_again_changes_nothing(home: Stack) -> None:
    first = home.up()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "curl" in first.stdout
    assert home.exports["KONNECT_PROXY_URL"].endswith(str(home.proxy_port))
    # Control plane, simulator, agent, worker; and the spare worker, which nobody waits for.
    eventually("all five run", lambda: len(processes(str(home.home))) == 5)
    before = sorted(processes(str(home.home)))
    second = home.up()
    assert second.returncode == 0, second.stdout + second.stderr
    assert "nothing" in second.stdout.lower()
    assert sorted(processes(str(home.home))) == before


def test_a_taken_port_is_named_with_its_holder_and_leaves_nothing_running(home: Stack) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", home.proxy_port))
        holder.listen()
        result = home.up()
    assert result.returncode != 0
    said = result.stdout + result.stderr
    assert str(home.proxy_port) in said
    assert "--proxy-port" in said
    assert "Traceback" not in said
    assert processes(str(home.home)) == []


def test_down_removes_what_carries_the_tag_and_nothing_else(home: Stack) -> None:
    assert home.up().returncode == 0
    control_plane = home.control_plane_id()
    with home.control_client() as control:
        base = f"/v2/control-planes/{control_plane}/core-entities"
        control.post(f"{base}/services", json={"name": "mine", "host": "example.com"}).raise_for_status()
    result = home.down("--keep-control-plane")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not listening(home.proxy_port)
    with home.control_client() as control:
        left = control.get(f"/v2/control-planes/{control_plane}/core-entities/services").json()["data"]
        assert [service["name"] for service in left] == ["mine"]
        assert control.get(f"/v2/control-planes/{control_plane}/core-entities/consumers").json()["data"] == []


def test_what_does_not_carry_the_tag_survives_a_down_and_serves_again_after_the_next_up(home: Stack) -> None:
    assert home.up().returncode == 0
    with home.control_client() as control:
        base = f"/v2/control-planes/{home.control_plane_id()}/core-entities"
        url = f"{home.simulator}/health"
        control.post(f"{base}/services", json={"name": "mine", "url": url}).raise_for_status()
        control.post(f"{base}/services/mine/routes", json={"name": "mine", "paths": ["/mine"]}).raise_for_status()
    down = home.down()
    assert "services (1)" in down.stderr, down.stderr
    assert processes(str(home.home)) == []
    again = home.up()
    assert again.returncode == 0, again.stdout + again.stderr
    assert httpx.get(f"{home.proxy}/mine").json() == {"status": "ok"}
    assert home.ask(prompt("simple")).status_code == 200


OWN = """
_format_version: "3.0"
services:
  - {name: own, host: own.test, routes: [{name: own, paths: [/own]}]}
"""
THEIRS = """
_format_version: "3.0"
_info: {select_tags: [teamx]}
services:
  - {name: theirs, host: theirs.test, routes: [{name: theirs, paths: [/theirs]}]}
consumers:
  - {username: theirs, keyauth_credentials: [{key: theirs-key-0123456789}]}
"""


def services_of(stack: Stack) -> set[str]:
    with stack.control_client() as control:
        base = f"/v2/control-planes/{stack.control_plane_id()}/core-entities"
        return {service["name"] for service in control.get(f"{base}/services").json()["data"]}


def test_down_after_a_file_without_tags_leaves_what_others_own(home: Stack, tmp_path: Path) -> None:
    own, theirs = tmp_path / "own.yaml", tmp_path / "theirs.yaml"
    own.write_text(OWN)
    theirs.write_text(THEIRS)
    flags = ("--file", str(own), "--control-plane-name", "shared")
    assert home.up(*flags).returncode == 0
    assert home.recipe("sync", str(theirs)).returncode == 0
    down = home.down()
    assert down.returncode == 0, down.stdout + down.stderr
    assert "removed 2 entities from shared" in down.stdout
    assert "deleted control plane" not in down.stdout
    assert "what other sets of select tags own: consumers (1), services (1)" in down.stderr
    assert home.up("--no-apply", "--control-plane-name", "shared").returncode == 0
    assert services_of(home) == {"theirs"}


def test_down_after_a_file_without_tags_deletes_a_control_plane_that_holds_nothing_else(
    home: Stack, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    up = home.up("--file", str(tmp_path / "own.yaml"))
    assert up.returncode == 0
    assert "export DECK_KONNECT_TOKEN=" in up.stdout
    assert "curl" not in up.stdout, "a first question is the recipe's, which another file does not answer"
    down = home.down()
    assert "removed 2 entities from model-based-routing-recipe" in down.stdout, down.stdout + down.stderr
    assert "deleted control plane model-based-routing-recipe\n" in down.stdout


def test_down_after_nothing_was_applied_removes_nothing(home: Stack, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN)
    ports = zip(
        ("--proxy-port", "--control-plane-port", "--grpc-port", "--status-port"),
        (home.proxy_port, home.control_port, home.grpc_port, home.status_port),
        strict=True,
    )
    flags = [text for name, port in ports for text in (name, str(port))]
    file = ("--file", str(tmp_path / "own.yaml"))
    assert home.recipe("up", "bare", *file, "--no-apply", *flags).returncode == 0
    assert home.recipe("sync", *file[1:]).returncode == 0
    down = home.recipe("down", "bare")
    assert down.returncode == 0
    assert "what recipe up did not apply: services (1)" in down.stderr
    assert "removed" not in down.stdout
    assert "deleted" not in down.stdout
    assert home.recipe("up", "bare", *file, "--no-apply", *flags).returncode == 0
    assert "deleted control plane bare and all it held" in home.recipe("down", "--all").stdout


def test_down_stops_everything_and_a_second_one_has_nothing_to_do(home: Stack) -> None:
    assert home.up().returncode == 0
    first = home.down()
    assert first.returncode == 0, first.stdout + first.stderr
    assert processes(str(home.home)) == []
    ports = (home.proxy_port, home.control_port, home.grpc_port, home.status_port, home.simulator_port)
    assert not any(listening(port) for port in ports)
    second = home.down()
    assert second.returncode == 0
    assert "nothing to do" in (second.stdout + second.stderr).lower()


def test_down_works_when_half_of_it_is_dead_already(home: Stack) -> None:
    assert home.up().returncode == 0
    for pid in pids_of(home.home, "-m control_plane"):
        kill(pid)
    result = home.down()
    assert result.returncode == 0, result.stdout + result.stderr
    assert processes(str(home.home)) == []


def test_up_after_a_death_restarts_what_died(home: Stack) -> None:
    assert home.up().returncode == 0
    for word in ("-m control_plane", "-m cli.simulator"):
        for pid in pids_of(home.home, word):
            kill(pid)
    again = home.up()
    assert again.returncode == 0, again.stdout + again.stderr
    assert home.ask(prompt("complex")).status_code == 200


def test_a_missing_variable_is_named_with_file_and_line(home: Stack, tmp_path: Path) -> None:
    assert home.up().returncode == 0
    file = tmp_path / "kong.yaml"
    file.write_text('_format_version: "3.0"\nservices:\n  - name: a\n    url: ${{ env "DECK_NOT_SET" }}\n')
    result = home.recipe("sync", str(file))
    assert result.returncode == 1
    assert "DECK_NOT_SET" in result.stderr
    assert "kong.yaml:4" in result.stderr


def test_a_wrong_field_is_named_with_file_and_line_and_changes_nothing(home: Stack, tmp_path: Path) -> None:
    assert home.up().returncode == 0
    file = tmp_path / "kong.yaml"
    file.write_text(
        '_format_version: "3.0"\nservices:\n  - name: a\n    url: http://example.com\n'
        "    plugins:\n      - name: key-auth\n        config:\n          key_nams: [x]\n"
    )
    result = home.recipe("sync", str(file), "--yes")
    assert result.returncode == 1
    assert "kong.yaml:8" in result.stderr
    assert "key_names" in result.stderr
    with home.control_client() as control:
        base = f"/v2/control-planes/{home.control_plane_id()}/core-entities"
        names = {service["name"] for service in control.get(f"{base}/services").json()["data"]}
        assert names == {"default-llm", "model-selection"}


def test_status_tells_nodes_workers_and_versions_in_json(home: Stack) -> None:
    assert home.up().returncode == 0
    status = home.status()
    assert json.dumps(status)
    assert httpx.get(f"http://127.0.0.1:{home.status_port}/status/ready").status_code == 200
