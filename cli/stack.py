"""A local stack's life: `up` brings it to the state that was asked for, `down` takes it apart again.

`up` is idempotent: what runs as it should is left alone, what died or has other settings now is started again, and
when a step fails everything that this run started is stopped. Ports are looked at before anything is started. `down`
works from whatever it finds, also from half a stack. Callers hold the home's lock.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field

import httpx

from cli import layout, recipes
from cli.certificates import pair_in, write_pair
from cli.client import Connection, Consent, ControlPlane
from cli.declarative import Outcome, apply_declared, reset_entities
from cli.errors import CliError, Faults, Interrupted, OutcomeUnknown
from cli.files import Declared, read_files
from cli.layout import CONTROL_PLANE, NODE, SIMULATOR, Wish
from cli.output import Output
from cli.ports import conflicts
from cli.processes import Spec, is_running, last_lines, marked, start, stop
from cli.recipes import Recipe
from cli.state import ProcessRecord, StackFolder, StackState
from cli.waiting import Receipts, wait_until_live

BOOT_TIMEOUT = 60.0
"""Seconds that a process may take until it answers; migrations run meanwhile, and machines are shared."""


@dataclass(slots=True)
class Report:
    """What an `up` did."""

    state: StackState
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    outcome: Outcome | None = None
    receipts: Receipts | None = None

    @property
    def changed(self) -> bool:
        return bool(self.started or self.stopped or (self.outcome and self.outcome.changes))


def connection_to(state: StackState) -> Connection:
    return Connection(state.address, state.token, "the local stack", "the local stack", state.control_plane_name)


class Startup:
    """One `up`."""

    def __init__(
        self,
        folder: StackFolder,
        wish: Wish,
        output: Output,
        environment: Mapping[str, str],
        specs: Callable[[StackState, StackFolder, Recipe | None, Mapping[str, str]], list[Spec]] = layout.specs,
    ) -> None:
        self._folder = folder
        self._wish = wish
        self._output = output
        self._environment = environment
        self._specs = specs
        self._before = folder.load()
        self._recipe: Recipe | None = layout.find_recipe(wish)
        self._state = layout.draft(wish, self._recipe, self._before, environment)
        self._started: dict[str, ProcessRecord] = {}
        self._report = Report(self._state)

    def run(self) -> Report:
        """Bring the stack up. Raises CliError; what was started is stopped again then."""
        self._output.mask.add(self._state.token, *self._state.values.values())
        declared = self._declared()
        specs = self._specs(self._state, self._folder, self._recipe, self._environment)
        self._check_ports(specs)
        self._folder.make()
        try:
            self._bring_up(specs, declared)
        except BaseException:
            self._roll_back()
            raise
        self._save()
        return self._report

    def _declared(self) -> Declared | None:
        """The file to apply, read before anything is started: its faults shall cost nothing."""
        if not self._wish.apply:
            return None
        file = self._wish.file
        if file is None:
            assert self._recipe is not None
            file = str(recipes.folder_of(self._wish.name) / self._recipe.file)
        declared = read_files([file], layout.file_environment(self._state, self._recipe, self._environment))
        secret = {variable.name for variable in self._recipe.credentials()} if self._recipe else set(declared.used)
        self._output.mask.add(*(value for name, value in declared.used.items() if name in secret))
        return declared

    def _check_ports(self, specs: list[Spec]) -> None:
        wanted = {setting: port for spec in specs if not self._is_current(spec) for setting, port in spec.ports.items()}
        known = self._before.processes if self._before else {}
        ours = {record.pid for record in known.values() if is_running(record)}
        ours.update(pid for name in layout.START_ORDER for pid in marked(layout.mark_of(self._folder, name)))
        if messages := conflicts(wanted, ours):
            raise Faults([*messages, "  nothing was started"])

    def _is_current(self, spec: Spec) -> bool:
        record = self._state.processes.get(spec.name)
        return record is not None and record.fingerprint == spec.fingerprint and is_running(record)

    def _bring_up(self, specs: list[Spec], declared: Declared | None) -> None:
        by_name = {spec.name: spec for spec in specs}
        self._stop_unwanted(by_name)
        self._run(by_name[CONTROL_PLANE], f"{self._state.address}/health")
        if SIMULATOR in by_name:
            self._run(by_name[SIMULATOR], f"http://127.0.0.1:{self._state.ports['simulator']}/health")
        with ControlPlane(connection_to(self._state)) as plane:
            self._prepare_control_plane(plane)
            self._run(by_name[NODE], f"http://127.0.0.1:{self._state.ports['status']}/status")
            if declared is not None:
                self._apply(plane, declared)
            with self._output.working("waiting until every worker runs it"):
                self._report.receipts = wait_until_live(
                    plane,
                    self._state.control_plane_id,
                    self._report.outcome.target if self._report.outcome else None,
                    self._wish.wait_timeout,
                    expected_nodes=1,
                )
        self._check_alive(specs)

    def _check_alive(self, specs: list[Spec]) -> None:
        """Another process may have answered in a started one's place."""
        for spec in specs:
            if not is_running(self._state.processes[spec.name]):
                raise CliError(_with_log(f"{spec.name} ended after it had started", spec))

    def _stop_unwanted(self, wanted: Mapping[str, Spec]) -> None:
        """Stop what shall not run, or shall run with other settings; forget what is dead."""
        for name in layout.STOP_ORDER:
            record = self._state.processes.get(name)
            if record is None or (name in wanted and self._is_current(wanted[name])):
                continue
            if is_running(record):
                why = "its settings changed" if name in wanted else "it is not needed any more"
                self._output.note(f"stopping {name}: {why}")
                stop([record], layout.mark_of(self._folder, name))
                self._report.stopped.append(name)
            del self._state.processes[name]
            self._save()

    def _run(self, spec: Spec, url: str) -> None:
        if self._is_current(spec):
            return
        with self._output.working(f"starting {spec.name}"):
            record = start(spec)
            self._started[spec.name] = self._state.processes[spec.name] = record
            self._save()  # At once: should this run be killed, `down` still knows what to stop.
            self._await_answer(spec, record, url)
        self._report.started.append(spec.name)

    def _await_answer(self, spec: Spec, record: ProcessRecord, url: str) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not _answers(url):
            if not is_running(record):
                raise CliError(_with_log(f"{spec.name} ended while it started", spec))
            if time.monotonic() > deadline:
                raise CliError(_with_log(f"{spec.name} did not answer at {url} within {BOOT_TIMEOUT:.0f} s", spec))
            time.sleep(0.05)

    def _prepare_control_plane(self, plane: ControlPlane) -> None:
        """The control plane by its name, and the node's certificate pinned to it."""
        name = self._state.control_plane_name
        row = plane.find(name) or plane.create(name)
        self._state.control_plane_id = str(row["id"])
        pair = pair_in(self._folder.node)
        pinned = {pem.strip() for pem in plane.certificates(self._state.control_plane_id)}
        if not (pair.exists and pair.pem.strip() in pinned):
            # A node of another control plane, or one whose certificate was revoked: it begins anew.
            self._forget_node()
            write_pair(pair, f"node of {self._state.name}")
            plane.register_certificate(self._state.control_plane_id, pair.pem, f"recipe up {self._state.name}")
        self._save()

    def _forget_node(self) -> None:
        record = self._state.processes.pop(NODE, None)
        if record is not None:
            stop([record], layout.mark_of(self._folder, NODE))
        shutil.rmtree(self._folder.node, ignore_errors=True)
        self._folder.make()

    def _apply(self, plane: ControlPlane, declared: Declared) -> None:
        with self._output.working(f"applying {', '.join(declared.files)}"):
            outcome = apply_declared(plane, self._state.control_plane_id, declared, (), "sync", commit=True)
        self._report.outcome = outcome
        self._state.select_tags = recipes.select_tags(declared.document)
        self._state.applied = True

    def _save(self) -> None:
        self._folder.save(self._state)

    # When a step fails

    def _roll_back(self) -> None:
        with _undisturbed():
            if self._started:
                self._output.note("stopping what was started")
            for name in layout.STOP_ORDER:
                if name in self._started:
                    stop([self._started[name]], layout.mark_of(self._folder, name))
                    self._state.processes.pop(name, None)
            if self._before is None:
                forget(self._folder, keep_logs=True)
                return
            restored = deepcopy(self._before)
            restored.processes = {name: record for name, record in self._state.processes.items() if is_running(record)}
            self._folder.save(restored)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _with_log(message: str, spec: Spec) -> str:
    lines = [line if len(line) <= 400 else f"{line[:399]}…" for line in last_lines(spec.log, 10)]
    return "\n".join([f"{message}; the end of {spec.log}:", *(f"  {line}" for line in lines)])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not interrupt the tidying up after the first."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def forget(folder: StackFolder, *, keep_logs: bool) -> None:
    """Remove what a stack keeps on disk."""
    if not keep_logs:
        shutil.rmtree(folder.path, ignore_errors=True)
        return
    folder.state_file.unlink(missing_ok=True)
    for path in (folder.control_plane, folder.node):
        shutil.rmtree(path, ignore_errors=True)


# Down


@dataclass(slots=True)
class Teardown:
    """What a `down` did, one line each; empty when there was nothing to do."""

    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def take_down(
    folder: StackFolder, state: StackState, output: Output, *, keep_control_plane: bool, everything: bool = False
) -> Teardown:
    """Remove the file's entities and stop what was started.

    The control plane goes too, unless it holds more than that; with `everything` it goes in any case. When it is to be
    kept, it goes on running: it would otherwise keep nothing that anyone could look at.
    """
    teardown = Teardown()
    output.mask.add(state.token, *state.values.values())
    record = state.processes.get(CONTROL_PLANE)
    if record is not None and is_running(record):
        _remove_from_control_plane(state, teardown, keep_control_plane, everything)
        folder.save(state)
    elif state.control_plane_id and not keep_control_plane:
        teardown.notes.append(
            f"the control plane was not running: {state.control_plane_name} stays in its database "
            "(recipe down --all removes that too)"
        )
    _stop_processes(folder, state, teardown, keep_control_plane)
    if not keep_control_plane:
        shutil.rmtree(folder.node, ignore_errors=True)
        state = StackState(state.name, token=state.token, values=state.values)
    folder.save(state)
    return teardown


def _remove_from_control_plane(state: StackState, teardown: Teardown, keep: bool, everything: bool) -> None:
    with ControlPlane(connection_to(state)) as plane:
        try:
            row = plane.find(state.control_plane_name)
            if row is None:
                return
            if not everything:
                _remove_ours(plane, row["id"], state, teardown)
            if keep:
                return
            if rest := _rest(plane, row["id"]) if not everything else "":
                teardown.notes.append(
                    f"control plane {state.control_plane_name} stays in its database, with what "
                    f"{_why_it_stays(state)}: {rest} (recipe down --all removes that too)"
                )
            else:
                plane.delete(row["id"])
                held = " and all it held" if everything else ""
                teardown.done.append(f"deleted control plane {state.control_plane_name}{held}")
            state.control_plane_id = ""
        except Interrupted:
            raise
        except OutcomeUnknown as error:
            teardown.notes.append(error.message)
        except CliError as error:
            # It must be possible to stop a stack whose control plane is ill.
            teardown.notes.append(f"nothing was removed from the control plane: {error.message}")


def _remove_ours(plane: ControlPlane, control_plane_id: str, state: StackState, teardown: Teardown) -> None:
    """What carries the file's tags; of a file without tags, what no other set of select tags owns."""
    if not (state.select_tags or state.applied):
        return
    consent = Consent(spare=not state.select_tags)
    outcome = reset_entities(plane, control_plane_id, state.select_tags, commit=True, consent=consent)
    if outcome.changes:
        tagged = f" tagged {', '.join(state.select_tags)}" if state.select_tags else ""
        teardown.done.append(f"removed {outcome.changes} entities{tagged} from {state.control_plane_name}")


def _rest(plane: ControlPlane, control_plane_id: str) -> str:
    """How many of each collection are still held."""
    held = {name: rows for name, rows in plane.document(control_plane_id, ()).items() if isinstance(rows, list)}
    return ", ".join(f"{name.replace('_', ' ')} ({len(rows)})" for name, rows in held.items() if rows)


def _why_it_stays(state: StackState) -> str:
    if state.select_tags:
        return f"does not carry {', '.join(state.select_tags)}"
    return "other sets of select tags own" if state.applied else "recipe up did not apply"


def _stop_processes(folder: StackFolder, state: StackState, teardown: Teardown, keep_control_plane: bool) -> None:
    for name in layout.STOP_ORDER:
        if name == CONTROL_PLANE and keep_control_plane:
            continue
        record = state.processes.pop(name, None)
        mark = layout.mark_of(folder, name)
        records = [record] if record is not None and is_running(record) else []
        if records or marked(mark):
            stop(records, mark)
            teardown.done.append(f"stopped {name}")
        elif record is not None:
            teardown.notes.append(f"{name} was not running any more")
