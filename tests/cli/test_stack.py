"""`up` and `down` over processes that are scripted: real pids, ports and signals, no gateway."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from cli import layout
from cli.errors import CliError, Faults, Interrupted, NotLive, OutcomeUnknown
from cli.layout import CONTROL_PLANE, NODE, SIMULATOR, Wish
from cli.output import Output
from cli.ports import is_free
from cli.processes import Spec, is_running, marked, stop, wait_for
from cli.recipes import Recipe
from cli.stack import Report, Startup, take_down
from cli.state import StackFolder, StackState, locked
from tests.cli import fakes
from tests.ports import free_ports

NAME = "model-based-routing"


class Stage:
    """A stack whose processes are scripted control planes; `broken` names those that end at once."""

    def __init__(self, home: Path) -> None:
        self.folder = StackFolder(home, NAME)
        ports = free_ports(5)
        self.ports = dict(zip(layout.DEFAULT_PORTS, ports, strict=True))
        self.broken: set[str] = set()
        self.environment: dict[str, str] = {}
        self.err = io.StringIO()
        self.output = Output(stdout=io.StringIO(), stderr=self.err)

    def specs(
        self, state: StackState, folder: StackFolder, recipe: Recipe | None, env: Mapping[str, str]
    ) -> list[Spec]:
        answers = {CONTROL_PLANE: "control-plane", SIMULATOR: "simulator", NODE: "status"}
        found = []
        for spec in layout.specs(state, folder, recipe, env):
            argv = [sys.executable, fakes.__file__, str(state.ports[answers[spec.name]])]
            argv += ["7"] if spec.name in self.broken else []
            ports = {setting: port for setting, port in spec.ports.items() if port == state.ports[answers[spec.name]]}
            found.append(Spec(spec.name, tuple(argv), spec.environment, spec.log, spec.mark, ports))
        return found

    def up(self, **wish: object) -> Report:
        ports = {**self.ports, **wish.pop("ports", {})}  # type: ignore[dict-item]
        startup = Startup(
            self.folder,
            Wish(NAME, ports=ports, **wish),
            self.output,
            self.environment,
            self.specs,  # type: ignore[arg-type]
        )
        return startup.run()

    def down(self, keep: bool = False) -> list[str]:
        state = self.folder.load()
        return take_down(self.folder, state, self.output, keep_control_plane=keep).done if state else []

    def kill(self, name: str) -> None:
        state = self.folder.load()
        assert state is not None
        record = state.processes[name]
        os.kill(record.pid, signal.SIGKILL)
        assert wait_for(lambda: not is_running(record), 10)

    def pids(self) -> dict[str, int]:
        state = self.folder.load()
        return {name: record.pid for name, record in state.processes.items()} if state else {}

    def alive(self) -> list[int]:
        return [pid for name in layout.START_ORDER for pid in marked(layout.mark_of(self.folder, name))]


@pytest.fixture
def stage(home: Path) -> Iterator[Stage]:
    stage = Stage(home)
    yield stage
    for name in layout.START_ORDER:
        stop([], layout.mark_of(stage.folder, name), 1.0)


def test_up_starts_everything_applies_and_remembers(stage: Stage) -> None:
    report = stage.up()
    assert report.started == [CONTROL_PLANE, SIMULATOR, NODE]
    assert report.changed
    assert report.outcome is not None
    assert report.outcome.changes == 1
    state = stage.folder.load()
    assert state is not None
    assert state.select_tags == ["model-based-routing-recipe"]
    assert state.control_plane_name == "model-based-routing-recipe"
    assert stage.folder.state_file.stat().st_mode & 0o777 == 0o600
    assert stage.folder.path.stat().st_mode & 0o777 == 0o700
    assert (stage.folder.node / "client.key").stat().st_mode & 0o777 == 0o600


def test_a_second_up_changes_nothing(stage: Stage) -> None:
    stage.up()
    before = stage.pids()
    report = stage.up()
    assert not report.changed
    assert stage.pids() == before


def test_what_died_is_started_again_and_the_rest_stays(stage: Stage) -> None:
    stage.up()
    before = stage.pids()
    stage.kill(SIMULATOR)
    assert stage.up().started == [SIMULATOR]
    after = stage.pids()
    assert (before[CONTROL_PLANE], before[NODE]) == (after[CONTROL_PLANE], after[NODE])
    assert before[SIMULATOR] != after[SIMULATOR]


def test_other_settings_restart_only_what_they_concern(stage: Stage) -> None:
    stage.up()
    before = stage.pids()
    report = stage.up(workers=2)
    assert (report.stopped, report.started) == ([NODE], [NODE])
    assert stage.pids()[CONTROL_PLANE] == before[CONTROL_PLANE]
    assert not stage.up().changed


def test_live_providers_need_no_simulator(stage: Stage) -> None:
    stage.up()
    stage.environment.update(
        DECK_OPENAI_TOKEN="Bearer sk-1", DECK_AWS_ACCESS_KEY_ID="AKIA", DECK_AWS_SECRET_ACCESS_KEY="secret"
    )
    report = stage.up()
    assert SIMULATOR in report.stopped
    assert not report.state.simulated
    assert is_free(stage.ports["simulator"])


def test_the_made_up_credentials_may_be_exported(stage: Stage) -> None:
    stage.environment.update(stage.up().state.values)
    assert not stage.up().changed


def test_the_made_up_credentials_of_a_stack_that_is_gone_are_not_taken_for_real_ones(stage: Stage) -> None:
    stage.environment.update(
        DECK_OPENAI_TOKEN="Bearer sk-simulated-0", DECK_AWS_ACCESS_KEY_ID="AKIA", DECK_AWS_SECRET_ACCESS_KEY="secret"
    )
    state = stage.up().state
    assert state.simulated
    assert state.values["DECK_OPENAI_TOKEN"] != "Bearer sk-simulated-0"


def test_missing_credentials_are_named_all_at_once_with_what_they_are_for(stage: Stage) -> None:
    with pytest.raises(Faults) as caught:
        stage.up(simulate=False)
    for name in ("DECK_OPENAI_TOKEN", "DECK_AWS_ACCESS_KEY_ID", "DECK_AWS_SECRET_ACCESS_KEY"):
        assert name in caught.value.message
    assert "AWS access key id that may call Bedrock" in caught.value.message
    assert "--simulate" in caught.value.message
    assert stage.alive() == []


def test_simulated_credentials_are_made_up_and_stay(stage: Stage) -> None:
    stage.environment["DECK_OPENAI_TOKEN"] = "Bearer sk-real"
    values = stage.up(simulate=True).state.values
    assert values["DECK_OPENAI_TOKEN"].startswith("Bearer sk-simulated-")
    assert len(values["DECK_AWS_SECRET_ACCESS_KEY"]) == 40
    assert stage.up(simulate=True).state.values == values
    assert "Bearer sk-real" not in stage.folder.state_file.read_text()


def test_a_taken_port_is_told_before_anything_starts(stage: Stage) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", stage.ports["status"]))
        listener.listen()
        with pytest.raises(Faults) as caught:
            stage.up()
    assert f"port {stage.ports['status']} is taken by pid {os.getpid()}" in caught.value.message
    assert "needed for --status-port" in caught.value.message
    assert "nothing was started" in caught.value.message
    assert stage.alive() == []
    assert stage.folder.load() is None


@pytest.mark.parametrize("name", [CONTROL_PLANE, SIMULATOR, NODE])
def test_when_a_step_fails_nothing_is_left_running(stage: Stage, name: str) -> None:
    stage.broken = {name}
    with pytest.raises(CliError) as caught:
        stage.up()
    assert f"{name} ended while it started" in caught.value.message
    assert "the reason stands here" in caught.value.message
    assert stage.alive() == []
    assert stage.folder.load() is None
    assert not stage.folder.node.exists()


def test_when_a_step_fails_what_ran_before_goes_on(stage: Stage) -> None:
    stage.up()
    before = stage.pids()
    stage.kill(NODE)
    stage.broken = {NODE}
    with pytest.raises(CliError, match="node ended while it started"):
        stage.up()
    assert stage.pids() == {name: before[name] for name in (CONTROL_PLANE, SIMULATOR)}
    assert len(stage.alive()) == 2


def test_a_process_that_ends_after_another_answered_for_it_fails_the_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.stack.wait_until_live", lambda *_, **__: stage.kill(NODE))
    with pytest.raises(CliError, match="node ended after it had started"):
        stage.up()
    assert stage.alive() == []


def test_an_interrupted_up_stops_what_it_started(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cli.stack.apply_declared", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.up()
    assert stage.alive() == []


def test_a_file_with_faults_starts_nothing(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("services: [")
    with pytest.raises(Faults, match=r"bad\.yaml:1"):
        stage.up(file=str(tmp_path / "bad.yaml"))
    assert stage.alive() == []


def test_a_file_of_ones_own_takes_the_recipes_place(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text('_format_version: "3.0"\n_info: {select_tags: [own]}\n')
    report = stage.up(file=str(tmp_path / "own.yaml"))
    assert report.state.select_tags == ["own"]


def test_without_apply_only_the_node_is_waited_for(stage: Stage) -> None:
    report = stage.up(apply=False)
    assert report.state.select_tags == ["model-based-routing-recipe"]
    assert report.outcome is None
    assert report.receipts is not None
    assert report.receipts.nodes == 1


def test_down_deletes_the_control_plane_stops_all_and_frees_the_ports(stage: Stage) -> None:
    stage.up()
    done = stage.down()
    assert done == [
        "removed 1 entities tagged model-based-routing-recipe from model-based-routing-recipe",
        "deleted control plane model-based-routing-recipe",
        "stopped node",
        "stopped simulator",
        "stopped control-plane",
    ]
    assert stage.alive() == []
    assert all(is_free(port) for port in stage.ports.values())
    assert stage.down() == []


UNTAGGED = """
_format_version: "3.0"
_info: {select_tags: [own]}
services: [{name: untagged, host: a.test}]
"""


def test_down_leaves_what_does_not_carry_the_tag_in_the_database(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(UNTAGGED)
    stage.up(file=str(tmp_path / "own.yaml"))
    state = stage.folder.load()
    assert state is not None
    teardown = take_down(stage.folder, state, stage.output, keep_control_plane=False)
    assert teardown.done[0] == "removed 1 entities tagged own from model-based-routing-recipe"
    assert teardown.done[1:] == ["stopped node", "stopped simulator", "stopped control-plane"]
    (note,) = teardown.notes
    assert "does not carry own: services (1)" in note
    assert "down --all" in note


def test_down_of_everything_leaves_nothing_in_the_database(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(UNTAGGED)
    state = stage.up(file=str(tmp_path / "own.yaml")).state
    teardown = take_down(stage.folder, state, stage.output, keep_control_plane=False, everything=True)
    assert teardown.done[0] == "deleted control plane model-based-routing-recipe and all it held"


def test_down_after_a_down_that_was_broken_off_says_nothing_of_a_control_plane_that_is_gone(stage: Stage) -> None:
    state = stage.up().state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cli.stack._stop_processes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            take_down(stage.folder, state, stage.output, keep_control_plane=False)
    stage.kill(CONTROL_PLANE)
    left = stage.folder.load()
    assert left is not None
    notes = take_down(stage.folder, left, stage.output, keep_control_plane=False).notes
    assert notes == ["control-plane was not running any more"]


def test_down_ends_when_interrupted_and_goes_on_when_an_answer_is_lost(stage: Stage) -> None:
    state = stage.up().state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cli.stack.reset_entities", lambda *_, **__: (_ for _ in ()).throw(Interrupted("broken off")))
        with pytest.raises(Interrupted):
            take_down(stage.folder, state, stage.output, keep_control_plane=False)
        assert len(stage.alive()) == 3
        patch.setattr("cli.stack.reset_entities", lambda *_, **__: (_ for _ in ()).throw(OutcomeUnknown("in doubt")))
        teardown = take_down(stage.folder, state, stage.output, keep_control_plane=False)
    assert teardown.notes == ["in doubt"]
    assert stage.alive() == []


def test_down_can_keep_the_control_plane_and_takes_only_what_is_tagged(stage: Stage) -> None:
    stage.up()
    assert stage.down(keep=True) == [
        "removed 1 entities tagged model-based-routing-recipe from model-based-routing-recipe",
        "stopped node",
        "stopped simulator",
    ]
    assert list(stage.pids()) == [CONTROL_PLANE]
    assert stage.down(keep=True) == []
    assert stage.up().started == [SIMULATOR, NODE]


@pytest.mark.parametrize("dead", [{CONTROL_PLANE}, {NODE}, {SIMULATOR, NODE}, {CONTROL_PLANE, SIMULATOR, NODE}])
def test_down_works_from_half_a_stack(stage: Stage, dead: set[str]) -> None:
    stage.up()
    for name in dead:
        stage.kill(name)
    done = stage.down()
    assert [line for line in done if line.startswith("stopped")] == [
        f"stopped {name}" for name in layout.STOP_ORDER if name not in dead
    ]
    assert stage.alive() == []
    assert stage.down() == []


def test_a_node_that_never_runs_it_fails_the_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.client.ControlPlane.nodes", lambda *_: [])
    with pytest.raises(NotLive, match="0 of 1 expected data plane nodes"):
        stage.up(wait_timeout=0.05)
    assert stage.alive() == []


def test_a_certificate_that_is_no_longer_pinned_is_replaced(stage: Stage) -> None:
    stage.up()
    first = (stage.folder.node / "client.crt").read_text()
    stage.kill(CONTROL_PLANE)  # The scripted one keeps nothing: it comes back without any control plane.
    report = stage.up()
    assert report.started == [CONTROL_PLANE, NODE]
    assert (stage.folder.node / "client.crt").read_text() != first


def _hold(home: Path, ready: object, let_go: object) -> None:
    with locked(home, lambda _: None):
        ready.set()  # type: ignore[attr-defined]
        let_go.wait(30)  # type: ignore[attr-defined]


def test_a_second_command_waits_for_the_first(home: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, let_go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(home, ready, let_go))
    other.start()
    assert ready.wait(30)
    told: list[str] = []

    def waiting(text: str) -> None:
        told.append(text)
        let_go.set()

    with locked(home, waiting):
        pass
    other.join(30)
    assert f"pid {other.pid}" in told[0]


# The commands around it


def test_status_and_down_of_nothing(recipe: Callable[..., object]) -> None:
    shown = recipe("status")
    assert (shown.code, shown.out) == (3, "no stack is up: recipe up starts one\n")  # type: ignore[attr-defined]
    shown = recipe("down")
    assert (shown.code, shown.out) == (0, "nothing to do: no stack is up\n")  # type: ignore[attr-defined]


def test_status_shows_processes_nodes_and_workers(stage: Stage, recipe: Callable[..., object]) -> None:
    stage.up()
    result = recipe("status")
    assert result.code == 0  # type: ignore[attr-defined]
    lines = result.out.splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith(f"{NAME}: up, simulated providers, proxy at http://localhost:")
    assert [line.split()[:2] for line in lines[2:5]] == [[n, "running"] for n in layout.START_ORDER]
    stage.kill(NODE)
    result = recipe("status", "--json-output")
    assert result.code == 3  # type: ignore[attr-defined]
    (shown,) = json.loads(result.out)["stacks"]  # type: ignore[attr-defined]
    assert [process["running"] for process in shown["processes"]] == [True, True, False]


def test_env_prints_what_the_simulator_accepts(stage: Stage, recipe: Callable[..., object]) -> None:
    state = stage.up().state
    lines = recipe("env").out.splitlines()  # type: ignore[attr-defined]
    assert f"export DECK_KONNECT_TOKEN={state.token}" in lines
    assert f"export KONNECT_PROXY_URL='http://localhost:{stage.ports['proxy']}'" in lines
    assert f"export DECK_OPENAI_TOKEN='{state.values['DECK_OPENAI_TOKEN']}'" in lines
    assert "export DECK_AWS_REGION=us-east-1" in lines


def test_logs_show_the_end_of_each_log_without_secrets(stage: Stage, recipe: Callable[..., object]) -> None:
    state = stage.up().state
    (stage.folder.logs / "node.log").write_text(f"first\nsecond {state.token}\n")
    assert recipe("logs", "node", "-n", "1").out == "second [masked]\n"  # type: ignore[attr-defined]
    assert "node: first\n" in recipe("logs").out  # type: ignore[attr-defined]


def test_down_all_removes_every_trace(stage: Stage, recipe: Callable[..., object]) -> None:
    stage.up()
    result = recipe("down", "--all")
    assert "removed all state" in result.out  # type: ignore[attr-defined]
    assert not stage.folder.path.exists()
    assert stage.alive() == []
