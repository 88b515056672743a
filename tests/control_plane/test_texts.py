"""Texts from the wire: short, harmless in a log, and otherwise what was sent."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from control_plane.texts import clean

_ANY = st.text(st.characters(exclude_categories=["Cs"]))
_HARMFUL = st.text(st.characters(categories=["Cc", "Zl", "Zp"], include_characters="\u202e\u2066"), min_size=1)


@given(_ANY, _HARMFUL, _ANY, st.integers(1, 40))
@example("", "\0" * 50, "", 40)
def test_what_is_left_is_one_line_short_enough_and_without_control_characters(
    before: str, harmful: str, after: str, length: int
) -> None:
    cleaned = clean(before + harmful + after, length)
    assert len(cleaned) <= length
    assert not set(cleaned) & set(harmful)
    assert len(cleaned.splitlines()) <= 1


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), max_size=40))
def test_what_can_be_printed_stays_as_it_is(text: str) -> None:
    assert clean(text, 40) == text


def test_an_escape_says_what_was_there() -> None:
    assert clean("host\r\n\x1b[2J\x9b1m\u202e\0", 64) == r"host\r\n\x1b[2J\x9b1m\u202e"
