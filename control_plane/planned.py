"""What a plan is, what it is called in words, and how it is shown: decK's JSON of a diff and what we add to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from control_plane.errors import StaleEntity
from control_plane.holdings import Holdings, Row
from control_plane.ownership import OwnerSet
from control_plane.secrets import mask
from gateway_schema import content
from gateway_schema.base import MASK, NEW_MASK, is_vault_reference
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import Path

ALARMING_DELETIONS = 10
ALARMING_SHARE = 0.3
"""A plan that deletes this many entities or more, and more than this share of those it governs, is probably a mistake
(an empty file, the wrong tags) and asks for `force`. octoDNS, whose idea this is, draws the line at 30 % of 10."""

Names = Mapping[str, Mapping[str, str]]
"""What people call entities, by kind and id: an id is unique within its kind only."""


@dataclass(slots=True)
class Plan:
    """Changes in the order in which they take effect."""

    creates: list[Row] = field(default_factory=list)
    updates: list[tuple[Row, Row]] = field(default_factory=list)
    deletes: list[Row] = field(default_factory=list)
    names: Names = field(default_factory=dict)
    """What people call the parents that changed rows refer to."""
    assigned: list[tuple[Row, OwnerSet]] = field(default_factory=list)
    """Entities that have another owner once the plan is carried out, with that owner."""
    adopted: list[tuple[Row, OwnerSet]] = field(default_factory=list)
    """Entities of other owners that the plan takes over, changes or deletes because it was told to, with that owner."""
    governed: int = 0
    """How many entities the plan could have deleted; 0 for one that deletes on purpose (a reset) or never."""

    def __bool__(self) -> bool:
        return bool(self.creates or self.updates or self.deletes)

    @property
    def counts(self) -> dict[str, int]:
        return {"creating": len(self.creates), "updating": len(self.updates), "deleting": len(self.deletes)}

    @property
    def alarm(self) -> str | None:
        """Why the plan should not be carried out unasked."""
        count = len(self.deletes)
        if not self.governed or count < ALARMING_DELETIONS or count <= ALARMING_SHARE * self.governed:
            return None
        share = round(100 * count / self.governed)
        return f"this would delete {count} of {self.governed} entities ({share} %)"

    def shown(self, include_secrets: bool = False) -> dict[str, Any]:
        """decK's JSON of a diff, secrets masked unless told otherwise. A deletion stands under `new`, as in decK."""
        one, pair = (_body, _bodies) if include_secrets else (_shown, _shown_pair)
        creating = [self._entry(row, one(row), None) for row in self.creates]
        updating = [self._entry(after, *pair(before, after)) for before, after in self.updates]
        deleting = [self._entry(row, one(row), None) for row in self.deletes]
        return {
            "changes": {"creating": creating, "updating": updating, "deleting": deleting},
            "summary": {**self.counts, "total": sum(self.counts.values())},
            "adopting": [
                {"name": title(row, self.names), "kind": row.type.kind, "owner": sorted(owner)}
                for row, owner in self.adopted
            ],
            "warnings": [self.alarm] if self.alarm else [],
        }

    def _entry(self, row: Row, new: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
        return {"name": title(row, self.names), "kind": row.type.kind, "body": {"new": new, "old": old}}


def title(row: Row, names: Names) -> str:
    """What decK calls an entity in its output: `rate-limiting for service billing`, `cors (global)`."""
    nesting = [name for name, parent in row.type.parents.items() if parent.nested_key]
    scopes = [(name, target) for name in nesting if (target := row.reference(name)) is not None]
    called = [f"{name.replace('_', '-')} {_called(row, name, target, names)}" for name, target in scopes]
    if row.type.is_link:
        return " in ".join(reversed(called))
    own = label(row)
    if row.type.name == "routes":
        return own
    if not scopes:
        return f"{own} (global)" if row.type.name == "plugins" else own
    return f"{own} for {' and '.join(called)}"


def _called(row: Row, field_name: str, target: str, names: Names) -> str:
    return names.get(row.type.parents[field_name].type, {}).get(target, target)


def label(row: Row) -> str:
    written = row.written
    for key in ("prefix", "name", "username", "custom_id", "target", "group", "kid", "subject_name"):
        if isinstance(written.get(key), str):
            return str(written[key])
    credential = written.get("key") if row.type.endpoint_key == "key" else None
    return _key_ending(credential) if isinstance(credential, str) else row.id


def _key_ending(key: str) -> str:
    """As much of a key as tells it from others without giving it away: the last five characters of a long one."""
    return f"…{key[-5:]}" if len(key) >= 20 else MASK


def _shown(row: Row) -> dict[str, Any]:
    return content.change_secrets(row.type, _body(row), mask)


def _shown_pair(before: Row, after: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    """New and old body. A secret that changed says so, or the difference would be invisible."""
    old, new = _body(before), _body(after)
    known = dict(content.secrets_of(before.type, old))
    shown: dict[str, Any] = content.change_secrets(after.type, new, mask)
    for path, text in content.secrets_of(after.type, new):
        if text != known.get(path) and not is_vault_reference(text):
            _put(shown, path, NEW_MASK)
    return shown, content.change_secrets(before.type, old, mask)


def _put(body: Any, path: Path, value: str) -> None:
    for key in path[:-1]:
        body = body[key]
    body[path[-1]] = value


def _bodies(before: Row, after: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    return _body(after), _body(before)


def _body(row: Row) -> dict[str, Any]:
    try:
        body = row.complete
    except StaleEntity:  # it goes, or is mended: as it was written, then
        body = row.written
    return {"id": row.id, **{key: value for key, value in body.items() if value is not None}}


def parent_names(rows: Iterable[Row], find: Callable[[str, str], Row | None]) -> Names:
    """What people call the parents of rows. `find` gives the row of a kind and an id, or None."""
    names: dict[str, dict[str, str]] = {}
    listed = list(rows)
    fresh = {(row.type.name, row.id): row for row in listed}
    for row in listed:
        for name, parent in row.type.parents.items():
            target, known = row.reference(name), names.setdefault(parent.type, {})
            if target is not None and target not in known:
                found = fresh.get((parent.type, target)) or find(parent.type, target)
                known[target] = label(found) if found else target
    return names


def row_changes(old: Holdings, new: Holdings) -> tuple[list[Row], list[tuple[Row, Row]], list[Row]]:
    """What was created, updated (as old and new) and deleted between two versions, in the order of a plan."""
    creates: list[Row] = []
    updates: list[tuple[Row, Row]] = []
    deletes: list[Row] = []
    for row_type in ENTITY_TYPES.values():
        before, after = old.of(row_type.name), new.of(row_type.name)
        if before is after:
            continue
        for entity_id, row in after.items():
            known = before.get(entity_id)
            if known is None:
                creates.append(row)
            elif known is not row and known.written != row.written:
                updates.append((known, row))
        deletes[:0] = [row for entity_id, row in before.items() if entity_id not in after]
    return creates, updates, deletes
