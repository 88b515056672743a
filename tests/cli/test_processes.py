from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import processes
from cli.errors import CliError
from cli.ports import conflicts, holder_of, is_free
from cli.processes import Spec, is_running, last_lines, marked, start, start_time, stop, wait_for
from cli.state import ProcessRecord

SLEEPER = "import time; print('awake', flush=True); time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('awake', flush=True); time.sleep(60)"
)
PARENT = (
    "import subprocess, sys, time;"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    "print('awake', flush=True); time.sleep(60)"
)


def spec(tmp_path: Path, code: str, **environment: str) -> Spec:
    return Spec("part", (sys.executable, "-c", code), environment, tmp_path / "part.log", f"{tmp_path}:part", {})


def awake(tmp_path: Path) -> bool:
    return wait_for(lambda: "awake" in "".join(last_lines(tmp_path / "part.log", 5)), 20)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    stop([], f"{tmp_path}:part", 0.0)


def test_a_started_process_is_detached_and_writes_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECK_OPENAI_TOKEN", "secret")
    facts = "os.getsid(0) == os.getpid(), sys.stdin.read() == '', 'DECK_OPENAI_TOKEN' in os.environ, os.environ['OWN']"
    record = start(spec(tmp_path, f"import os, sys; print({facts})", OWN="yes"))
    assert wait_for(lambda: not is_running(record), 20)
    assert last_lines(tmp_path / "part.log", 5) == ["True True False yes"]
    assert (tmp_path / "part.log").stat().st_mode & 0o777 == 0o600


def test_stopping_waits_until_it_is_gone(tmp_path: Path) -> None:
    record = start(spec(tmp_path, SLEEPER))
    assert is_running(record)
    stop([record])
    assert not is_running(record)
    assert start_time(record.pid) is None


def test_what_ignores_the_request_is_killed(tmp_path: Path) -> None:
    record = start(spec(tmp_path, STUBBORN))
    assert awake(tmp_path)
    stop([record], grace=0.1)
    assert not is_running(record)


def test_a_pid_that_was_given_to_another_process_is_left_alone(tmp_path: Path) -> None:
    record = start(spec(tmp_path, SLEEPER))
    stale = ProcessRecord(record.pid, "12345", record.fingerprint)
    assert not is_running(stale)
    stop([stale])
    assert is_running(record)


def test_what_outlived_its_parent_is_found_by_its_mark(tmp_path: Path) -> None:
    record = start(spec(tmp_path, PARENT))
    assert awake(tmp_path)
    os.kill(record.pid, signal.SIGKILL)
    assert wait_for(lambda: not is_running(record), 10)
    (orphan,) = marked(f"{tmp_path}:part")
    stop([record], f"{tmp_path}:part")
    assert start_time(orphan) is None
    assert marked(f"{tmp_path}:part") == []


def test_another_stacks_mark_is_not_ours(tmp_path: Path) -> None:
    start(spec(tmp_path, SLEEPER))
    assert marked(f"{tmp_path}:par") == []
    assert marked(f"{tmp_path}") == []


def test_a_dead_child_that_nobody_reaped_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    assert wait_for(lambda: start_time(child.pid) is None, 20)
    child.wait()


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    missing = Spec("part", (str(tmp_path / "nothing"),), {}, tmp_path / "part.log", "m", {})
    with pytest.raises(CliError, match="part cannot be started"):
        start(missing)


def test_other_settings_make_another_fingerprint(tmp_path: Path) -> None:
    one, same, other = (spec(tmp_path, SLEEPER, A=value) for value in "112")
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert "environment" not in repr(other)


def test_a_large_log_is_put_aside_and_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOG_BYTES", 1)
    log = tmp_path / "part.log"
    for number in range(6):
        record = start(spec(tmp_path, f"print('run', {number})"))
        assert wait_for(lambda record=record: not is_running(record), 20)
    assert sorted(path.name for path in tmp_path.glob("part.log*")) == [log.name, *(f"part.log.{n}" for n in (1, 2, 3))]
    assert last_lines(log, 1) == ["run 5"]
    assert last_lines(tmp_path / "part.log.3", 1) == ["run 2"]


# Ports


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_is_listened_on_is_taken(taken: int) -> None:
    assert not is_free(taken)


def test_who_holds_a_port_is_named(taken: int) -> None:
    holder = holder_of(taken)
    assert holder.pid == os.getpid()
    assert "python" in str(holder)


def test_a_conflict_says_port_holder_setting_and_way_out(taken: int) -> None:
    (message,) = conflicts({"--proxy-port": taken})
    assert f"port {taken} is taken by pid {os.getpid()}" in message
    assert "needed for --proxy-port" in message
    assert "choose another port: --proxy-port " in message


def test_under_make_the_way_out_is_one_that_make_takes(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKELEVEL", "1")
    (message,) = conflicts({"--proxy-port": taken})
    assert 'choose another port: make up ARGS="--proxy-port ' in message


def test_a_port_of_our_own_is_no_conflict(taken: int) -> None:
    assert conflicts({"--proxy-port": taken}, {os.getpid()}) == []


def test_one_port_for_two_settings_is_a_conflict() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert conflicts({"--a": port, "--b": port}) == [f"port {port} is wanted twice: by --a and by --b"]
