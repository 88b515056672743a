from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import files
from cli.errors import CliError, Faults
from cli.files import read_files

File = Callable[..., Path]


def faults_of(*paths: Path, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(Faults) as caught:
        read_files([str(path) for path in paths], env or {})
    return caught.value.faults


def test_a_missing_variable_names_variable_file_and_line(file: File) -> None:
    path = file('_format_version: "3.0"\nservices:\n  - name: ${{ env "DECK_NAME" }}\n')
    assert faults_of(path) == [f"{path}:3: environment variable 'DECK_NAME' is not set (export DECK_NAME=…)"]


def test_faults_of_all_files_are_told_at_once(file: File) -> None:
    one, two = file("a: ${{ env `DECK_A` }}", "1.yaml"), file("a: [", "2.yaml")
    found = faults_of(one, two)
    assert found[0].startswith(f"{one}:1: ")
    assert found[1].startswith(f"{two}:1:")


def test_wrong_yaml_names_file_line_and_column(file: File) -> None:
    path = file("a: 1\nb: %x\n")
    assert faults_of(path)[0].startswith(f"{path}:2:4: not YAML")


def test_a_value_that_breaks_the_yaml_is_not_shown_but_explained(file: File) -> None:
    path = file("a: 1\nb: ${{ env `DECK_SECRET` }}\n")
    (found,) = faults_of(path, env={"DECK_SECRET": "%secret: value"})
    assert found.startswith(f"{path}:2: not YAML")
    assert "put quotes around it" in found
    assert "secret: value" not in found


def test_lines_are_the_files_own_behind_a_value_of_several_lines(file: File) -> None:
    path = file("a: |\n  ${{ env `DECK_CERT` | indent 2 }}\nb: 1\nb: 2\n")
    (found,) = faults_of(path, env={"DECK_CERT": "x\ny\nz"})
    assert found == f"{path}:4:1: duplicate key 'b' (the first one is on line 3)"


def test_json_files_are_files(file: File) -> None:
    path = file('{"_format_version": "3.0", "services": [{"name": "a"}]}', "kong.json")
    assert read_files([str(path)], {}).document["services"] == [{"name": "a"}]


def test_standard_input_is_read_when_nothing_is_named() -> None:
    for arguments in ([], ["-"]):
        declared = read_files(arguments, {}, io.BytesIO(b"services: []\n"))
        assert declared.place(("services",)) == "<stdin>:1"


def test_several_inputs_are_merged_and_keep_their_places(file: File, tmp_path: Path) -> None:
    one = file("_format_version: '3.0'\n_info: {select_tags: [a]}\nservices:\n  - name: one\n", "in/1.yaml")
    two = file(
        "_info: {select_tags: [b], defaults: {}}\n\nservices:\n  - name: two\n    routes:\n      - name: r\n",
        "in/2.yml",
    )
    file("ignored", "in/readme.txt")
    declared = read_files([str(tmp_path / "in")], {})
    assert [service["name"] for service in declared.document["services"]] == ["one", "two"]
    assert declared.document["_info"] == {"select_tags": ["a", "b"], "defaults": {}}
    assert declared.place(("services", 0, "name")) == f"{one}:4"
    assert declared.place(("services", 1, "routes", 0, "paths")) == f"{two}:6"
    assert declared.place(("_info", "defaults")) == f"{two}:1"
    assert declared.place(("routes",)) == f"{one}, {two}"


def test_merging_changes_no_part_that_an_alias_shares(file: File) -> None:
    one = file("_plugin_configs: &p {a: {x: 1}}\nother: *p\n", "1.yaml")
    two = file("_plugin_configs: {b: {z: 2}}\n", "2.yaml")
    document = read_files([str(one), str(two)], {}).document
    assert document["_plugin_configs"] == {"a": {"x": 1}, "b": {"z": 2}}
    assert document["other"] == {"a": {"x": 1}}


def test_the_first_of_two_single_values_wins(file: File) -> None:
    one, two = file("_transform: true\n", "1.yaml"), file("_transform: false\n", "2.yaml")
    assert read_files([str(one), str(two)], {}).document == {"_transform": True}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("services: [{name: a}]", "services: {a: b}", "services is a map here, but a list in {one}:2"),
        ("services: {a: b}", "services: [{name: a}]", "services is a list here, but a map in {one}:2"),
        ("services: text", "services: [{name: a}]", "services is a list here, but a single value in {one}:2"),
        ("_info: {select_tags: [a]}", "_info: {select_tags: b}", "_info.select_tags is a single value here"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_both_places(file: File, first: str, second: str, message: str) -> None:
    one, two = file(f"_transform: true\n{first}\n", "1.yaml"), file(f"\n\n{second}\n", "2.yaml")
    (found,) = faults_of(one, two)
    assert found.startswith(f"{two}:3: {message.format(one=one)}")


@pytest.mark.parametrize("texts", [("services:", "services: [{name: a}]"), ("services: [{name: a}]", "services:")])
def test_what_is_empty_in_one_file_comes_from_the_other(file: File, texts: tuple[str, str]) -> None:
    one, two = file(f"_transform: true\n{texts[0]}\n", "1.yaml"), file(f"{texts[1]}\n", "2.yaml")
    assert read_files([str(one), str(two)], {}).document["services"] == [{"name": "a"}]


def test_files_for_two_control_planes_do_not_go_together(file: File) -> None:
    one, two = (
        file("_konnect: {control_plane_name: a}\n", "1.yaml"),
        file("_konnect: {control_plane_name: b}\n", "2.yaml"),
    )
    (found,) = faults_of(one, two)
    assert found == f"{two}:1: _konnect.control_plane_name is 'b' here, but 'a' in {one}:1"


@pytest.mark.parametrize("text", ["", "# only words\n", "---\n", "{}"])
def test_an_empty_file_is_an_error(file: File, text: str) -> None:
    with pytest.raises(CliError, match="empty"):
        read_files([str(file(text))], {})


@pytest.mark.parametrize("text", ["- a\n", "text\n", "5\n"])
def test_what_is_no_map_is_no_declarative_file(file: File, text: str) -> None:
    assert "expected a declarative document" in faults_of(file(text))[0]


def test_what_cannot_be_read_is_named(file: File, tmp_path: Path) -> None:
    with pytest.raises(CliError, match=r"nowhere\.yaml: cannot be read: No such file"):
        read_files([str(tmp_path / "nowhere.yaml")], {})
    (tmp_path / "hollow").mkdir()
    with pytest.raises(CliError, match=r"no \.yaml, \.yml or \.json file"):
        read_files([str(tmp_path / "hollow")], {})
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(CliError, match=r"latin\.yaml:2: not UTF-8 text \(byte 0xe9\)"):
        read_files([str(tmp_path / "latin.yaml")], {})


def test_a_huge_file_is_refused_unread(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 10)
    with pytest.raises(CliError, match="which is more than a declarative file may have"):
        read_files([str(file("a: 1234567890\n"))], {})


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfservices: []\n")
    assert read_files([str(path)], {}).document == {"services": []}
