"""Declarative files against a control plane: apply them, and check them without one."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cli.client import NO_CONSENT, Consent, ControlPlane
from cli.errors import ApiError, Faults
from cli.files import Declared
from cli.waiting import Target
from gateway_schema import content
from gateway_schema.base import canonical_id
from gateway_schema.document import FORMAT_VERSION, Declaration, Item, read_declaration
from gateway_schema.violations import Path, SchemaViolation, Violation, render_path

Mode = Literal["sync", "apply", "reset"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an apply answered: the plan, and what was written when it was committed."""

    plan: dict[str, Any]
    committed: bool
    target: Target

    @property
    def changes(self) -> int:
        return int(self.plan["summary"]["total"])


def apply_declared(
    plane: ControlPlane,
    control_plane_id: str,
    declared: Declared,
    select_tags: Sequence[str],
    mode: Mode,
    *,
    commit: bool,
    consent: Consent = NO_CONSENT,
) -> Outcome:
    """Send a whole document. Raises Faults with `file:line` of everything that the control plane refuses."""
    with _led_to_lines(declared):
        return outcome_of(plane.apply(control_plane_id, declared.document, select_tags, mode, commit, consent))


def save_plan(
    plane: ControlPlane, control_plane_id: str, declared: Declared, select_tags: Sequence[str], adopt: bool
) -> dict[str, Any]:
    """Have the control plane make and keep the plan of a sync. Raises Faults with `file:line`."""
    with _led_to_lines(declared):
        return plane.save_plan(control_plane_id, declared.document, select_tags, adopt)


def reset_entities(
    plane: ControlPlane,
    control_plane_id: str,
    select_tags: Sequence[str],
    *,
    commit: bool,
    consent: Consent = NO_CONSENT,
) -> Outcome:
    """Delete what carries all of the tags; everything, when there are none."""
    nothing = {"_format_version": FORMAT_VERSION}
    with told_apart():
        return outcome_of(plane.apply(control_plane_id, nothing, select_tags, "reset", commit, consent))


@contextlib.contextmanager
def _led_to_lines(declared: Declared) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if not error.errors:
            raise
        raise Faults([_located(fault, declared) for fault in error.errors]) from None


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """Where there is no file to lead to: every fault by the entity it is about."""
    try:
        yield
    except ApiError as error:
        if not error.errors:
            raise
        raise Faults([f"{fault.get('entity')}: {fault.get('message')}" for fault in error.errors]) from None


def outcome_of(answer: Mapping[str, Any]) -> Outcome:
    target = Target(int(answer.get("version") or 0), str(answer.get("hash") or ""))
    return Outcome(dict(answer["plan"]), bool(answer.get("committed")), target)


def _located(fault: dict[str, Any], declared: Declared) -> str:
    path, also = _path(fault.get("path")), _path(fault.get("also"))
    entity, name, message = (str(fault.get(key) or "") for key in ("entity", "field", "message"))
    if also and message.endswith(shown := render_path(also)):
        message = message.removesuffix(shown) + declared.place(also)
    if f"{name}:" in message:
        name = ""  # The message says itself which field it means.
    return ": ".join(part for part in (declared.place(path), entity, name, message) if part)


def _path(value: Any) -> list[str | int]:
    return [part for part in value if isinstance(part, str | int)] if isinstance(value, list) else []


# Checking without a control plane


def check(declared: Declared, select_tags: Sequence[str] = ()) -> list[str]:
    """Every fault that can be seen in the files alone, as `file:line: what`."""
    try:
        declaration = read_declaration(declared.document, select_tags)
    except SchemaViolation as error:
        return [f"{declared.place(violation.path)}: {violation}" for violation in error.violations]
    return [*_item_faults(declaration, declared), *_duplicates(declaration, declared)]


def control_plane_name(declared: Declared) -> str | None:
    """The control plane that a document is for, if it says so."""
    konnect = declared.document.get("_konnect")
    if not isinstance(konnect, dict):
        return None
    name = konnect.get("control_plane_name") or konnect.get("runtime_group_name")
    return name if isinstance(name, str) else None


def _item_faults(declaration: Declaration, declared: Declared) -> Iterator[str]:
    for item in declaration.items:
        for violation in _item_violations(item):
            where = declared.place((*item.path, *violation.path))
            yield f"{where}: {item.type.kind} {item.label}: {violation}"


def _item_violations(item: Item) -> Iterator[Violation]:
    """What a control plane would say, as far as the item alone tells: references lead somewhere, for all we know."""
    given = item.body.get("id")
    if given is not None and not (isinstance(given, str) and canonical_id(given)):
        yield Violation(("id",), "expected a valid UUID")
    references = {name: {"name": ref if isinstance(ref, str) else ref.label} for name, ref in item.references.items()}
    row, written = item.type, content.written_form(item.type, {**item.body, **references})
    try:
        # As if it were there already: what only counts when something is new, nobody can tell from the file.
        complete = content.complete(row, content.admitted(row, written, written))
    except SchemaViolation as error:
        yield from error.violations
    else:
        missing = content.unsaid(row, complete)
        yield from missing
        if not missing and given is None and (lost := content.unrecognisable(row, written)):
            yield lost


def _duplicates(declaration: Declaration, declared: Declared) -> Iterator[str]:
    """Entities of one kind that share an id or the name by which they are known."""
    seen: dict[tuple[str, str, str], Path] = {}
    for item in declaration.items:
        for key in ("id", *item.type.match):
            value = item.body.get(key)
            if not isinstance(value, str):
                continue
            identity = (item.type.name, key, _canonical(value) if key == "id" else value)
            first = seen.setdefault(identity, item.path)
            if first is not item.path:
                where = declared.place(item.path)
                yield f"{where}: {item.type.kind} {item.label}: the same {key} as at {declared.place(first)}"


def _canonical(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return value
