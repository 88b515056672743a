"""Lines of the log: one for each event, facts that can be read and taken apart."""

from __future__ import annotations

import logging

import pytest

from data_plane.logs import LineFormatter, facts


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "plain"),
        (7, "7"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a "quote"', '"a \\"quote\\""'),
        ("82cd… (expired)", '"82cd… (expired)"'),
        ("a\nb", '"a\\nb"'),
        ("\x1b[2J", '"\\u001b[2J"'),
    ],
)
def test_a_fact_stays_on_its_line_and_is_quoted_where_it_must_be(value: object, written: str) -> None:
    assert facts(reason=value) == f"reason={written}"


def test_a_message_of_several_lines_is_one_line() -> None:
    record = logging.LogRecord("data_plane.x", logging.WARNING, __file__, 1, "first\nsecond", None, None)
    line = LineFormatter("agent").format(record)
    assert "\n" not in line
    assert line.endswith("data_plane.x: first\\nsecond")
