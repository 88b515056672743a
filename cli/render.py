"""Plans as people and programs read them: decK's text lines and decK's JSON.

Everything here takes data and gives lines; what must be masked is masked before it is laid out.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.masking import Mask

Line = tuple[str, str]
"""(text, style); the style is empty for plain."""

_STYLES = {"creating": "green", "updating": "yellow", "deleting": "red"}
_VERBS = ("creating", "updating", "deleting")
_ELIDED = "…"


def plan_lines(plan: Mapping[str, Any], mask: Mask) -> Iterator[Line]:
    """A plan in decK's text form: one line per change, a field diff under each update, the summary."""
    changes = plan.get("changes") or {}
    for verb in _VERBS:
        for change in changes.get(verb) or []:
            yield from _change_lines(verb, change, mask)
    yield from summary_lines(plan.get("summary") or {})


def summary_lines(summary: Mapping[str, Any]) -> Iterator[Line]:
    yield "Summary:", ""
    for key, word in zip(_VERBS, ("Created", "Updated", "Deleted"), strict=True):
        yield f"  {word}: {summary.get(key, 0)}", ""


def plan_json(plan: Mapping[str, Any], mask: Mask, errors: Sequence[str] = ()) -> dict[str, Any]:
    """A plan in the shape of decK's --json-output."""
    changes, summary = plan.get("changes") or {}, plan.get("summary") or {}
    counts = {verb: int(summary.get(verb, 0)) for verb in _VERBS}
    return {
        "changes": {verb: [_json_change(change, mask) for change in changes.get(verb) or []] for verb in _VERBS},
        "summary": {**counts, "total": int(summary.get("total", sum(counts.values())))},
        "warnings": [mask.text(warning) for warning in plan.get("warnings") or []],
        "errors": [mask.text(error) for error in errors],
    }


def _json_change(change: Mapping[str, Any], mask: Mask) -> dict[str, Any]:
    body = change.get("body") or {}
    return {
        "name": mask.text(str(change["name"])),
        "kind": change["kind"],
        "body": {"new": mask.data(body.get("new")), "old": mask.data(body.get("old"))},
    }


def _change_lines(verb: str, change: Mapping[str, Any], mask: Mask) -> Iterator[Line]:
    head = f"{verb} {change['kind']} {mask.text(str(change['name']))}"
    if verb != "updating":
        yield head, _STYLES[verb]
        return
    body = change.get("body") or {}
    old, new = mask.data(body.get("old") or {}), mask.data(body.get("new") or {})
    if old == new:
        yield f"{head}  (the difference is in a masked value)", _STYLES[verb]
        return
    yield f"{head}  {{", _STYLES[verb]
    yield from _map_lines(old, new, 1)
    yield " }", ""


# Field diffs: what is equal is left out, what encloses a difference is shown.


def _map_lines(old: Mapping[str, Any], new: Mapping[str, Any], depth: int) -> Iterator[Line]:
    elided = False
    for key in sorted(old.keys() | new.keys()):
        if key in old and key in new and old[key] == new[key]:
            if not elided:
                yield _line(" ", depth, _ELIDED)
            elided = True
            continue
        elided = False
        label = f"{json.dumps(key, ensure_ascii=False)}: "
        if key not in new:
            yield from _value_lines("-", depth, label, old[key])
        elif key not in old:
            yield from _value_lines("+", depth, label, new[key])
        else:
            yield from _pair_lines(old[key], new[key], depth, label)


def _pair_lines(old: Any, new: Any, depth: int, label: str) -> Iterator[Line]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield _line(" ", depth, f"{label}{{")
        yield from _map_lines(old, new, depth + 1)
        yield _line(" ", depth, "}")
    elif isinstance(old, list) and isinstance(new, list):
        yield _line(" ", depth, f"{label}[")
        yield from _list_lines(old, new, depth + 1)
        yield _line(" ", depth, "]")
    else:
        yield from _value_lines("-", depth, label, old)
        yield from _value_lines("+", depth, label, new)


def _list_lines(old: Sequence[Any], new: Sequence[Any], depth: int) -> Iterator[Line]:
    left, right = ([json.dumps(item, sort_keys=True) for item in items] for items in (old, new))
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag == "equal":
            yield _line(" ", depth, _ELIDED)
            continue
        pairs = min(i2 - i1, j2 - j1)
        for offset in range(pairs):
            yield from _pair_lines(old[i1 + offset], new[j1 + offset], depth, "")
        for item in old[i1 + pairs : i2]:
            yield from _value_lines("-", depth, "", item)
        for item in new[j1 + pairs : j2]:
            yield from _value_lines("+", depth, "", item)


def _value_lines(sign: str, depth: int, label: str, value: Any) -> Iterator[Line]:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    for number, line in enumerate(text.split("\n")):
        yield _line(sign, depth, (label if number == 0 else "") + line)


def _line(sign: str, depth: int, text: str) -> Line:
    return f"{sign}{'  ' * depth}{text}", {"+": "green", "-": "red"}.get(sign, "")
