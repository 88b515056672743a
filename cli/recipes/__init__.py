"""Recipes: a declarative file as its users have it, and what is needed to run and show it.

Each is a folder here: `recipe.yaml` describes the user's file that lies next to it, byte for byte.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from cli.errors import CliError
from gateway_schema.base import Record
from gateway_schema.violations import SchemaViolation, nearest, parse

FOLDER = Path(__file__).parent
DEFAULT = "model-based-routing"

_AWS_ID = string.ascii_uppercase + "234567"
_AWS_SECRET = string.ascii_letters + string.digits + "+/"


def _draw(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


_MADE_UP = "Bearer sk-simulated-"

CREDENTIALS: Mapping[str, Callable[[], str]] = {
    "bearer-token": lambda: f"{_MADE_UP}{secrets.token_hex(24)}",
    "aws-access-key-id": lambda: f"AKIA{_draw(_AWS_ID, 16)}",
    "aws-secret-access-key": lambda: _draw(_AWS_SECRET, 40),
}
"""Kinds of credentials that can be made up for the simulated providers."""


class Variable(Record):
    """An environment variable that the recipe's file reads."""

    name: str
    description: str
    default: str | None = None
    secret: bool = False
    """A provider credential: no default; it is made up when the providers are simulated."""
    simulated: Literal["bearer-token", "aws-access-key-id", "aws-secret-access-key"] | None = None
    simulator_variable: str | None = None
    """By which the simulator is told the value."""


class Request(Record):
    """How a prompt is sent through the gateway."""

    path: str
    headers: dict[str, str] = Field(default_factory=dict)


class Tier(Record):
    """A group of answers that the recipe tells apart."""

    name: str
    provider: str
    model_variable: str


class Recipe(Record):
    """What `recipe.yaml` says."""

    title: str
    description: str
    file: str
    control_plane_name: str
    variables: list[Variable] = Field(default_factory=list)
    request: Request
    prompts: list[str] = Field(default_factory=list)
    tiers: list[Tier] = Field(default_factory=list)

    def credentials(self) -> list[Variable]:
        return [variable for variable in self.variables if variable.secret]

    def is_made_up(self, environment: Mapping[str, str]) -> bool:
        """Whether the environment's credentials are those of some simulator: `recipe env` prints all of them."""
        return any(environment.get(variable.name, "").startswith(_MADE_UP) for variable in self.credentials())

    def secrets(self, environment: Mapping[str, str]) -> list[str]:
        """The provider credentials that the environment holds."""
        return [environment[variable.name] for variable in self.credentials() if environment.get(variable.name)]

    def values(self, environment: Mapping[str, str], made_up: Mapping[str, str]) -> dict[str, str]:
        """The value of each variable that has one: made up, else of the environment, else the default."""
        values = {v.name: made_up.get(v.name) or environment.get(v.name) or v.default for v in self.variables}
        return {name: value for name, value in values.items() if value}


def names() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob("*/recipe.yaml"))


def folder_of(name: str) -> Path:
    return FOLDER / name


def select_tags(document: Mapping[str, Any]) -> list[str]:
    """The tags by which a file's entities are known."""
    info = document.get("_info")
    tags = info.get("select_tags") if isinstance(info, Mapping) else None
    return [str(tag) for tag in tags or []]


def select_tags_of(name: str, recipe: Recipe) -> list[str]:
    """The same of a recipe's own file. Its expressions are quoted texts to YAML, so it can be read without values."""
    return select_tags(yaml.safe_load((folder_of(name) / recipe.file).read_text()))


def load(name: str) -> Recipe:
    """The recipe of that name. Raises CliError that names the nearest, or all."""
    if name not in names():
        hint = nearest(name, names())
        suggestion = f"did you mean '{hint}'?" if hint else f"there are: {', '.join(names())}"
        raise CliError(f"no recipe '{name}': {suggestion} (recipe list shows them; --file runs a file of your own)")
    path = folder_of(name) / "recipe.yaml"
    try:
        return parse(Recipe, yaml.safe_load(path.read_text()))
    except (SchemaViolation, yaml.YAMLError) as error:
        raise CliError(f"{path}: {error}") from None
