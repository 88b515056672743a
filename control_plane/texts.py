"""Texts that come in over the wire, made fit to be stored and to be logged."""

from __future__ import annotations

import itertools
import unicodedata


def clean(text: str, length: int) -> str:
    """Short enough for its column, on one line, and with nothing in it that acts on a terminal.

    Control characters are written as escapes, so that no text can pass for a line of the log; so are those that end
    lines or turn the direction of writing. NUL, which PostgreSQL cannot store, is left out.
    """
    text = text[:length]
    return text if text.isprintable() else text.translate(_ESCAPES)[:length]


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


_CONTROLS = (chr(code) for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc")
_SEPARATORS = "\u2028\u2029"
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_ESCAPES = str.maketrans(
    {character: _escape(character) for character in itertools.chain(_CONTROLS, _SEPARATORS, _DIRECTIONS)} | {"\0": ""}
)
