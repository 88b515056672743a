from __future__ import annotations

from pathlib import Path

from cli.logs import appended


def test_only_whole_new_lines_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    path.write_text("old\n")
    position = path.stat().st_size
    with path.open("a") as log:
        log.write("one\ntw")
    lines, position = appended(path, position)
    assert lines == ["one"]
    with path.open("a") as log:
        log.write("o\n")
    lines, position = appended(path, position)
    assert lines == ["two"]
    assert appended(path, position) == ([], position)


def test_a_log_that_was_put_aside_is_followed_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    path.write_text("new\n")
    assert appended(path, 1000) == (["new"], 4)
    path.unlink()
    assert appended(path, 4) == ([], 0)
