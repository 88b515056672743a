"""Desired minus existing: what must be created, updated and deleted so that a control plane holds what a file says.

Pure: takes values, gives a value. Everything that could go wrong is found here, before anything is written, and every
fault is reported at once, with its place in the document.

*Recognising.* An entity with an id in the file is the row with that id. One without is recognised by its natural key:
a service by its name, a plugin by its name and scopes. What is not recognised is new.

*Comparing.* Complete forms are compared, so writing a default out, or no longer, is not a change.

*Owning.* With select tags, only rows that carry all of them may be updated or deleted. To need another row is a
conflict that names it, and so is a deletion that would take such a row along.

*Order.* Kinds are created in the order of the registry's levels and deleted in the opposite one. Unique values that
wander between rows (a swap of names, a name taken over from a row that goes) need no order: the repository writes a
plan in one transaction and sets wandering values aside first. decK, which writes row by row, cannot do that.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from control_plane import content
from control_plane.errors import DocumentRefused, fault
from control_plane.holdings import Holdings, Row, unique_key
from control_plane.secrets import MASK, NEW_MASK, is_vault_reference, mask
from gateway_schema.document import Declaration, Item
from gateway_schema.registry import ENTITY_TYPES, EntityType, children_of
from gateway_schema.violations import Path, SchemaViolation, Violation, nearest, render_path

Mode = Literal["sync", "apply", "reset"]


@dataclass(slots=True)
class Plan:
    """Changes in the order in which they take effect."""

    creates: list[Row] = field(default_factory=list)
    updates: list[tuple[Row, Row]] = field(default_factory=list)
    deletes: list[Row] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)
    """What people call the parents that changed rows refer to, by id."""

    def __bool__(self) -> bool:
        return bool(self.creates or self.updates or self.deletes)

    def shown(self, include_secrets: bool = False) -> dict[str, Any]:
        """decK's JSON of a diff, secrets masked unless told otherwise. A deletion stands under `new`, as in decK."""
        one, pair = (_body, _bodies) if include_secrets else (_shown, _shown_pair)
        creating = [self._entry(row, one(row), None) for row in self.creates]
        updating = [self._entry(after, *pair(before, after)) for before, after in self.updates]
        deleting = [self._entry(row, one(row), None) for row in self.deletes]
        counts = {"creating": len(creating), "updating": len(updating), "deleting": len(deleting)}
        return {
            "changes": {"creating": creating, "updating": updating, "deleting": deleting},
            "summary": {**counts, "total": sum(counts.values())},
        }

    def _entry(self, row: Row, new: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
        return {"name": title(row, self.names), "kind": row.type.kind, "body": {"new": new, "old": old}}


def make_plan(
    holdings: Holdings,
    declaration: Declaration,
    *,
    mode: Mode,
    select_tags: Sequence[str] = (),
    now: int,
    new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
) -> Plan:
    """`apply` never deletes; `reset` deletes all that carries the tags, whatever the document says.

    Raises DocumentRefused with every fault.
    """
    planner = _Planner(holdings, frozenset(select_tags), now, new_id)
    if mode != "reset":
        planner.declare(declaration.items)
    if mode != "apply":
        planner.delete_undeclared()
    return planner.finish()


class _Planner:
    def __init__(self, holdings: Holdings, tags: frozenset[str], now: int, new_id: Callable[[], str]) -> None:
        self._holdings = holdings
        self._tags = tags
        self._now = now
        self._new_id = new_id
        self._plan = Plan()
        self._faults: list[dict[str, Any]] = []
        self._ids: dict[Item, str] = {}
        self._paths: dict[tuple[str, str], Item] = {}
        self._named: dict[tuple[str, str, str], str] = {}
        self._uses: list[tuple[Item, str, Row]] = []

    # -- what the document declares

    def declare(self, items: Sequence[Item]) -> None:
        by_type: dict[str, list[Item]] = {name: [] for name in ENTITY_TYPES}
        for item in items:
            by_type[item.type.name].append(item)
        for name, group in by_type.items():
            reserved = {str(item.body["id"]).lower() for item in group if item.body.get("id")}
            for item in group:
                self._declare(ENTITY_TYPES[name], item, reserved)

    def _declare(self, row: EntityType, item: Item, reserved: set[str]) -> None:
        references = self._references(row, item)
        if references is None:
            return
        body = {**item.body, **references} if references else item.body
        given = body.get("id")
        if given is not None and not _is_uuid(given):
            self._fault(item, Violation(("id",), "expected a valid UUID"))
            return
        before = self._recognise(row, body, reserved)
        entity_id = before.id if before else str(given).lower() if given else self._new_id()
        if (first := self._paths.setdefault((row.name, entity_id), item)) is not item:
            self._fault(item, Violation((), f"is declared twice: first at {render_path(first.path)}"))
            return
        self._ids[item] = entity_id
        for key in row.match:
            if body.get(key):
                self._named[row.name, key, str(body[key])] = entity_id
        if before is not None and not self._owned(before):
            self._fault(item, Violation((), self._not_owned(before)))
        else:
            self._compare(row, item, body, before, entity_id)

    def _recognise(self, row: EntityType, body: Mapping[str, Any], reserved: set[str]) -> Row | None:
        if body.get("id"):
            return self._holdings.of(row.name).get(str(body["id"]).lower())
        for fields in [(name,) for name in row.match] or row.unique[:1]:
            key = unique_key(row, body, fields)
            if key is None:
                continue
            try:
                found = self._holdings.by(row, fields).get(key)
            except TypeError:
                continue  # a list or a map where a text belongs: recognised by nothing, refused by the schema
            if found is not None and found.id not in reserved:
                return found
        return None

    def _compare(self, row: EntityType, item: Item, body: dict[str, Any], before: Row | None, entity_id: str) -> None:
        if before is not None and _says_the_same(body, before.written):
            return
        written = content.written_form(row, body)
        try:
            complete = content.complete(row, written)
        except SchemaViolation as error:
            for violation in error.violations:
                self._fault(item, violation)
            return
        for name in content.GENERATED.get(row.name, ()):
            if complete.get(name) is None:
                self._fault(item, Violation((name,), "required field missing"))
                return
        if before is None:
            self._plan.creates.append(Row(row, entity_id, written, self._now, self._now, complete))
        elif not content.same(row, before.complete, complete):
            after = Row(row, entity_id, written, before.created_at, self._now, complete)
            self._plan.updates.append((before, after))

    # -- references

    def _references(self, row: EntityType, item: Item) -> dict[str, Any] | None:
        """Foreign keys by id; None when one cannot be resolved, or its target has a fault of its own."""
        resolved: dict[str, Any] = {}
        for name, target in item.references.items():
            parent = ENTITY_TYPES[row.parents[name].type]
            if isinstance(target, Item):
                found = self._ids.get(target)
            else:
                found = self._target(item, name, parent, target)
                if found is None:
                    self._fault(item, Violation((name,), self._unknown(parent, target)))
            if found is None:
                return None
            resolved[name] = {"id": found}
        return resolved

    def _target(self, item: Item, name: str, parent: EntityType, key: str) -> str | None:
        declared = [self._named.get((parent.name, field_name, key)) for field_name in parent.match]
        if (found := next(filter(None, declared), None)) is not None:
            return found
        entity_id = key.lower()
        if (parent.name, entity_id) in self._paths:
            return entity_id
        indexes = [self._holdings.by(parent, (field_name,)).get((key,)) for field_name in parent.match]
        candidates = [self._holdings.of(parent.name).get(entity_id), *indexes]
        held = next((row for row in candidates if row is not None), None)
        if held is None:
            return None
        self._uses.append((item, name, held))
        return held.id

    def _unknown(self, parent: EntityType, key: str) -> str:
        known = {name for kind, _, name in self._named if kind == parent.name}
        for field_name in parent.match:
            known |= {str(name[0]) for name in self._holdings.by(parent, (field_name,))}
        suggestion = nearest(key, sorted(known)[:2000])
        hint = f" (did you mean '{suggestion}'?)" if suggestion else ""
        return f"there is no {parent.kind} '{key}', neither in the document nor in the control plane{hint}"

    # -- what goes, and whether all that stays can stay

    def delete_undeclared(self) -> None:
        for row in reversed(list(ENTITY_TYPES.values())):
            for held in self._holdings.of(row.name).values():
                if (row.name, held.id) not in self._paths and self._owned(held):
                    self._plan.deletes.append(held)

    def finish(self) -> Plan:
        going = {(row.type.name, row.id) for row in self._plan.deletes}
        for item, name, held in self._uses:
            if (held.type.name, held.id) in going:
                text = f"{held.type.kind} '{_label(held)}' is not in the document, so this sync would delete it"
                self._fault(item, Violation((name,), text))
        self._check_left_behind(going)
        self._check_unique(going)
        if self._faults:
            raise DocumentRefused(self._faults)
        self._plan.names = self._parent_names()
        return self._plan

    def _check_left_behind(self, going: set[tuple[str, str]]) -> None:
        """Rows of others that refer to a row that goes would lose their parent, or go with it."""
        for parent in ENTITY_TYPES.values():
            ids = {entity_id for name, entity_id in going if name == parent.name}
            if not ids:
                continue
            for child, name, _ in children_of(parent.name):
                for held in self._holdings.of(child.name).values():
                    target = held.reference(name)
                    key = (child.name, held.id)
                    if target not in ids or key in going or key in self._paths:
                        continue
                    gone = self._holdings.of(parent.name)[str(target)]
                    self._conflict(gone, held)

    def _conflict(self, gone: Row, held: Row) -> None:
        entity = f"{gone.type.kind} {_label(gone)}"
        child = f"{held.type.kind} {title(held, {gone.id: _label(gone)})}"
        text = f"cannot be deleted: {child} refers to it and does not carry {self._tag_words()}"
        self._faults.append(
            {**fault((), entity, Violation((), text)), "conflict": {"kind": held.type.kind, "id": held.id}}
        )

    def _check_unique(self, going: set[tuple[str, str]]) -> None:
        puts = {(row.type.name, row.id): row for row in (*self._plan.creates, *(a for _, a in self._plan.updates))}
        taken: dict[tuple[str, tuple[str, ...], tuple[Any, ...]], Row] = {}
        for (name, entity_id), row in puts.items():
            for fields in row.type.unique:
                key = row.key(fields)
                if key is None:
                    continue
                holder = taken.setdefault((name, fields, key), row)
                if holder is row:
                    held = self._holdings.by(row.type, fields).get(key)
                    stays = held is not None and (name, held.id) not in going and (name, held.id) not in puts
                    holder = held if held is not None and stays else row
                if holder.id != entity_id:
                    self._fault(self._paths[name, entity_id], Violation(_key_path(fields), self._taken(holder, fields)))

    def _taken(self, holder: Row, fields: Sequence[str]) -> str:
        what = "this name" if fields[-1] in {"name", "username", "instance_name"} else f"this {' and '.join(fields)}"
        known = self._paths.get((holder.type.name, holder.id))
        if known is not None:
            return f"{what} is declared twice: also at {render_path(known.path)}"
        tags = "" if self._owned(holder) else f", which does not carry {self._tag_words()}"
        return f"{what} is taken by {holder.type.kind} '{_label(holder)}' (id {holder.id}){tags}"

    # -- words

    def _owned(self, row: Row) -> bool:
        return not self._tags or self._tags <= set(row.written.get("tags") or ())

    def _tag_words(self) -> str:
        listed = ", ".join(f"'{tag}'" for tag in sorted(self._tags))
        return f"the tag {listed}" if len(self._tags) == 1 else f"the tags {listed}"

    def _not_owned(self, row: Row) -> str:
        return (
            f"{row.type.kind} '{_label(row)}' exists (id {row.id}) and does not carry {self._tag_words()}: "
            "it is not this document's to change; rename one of the two, or tag the existing one first"
        )

    def _fault(self, item: Item, violation: Violation) -> None:
        self._faults.append(fault(item.path, _item_title(item), violation))

    def _parent_names(self) -> dict[str, str]:
        names: dict[str, str] = {}
        wanted = [*self._plan.creates, *self._plan.deletes, *(after for _, after in self._plan.updates)]
        fresh = {(row.type.name, row.id): row for row in wanted}
        for row in wanted:
            for name, parent in row.type.parents.items():
                target = row.reference(name)
                if target is not None and target not in names:
                    found = fresh.get((parent.type, target)) or self._holdings.of(parent.type).get(target)
                    names[target] = _label(found) if found else target
        return names


def title(row: Row, names: Mapping[str, str]) -> str:
    """What decK calls an entity in its output: `rate-limiting for service billing`, `cors (global)`."""
    scopes = [(name, target) for name in row.type.parents if (target := row.reference(name)) is not None]
    own = _label(row)
    if row.type.name == "routes":
        return own
    if not scopes:
        return f"{own} (global)" if row.type.name == "plugins" else own
    listed = " and ".join(f"{name.replace('_', '-')} {names.get(target, target)}" for name, target in scopes)
    return f"{own} for {listed}"


def _label(row: Row) -> str:
    written = row.written
    for key in ("name", "username", "custom_id"):
        if isinstance(written.get(key), str):
            return str(written[key])
    credential = written.get("key")
    return _key_ending(credential) if isinstance(credential, str) else row.id


def _key_ending(key: str) -> str:
    """As much of a key as tells it from others without giving it away: the last five characters of a long one."""
    return f"…{key[-5:]}" if len(key) >= 20 else MASK


def _item_title(item: Item) -> str:
    scopes = [
        f"{name.replace('_', '-')} {target.label if isinstance(target, Item) else target}"
        for name, target in item.references.items()
    ]
    own = item.type.kind if item.label == item.type.kind else f"{item.type.kind} {item.label}"
    return f"{own} for {' and '.join(scopes)}" if scopes and item.type.name != "routes" else own


def _shown(row: Row) -> dict[str, Any]:
    return content.change_secrets(row.type, _body(row), mask)


def _shown_pair(before: Row, after: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    """New and old body. A secret that changed says so, or the difference would be invisible."""
    old = _body(before)
    known: set[str] = set()

    def remember(text: str) -> str:
        known.add(text)
        return text

    def mask_new(text: str) -> str:
        return text if is_vault_reference(text) else MASK if text in known else NEW_MASK

    content.change_secrets(before.type, old, remember)
    return content.change_secrets(after.type, _body(after), mask_new), content.change_secrets(before.type, old, mask)


def _bodies(before: Row, after: Row) -> tuple[dict[str, Any], dict[str, Any]]:
    return _body(after), _body(before)


def _body(row: Row) -> dict[str, Any]:
    return {"id": row.id, **{key: value for key, value in row.complete.items() if value is not None}}


def _says_the_same(body: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    """The short cut that makes large unchanged documents cheap; what it misses, the comparison finds."""
    return len(body) - ("id" in body) == len(written) and all(
        key in written and written[key] == value for key, value in body.items() if key != "id"
    )


def _key_path(fields: Sequence[str]) -> Path:
    return (fields[0],)


def _is_uuid(value: Any) -> bool:
    try:
        uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        return False
    return True
