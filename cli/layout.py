"""What a local stack consists of: which processes, with which settings, on which ports. Decides, starts nothing."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from cli import recipes
from cli.certificates import pair_in
from cli.errors import Faults
from cli.processes import Spec
from cli.recipes import Recipe
from cli.state import StackFolder, StackState

CONTROL_PLANE, SIMULATOR, NODE = "control-plane", "simulator", "node"
START_ORDER = (CONTROL_PLANE, SIMULATOR, NODE)
STOP_ORDER = (NODE, SIMULATOR, CONTROL_PLANE)
"""The node goes first, so that it can still hand its last analytics in."""

DEFAULT_PORTS: Mapping[str, int] = {
    "proxy": 8000,
    "control-plane": 8001,
    "grpc": 8005,
    "status": 8100,
    "simulator": 9000,
}


@dataclass(frozen=True, slots=True)
class Wish:
    """What the flags of `up` say; None (and missing ports): as before, else the default."""

    name: str
    file: str | None = None
    control_plane_name: str | None = None
    simulate: bool | None = None
    workers: int | None = None
    ports: Mapping[str, int] = field(default_factory=dict)
    apply: bool = True
    wait_timeout: float = 60.0


def find_recipe(wish: Wish) -> Recipe | None:
    """The recipe of the wish; None for a stack that runs a file only. Raises CliError for an unknown name."""
    return None if wish.file and wish.name not in recipes.names() else recipes.load(wish.name)


def draft(wish: Wish, recipe: Recipe | None, before: StackState | None, environment: Mapping[str, str]) -> StackState:
    """The state that the stack shall have: what was asked for, else what it had, else the defaults.

    Raises Faults that name every missing variable, when real providers are to be asked.
    """
    old = before or StackState(wish.name)
    state = StackState(
        name=wish.name,
        control_plane_name=wish.control_plane_name or old.control_plane_name or _control_plane_name(wish, recipe),
        control_plane_id=old.control_plane_id,
        select_tags=list(old.select_tags) or _expected_tags(wish, recipe, old.applied),
        applied=old.applied,
        simulated=_is_simulated(wish, recipe, environment, old.values),
        workers=wish.workers or old.workers,
        ports={**DEFAULT_PORTS, **old.ports, **wish.ports},
        token=old.token or f"kpat_{secrets.token_urlsafe(32)}",
        values=dict(old.values),
        processes=dict(old.processes),
    )
    if state.simulated and recipe is not None:
        for variable in recipe.credentials():
            state.values.setdefault(variable.name, recipes.CREDENTIALS[variable.simulated or "bearer-token"]())
    elif recipe is not None and wish.apply and not wish.file:
        _check_live(recipe, environment)
    return state


def _control_plane_name(wish: Wish, recipe: Recipe | None) -> str:
    return recipe.control_plane_name if recipe else wish.name


def _expected_tags(wish: Wish, recipe: Recipe | None, applied: bool) -> list[str]:
    """Of what somebody else will apply: most likely the recipe's file, where no file without tags was applied."""
    return [] if recipe is None or wish.apply or applied else recipes.select_tags_of(wish.name, recipe)


def _is_simulated(
    wish: Wish, recipe: Recipe | None, environment: Mapping[str, str], made_up: Mapping[str, str]
) -> bool:
    """As asked; else simulated unless the environment holds a credential for a real provider.

    The made-up ones are not for real providers, and may well be exported: `recipe env` prints them.
    """
    if wish.simulate is not None:
        return wish.simulate
    if recipe is None:
        return False
    names = [variable.name for variable in recipe.credentials()]
    given = any(environment.get(name) not in (None, "", made_up.get(name)) for name in names)
    return not given or recipe.is_made_up(environment)


def _check_live(recipe: Recipe, environment: Mapping[str, str]) -> None:
    values = recipe.values(environment, {})
    missing = [variable for variable in recipe.variables if variable.name not in values]
    if missing:
        raise Faults(
            [
                "real providers need credentials, and some are not exported (--simulate runs without any):",
                *(f"  {variable.name}  {variable.description}" for variable in missing),
            ]
        )


def file_environment(state: StackState, recipe: Recipe | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the stack's file is rendered with."""
    if recipe is None:
        return dict(environment)
    return {**environment, **recipe.values(environment, state.values if state.simulated else {})}


def specs(state: StackState, folder: StackFolder, recipe: Recipe | None, environment: Mapping[str, str]) -> list[Spec]:
    """The processes of a stack, in the order in which they start."""
    found = [_control_plane(state, folder)]
    if state.simulated:
        found.append(_simulator(state, folder, recipe, environment))
    return [*found, _node(state, folder)]


def _control_plane(state: StackState, folder: StackFolder) -> Spec:
    ports = state.ports
    return _spec(
        CONTROL_PLANE,
        folder,
        ("-m", "control_plane"),
        {
            "TANDEM_STATE_DIR": str(folder.control_plane),
            "TANDEM_HTTP_HOST": "127.0.0.1",
            "TANDEM_HTTP_PORT": str(ports["control-plane"]),
            "TANDEM_GRPC_HOST": "127.0.0.1",
            "TANDEM_GRPC_PORT": str(ports["grpc"]),
            "TANDEM_ADMIN_TOKEN": state.token,
        },
        {"--control-plane-port": ports["control-plane"], "--grpc-port": ports["grpc"]},
    )


def _simulator(state: StackState, folder: StackFolder, recipe: Recipe | None, environment: Mapping[str, str]) -> Spec:
    port = state.ports["simulator"]
    values = file_environment(state, recipe, environment)
    told = {
        variable.simulator_variable: values[variable.name]
        for variable in (recipe.variables if recipe else ())
        if variable.simulator_variable and variable.name in values
    }
    return _spec(SIMULATOR, folder, ("-m", "cli.simulator", "--port", str(port)), told, {"--simulator-port": port})


def _node(state: StackState, folder: StackFolder) -> Spec:
    ports, pair = state.ports, pair_in(folder.node)
    environment = {
        "TANDEM_STATE_DIR": str(folder.node),
        "TANDEM_CONTROL_PLANE": f"127.0.0.1:{ports['grpc']}",
        "TANDEM_CERTIFICATE": str(pair.certificate),
        "TANDEM_CERTIFICATE_KEY": str(pair.key),
        "TANDEM_CONTROL_PLANE_CA": str(folder.control_plane / "ca.pem"),
        "TANDEM_PROXY_PORT": str(ports["proxy"]),
        "TANDEM_STATUS_PORT": str(ports["status"]),
        "TANDEM_WORKERS": str(state.workers),
    }
    if state.simulated:
        simulator = f"http://127.0.0.1:{ports['simulator']}"
        environment["OPENAI_BASE_URL"] = f"{simulator}/v1"
        environment["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] = simulator
    listens = {"--proxy-port": ports["proxy"], "--status-port": ports["status"]}
    return _spec(NODE, folder, ("-m", "data_plane", "agent"), environment, listens)


def _spec(
    name: str, folder: StackFolder, arguments: tuple[str, ...], environment: Mapping[str, str], ports: Mapping[str, int]
) -> Spec:
    mark = mark_of(folder, name)
    return Spec(name, (sys.executable, *arguments), environment, folder.logs / f"{name}.log", mark, ports)


def mark_of(folder: StackFolder, name: str) -> str:
    """What the environment of a process of this stack carries."""
    return f"{folder.path}:{name}"
