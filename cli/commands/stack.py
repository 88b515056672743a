"""up, down, status, list, logs, env: a local stack and the recipes that can run on it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from cli import layout, recipes
from cli.errors import EXIT_NOT_RUNNING, CliError
from cli.inspection import ProcessView, StackView, view
from cli.layout import Wish
from cli.logs import follow, show
from cli.output import Output
from cli.seconds import Seconds
from cli.stack import Report, Startup, Teardown, forget, take_down
from cli.state import StackFolder, StackState, locked, stacks, state_home

_name = click.argument("name", required=False)
_PORTS = ("proxy", "control-plane", "grpc", "status", "simulator")


def _port_options(command: Any) -> Any:
    for name in reversed(_PORTS):
        default = layout.DEFAULT_PORTS[name]
        kind = click.IntRange(1, 65_535)
        command = click.option(f"--{name}-port", type=kind, help=f"Default {default}.", metavar="PORT")(command)
    return command


@click.command()
@_name
@click.option("--file", metavar="FILE", help="Apply this file instead of the recipe's own.")
@click.option("--control-plane-name", metavar="NAME", help="Default: the recipe's.")
@click.option(
    "--simulate/--live", default=None, help="Simulated or real providers; default: real when credentials are exported."
)
@_port_options
@click.option("--workers", type=click.IntRange(1, 256), help="Worker processes of the node; default 1.")
@click.option("--no-apply", is_flag=True, help="Start everything, apply nothing.")
@click.option("--wait-timeout", type=Seconds(min=1), default=60.0, help="Seconds until the workers must run it.")
@click.pass_obj
def up(output: Output, /, name: str | None, no_apply: bool, **flags: Any) -> None:
    """Start a whole gateway and apply a recipe to it.

    A control plane, a data plane node and, when no provider credentials are exported, simulated providers.

    What runs already is left alone; what died is started again. When a step fails, what was started is stopped.
    """
    ports = {port: flags.pop(f"{port.replace('-', '_')}_port") for port in _PORTS}
    wish = Wish(
        name=_stack_name(name),
        apply=not no_apply,
        ports={port: number for port, number in ports.items() if number is not None},
        **flags,
    )
    home = state_home()
    with locked(home, output.note):
        report = Startup(StackFolder(home, wish.name), wish, output, os.environ).run()
    output.done = f"{wish.name} is up"
    _announce(output, wish, report)


@click.command()
@_name
@click.option(
    "--keep-control-plane", is_flag=True, help="Remove the recipe's entities only; the control plane runs on."
)
@click.option("--all", "everything", is_flag=True, help="Stop every stack and remove all state.")
@click.pass_obj
def down(output: Output, /, name: str | None, keep_control_plane: bool, everything: bool) -> None:
    """Remove what a recipe brought and stop what `up` started.

    That is what carries the file's tags; of a file without tags, what no other set of select tags owns. The control
    plane stays in its database when it holds more.
    """
    if everything and (keep_control_plane or name):
        raise click.UsageError("--all takes no name and no --keep-control-plane: it removes every stack")
    home = state_home()
    with locked(home, output.note):
        found = stacks(home)
        if name is not None:
            found = [(folder, state) for folder, state in found if state.name == name]
        teardowns = [
            take_down(folder, state, output, keep_control_plane=keep_control_plane, everything=everything)
            for folder, state in found
        ]
        if everything:
            for folder, _ in found:
                forget(folder, keep_logs=False)
    output.done = f"took down {', '.join(state.name for _, state in found)}" if found else ""
    _report_down(output, teardowns, removed=everything and bool(found), kept=keep_control_plane and bool(teardowns))


@click.command()
@_name
@click.option("--json-output", is_flag=True)
@click.pass_obj
def status(output: Output, /, name: str | None, json_output: bool) -> None:
    """Show processes, nodes and workers.

    Also which version each worker runs. Exit code 3 when something is not up.
    """
    found = [(folder, state) for folder, state in stacks(state_home()) if name in (None, state.name)]
    output.mask.add(*(state.token for _, state in found))
    views = [view(folder, state) for folder, state in found if state.processes]
    if json_output:
        output.json({"stacks": [stack.as_json() for stack in views]})
    for stack in () if json_output else views:
        _show_stack(output, stack)
    if not views and not json_output:
        output.line("no stack is up: recipe up starts one")
    if not views or not all(stack.is_up for stack in views):
        raise click.exceptions.Exit(EXIT_NOT_RUNNING)


@click.command("list")
@click.option("--json-output", is_flag=True)
@click.pass_obj
def list_recipes(output: Output, /, json_output: bool) -> None:
    """Show the recipes that `up` can run."""
    running = {state.name: state for _, state in stacks(state_home()) if state.processes}
    rows = []
    for name in recipes.names():
        recipe = recipes.load(name)
        tags = recipes.select_tags_of(name, recipe)
        state = running.get(name)
        rows.append((name, recipe.title, ", ".join(tags), f"up at {state.proxy_url}" if state else "not up"))
    if json_output:
        keys = ("name", "title", "select_tags", "state")
        output.json({"recipes": [dict(zip(keys, row, strict=True)) for row in rows]})
    else:
        output.table(("NAME", "TITLE", "SELECT TAGS", "STATE"), rows)


@click.command()
@click.argument("process", required=False, type=click.Choice(layout.START_ORDER))
@click.option("--stack", "name", metavar="NAME", help="Of which stack, when there are several.")
@click.option("--follow", "-f", "following", is_flag=True, help="Go on as lines are written.")
@click.option("--lines", "-n", type=click.IntRange(min=0), default=50, help="How many lines of each; default 50.")
@click.pass_obj
def logs(output: Output, /, process: str | None, name: str | None, following: bool, lines: int) -> None:
    """Show what the stack's processes wrote."""
    folder, state = one_stack(name)
    secrets = recipes.load(state.name).secrets(os.environ) if state.name in recipes.names() else []
    output.mask.add(state.token, *state.values.values(), *secrets)
    files = {part: folder.logs / f"{part}.log" for part in layout.START_ORDER if process in (None, part)}
    files = {part: path for part, path in files.items() if path.exists()}
    if not files:
        raise CliError(f"no log in {folder.logs}: nothing of the kind was started yet")
    show(output, files, lines)
    if following:
        follow(output, files)


@click.command()
@click.option("--stack", "name", metavar="NAME", help="Of which stack, when there are several.")
@click.pass_obj
def env(output: Output, /, name: str | None) -> None:
    """Print export lines for the running stack.

    For instance: eval "$(recipe env)".

    With simulated providers also the recipe's variables with the credentials that only the simulator accepts.
    """
    _, state = one_stack(name)
    output.raw(export_lines(state))
    if state.simulated and state.name in recipes.names():
        values = recipes.load(state.name).values({}, state.values)
        output.raw("".join(f"export {key}={shlex.quote(value)}\n" for key, value in values.items()))


# Words and tables


def export_lines(state: StackState) -> str:
    """What decK, kongctl and the pages of recipes read. The token stands here in clear: it is meant for the shell."""
    return (
        f"export DECK_KONNECT_TOKEN={shlex.quote(state.token)}\n"
        f"export DECK_KONNECT_ADDR={state.address}\n"
        f"export DECK_KONNECT_CONTROL_PLANE_NAME={shlex.quote(state.control_plane_name)}\n"
        f"export KONNECT_CONTROL_PLANE_URL={state.address}\n"
        f"export KONNECT_PROXY_URL='{state.proxy_url}'\n"
    )


def _announce(output: Output, wish: Wish, report: Report) -> None:
    state = report.state
    how = "simulated providers" if state.simulated else "real providers"
    output.line(
        f"{state.name} is up, with {how}" if report.changed else f"{state.name} was up already: nothing changed"
    )
    if report.started:
        output.line(f"  started        {', '.join(report.started)}")
    if report.outcome is not None:
        summary = report.outcome.plan["summary"]
        counts = ", ".join(f"{summary[key]} {word}" for key, word in _COUNTS)
        output.line(f"  configuration  version {report.outcome.target.version} ({counts}), {report.receipts}")
    output.line(f"  proxy          {state.proxy_url}")
    output.line(f"  control plane  {state.address} (API at {state.address}/docs)")
    output.line(f"  node status    http://127.0.0.1:{state.ports['status']}/status")
    if state.simulated:
        output.line(f"  simulator      http://127.0.0.1:{state.ports['simulator']}")
    output.line()
    output.raw(export_lines(state))
    if wish.apply and wish.file is None:
        _show_first_steps(output, state)


_COUNTS = (("creating", "created"), ("updating", "updated"), ("deleting", "deleted"))


def recipe_command() -> str:
    """How this command is called here: by its name where the shell finds it, else by where it lies."""
    ours = Path(sys.argv[0]).absolute()
    if shutil.which(ours.name) == str(ours):
        return ours.name
    return str(ours.relative_to(Path.cwd()) if ours.is_relative_to(Path.cwd()) else ours)


def _show_first_steps(output: Output, state: StackState) -> None:
    recipe = recipes.load(state.name)
    folder = recipes.folder_of(state.name)
    prompt = shlex.quote(f"@{folder / recipe.prompts[0]}")
    headers = "".join(f" -H {shlex.quote(f'{key}: {value}')}" for key, value in recipe.request.headers.items())
    output.line()
    output.raw(
        f"# a first question\ncurl -i {state.proxy_url}{recipe.request.path}{headers} "
        f"-H 'Content-Type: application/json' -d {prompt}\n"
        f"# both prompts: {recipe_command()} demo · numbers: {recipe_command()} analytics --by provider · "
        f"the end: {recipe_command()} down\n"
    )


def _report_down(output: Output, teardowns: list[Teardown], removed: bool, kept: bool) -> None:
    for teardown in teardowns:
        for line in teardown.done:
            output.line(line)
        for line in teardown.notes:
            output.notes(line)
    if removed:
        output.line("removed all state")
    elif not any(teardown.done for teardown in teardowns):
        output.line("nothing to do: only what is kept is there" if kept else "nothing to do: no stack is up")


def _show_stack(output: Output, stack: StackView) -> None:
    output.line(f"{stack.name}: {'up' if stack.is_up else 'not all is up'}, {stack.mode}, proxy at {stack.proxy_url}")
    output.table(("PROCESS", "STATE", "PID", "PORTS"), [_process_row(process) for process in stack.processes])
    if stack.problem:
        output.note(stack.problem)
    rows = [row for node in stack.nodes for row in node.rows()]
    if rows:
        output.line()
        output.table(("NODE", "STATE", "WORKER", "PID", "VERSION", "HASH"), rows)
    for node in stack.nodes:
        if node.error:
            output.note(f"node {node.label}: {node.error}")


def _process_row(process: ProcessView) -> tuple[str, ...]:
    return process.name, "running" if process.running else "dead", str(process.pid), ", ".join(map(str, process.ports))


# Finding


def _stack_name(name: str | None) -> str:
    name = name or recipes.DEFAULT
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise CliError(f"'{name}' cannot name a stack: use letters, digits, '-', '_' and '.'")
    return name


def one_stack(name: str | None) -> tuple[StackFolder, StackState]:
    """The stack of that name, or the only one that is up. Raises CliError."""
    found = [(folder, state) for folder, state in stacks(state_home()) if name in (None, state.name)]
    up_now = [pair for pair in found if pair[1].processes] or found
    if not up_now:
        raise CliError("no stack is up: recipe up starts one" if name is None else f"no stack '{name}': recipe status")
    if len(up_now) > 1:
        raise CliError(f"several stacks are up ({', '.join(state.name for _, state in up_now)}): say which")
    return up_now[0]
