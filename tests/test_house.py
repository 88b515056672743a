"""The rules of the house: who may import whom, stubs as their sources, plugins complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_plane.plugins import HANDLERS
from gateway_schema.plugins import PLUGINS

ROOT = Path(__file__).parent.parent


def test_the_import_contract_holds() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_the_stubs_are_those_of_the_protocol(tmp_path: Path) -> None:
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "proto").glob("*.proto"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-Iproto"),
            *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *sources),
        ],
        cwd=ROOT,
        check=True,
    )
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {name: (ROOT / "gateway_schema/wire" / name).read_text() for name in made}, "run `make proto`"


def test_every_plugin_has_a_handler_and_every_handler_a_configuration() -> None:
    assert set(HANDLERS) == set(PLUGINS)


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_every_field_of_a_plugin_is_described(name: str) -> None:
    undescribed = [field for field, info in PLUGINS[name].model_fields.items() if not info.description]
    assert not undescribed


@pytest.mark.parametrize("package", ["gateway_schema", "control_plane", "data_plane", "cli", "migrations"])
def test_every_module_says_what_it_is_for(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*.py")
        if "_pb2" not in path.name and not path.read_text().lstrip().startswith(('"""', "#!"))
    ]
    assert not silent
