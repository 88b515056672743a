"""Texts of others made fit to be shown: what a terminal would obey, or take for the end of a line, is escaped."""

from __future__ import annotations

import re

_UNFIT = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069]")
"""Controls, what separates lines and paragraphs, and what turns the direction of writing."""

_LONG = re.compile(r"'([^'\n]{100})[^'\n]+(')|(\S{100})\S{200,}()")
"""What is quoted and long, or longer than any path or address."""


def one_line(text: str, keeping: str = "") -> str:
    """The text on one line, as it is read from left to right."""
    return _UNFIT.sub(lambda found: found[0] if found[0] in keeping else _escaped(ord(found[0])), text)


def unbroken(text: str) -> str:
    """A part of a message of several lines that must not begin one. All else is left to be masked first."""
    return text.replace("\n", "\\n")


def shortened(text: str) -> str:
    """A message in which names are no longer than a reader needs to know which are meant."""
    return _LONG.sub(lambda found: f"'{found[1]}…'" if found[1] else f"{found[3]}…", text)


def _escaped(code: int) -> str:
    return {10: "\\n", 13: "\\r"}.get(code) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
