"""Keeping secrets out of everything that is printed: values that came from the environment become `[masked]`.

A value of eight characters or more is masked wherever it appears, also inside a longer word; a shorter one only where
it stands as a word, or else `1` would deface everything. Numbers are compared as numbers. `true`, `false` and `null`
are never masked: they tell nothing. Data is masked before it is laid out, so that quoting cannot hide a value.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cli.documents import resolve
from cli.templates import PREFIX
from cli.texts import unbroken
from gateway_schema.registry import ENTITY_TYPES

MASKED = "[masked]"
_WHOLE_WORD_BELOW = 8

SETTINGS = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("KONNECT_ADDR", "KONNECT_CONTROL_PLANE_NAME", "KONNECT_TOKEN_FILE", "SELECT_TAG", "TIMEOUT", "YES"),
        *("JSON_OUTPUT", "NON_ZERO_EXIT_CODE", "ANALYTICS", "NO_COLOR", "VERBOSE", "CONFIG"),
    )
)
"""DECK_ variables that say how the command works; they are not part of any file and no secrets."""


def environment_values(environment: Mapping[str, str]) -> list[str]:
    """The values of all DECK_ variables that files may use, the token's included."""
    return [value for name, value in environment.items() if name.startswith(PREFIX) and name not in SETTINGS]


class Mask:
    """Knows what must not be shown."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._texts: set[str] = set()
        self._numbers: set[float] = set()
        self._pattern: re.Pattern[str] | None = None
        self.add(*values)

    def add(self, *values: str) -> None:
        for value in values:
            self._texts.update(_forms(value))
            number = resolve(value.strip())
            if isinstance(number, int | float) and not isinstance(number, bool):
                self._numbers.add(number)
        alternatives = sorted(self._texts, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(_bounded, alternatives))) if alternatives else None

    def text(self, text: str) -> str:
        """A text with every known value masked, the longest first."""
        return self._pattern.sub(MASKED, text) if self._pattern else text

    def data(self, value: Any) -> Any:
        """JSON-like data with every known value masked, names of known fields excepted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self._key(key): self.data(member) for key, member in value.items()}
        if isinstance(value, list):
            return [self.data(member) for member in value]
        if isinstance(value, int | float) and not isinstance(value, bool) and value in self._numbers:
            return MASKED
        return value

    def _key(self, key: str) -> str:
        return key if key in _field_names() else self.text(key)


def _forms(value: str) -> set[str]:
    """The shapes in which a value can come out of a file: as it is, trimmed, line by line, unescaped, re-escaped."""
    forms = {value, value.strip(), " ".join(value.split())}
    forms.update(line.strip() for line in value.splitlines() if len(line.strip()) >= _WHOLE_WORD_BELOW)
    with contextlib.suppress(ValueError):  # Not the inside of a quoted text, so it never is read as one.
        forms.add(str(json.loads(f'"{value}"')))
    forms |= {value.replace("''", "'"), unbroken(value)}
    forms.update(
        [json.dumps(form)[1:-1] for form in forms] + [json.dumps(form, ensure_ascii=False)[1:-1] for form in forms]
    )
    return {form for form in forms if form.strip() and not _says_nothing(form)}


def _says_nothing(form: str) -> bool:
    meaning = resolve(form)
    return meaning is None or isinstance(meaning, bool)


def _bounded(text: str) -> str:
    pattern = re.escape(text)
    if len(text) >= _WHOLE_WORD_BELOW:
        return pattern
    before = r"(?<!\w)" if re.match(r"\w", text) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", text) else ""
    return before + pattern + after


@functools.cache
def _field_names() -> frozenset[str]:
    """The names of all fields of all entities and plugin configurations."""
    names: set[str] = set()
    rows = ENTITY_TYPES.values()
    for model in [*(row.model for row in rows), *(config for row in rows for config in row.configs.values())]:
        schema = model.model_json_schema()
        for part in [schema, *schema.get("$defs", {}).values()]:
            names.update(part.get("properties", {}))
    return frozenset(names)
