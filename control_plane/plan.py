"""Desired minus existing: what must be created, updated and deleted so that a control plane holds what a file says.

Pure: takes values, gives a value. Everything that could go wrong is found here, before anything is written, and every
fault is reported at once, with its place in the document.

*Recognising.* An entity with an id in the file is the row with that id. One without is recognised by its natural key:
a service by its name, a plugin by its name and scopes (`recognising.py`). What is not recognised is new.

*Comparing.* Complete forms are compared, so writing a default out, or no longer, is not a change.

*Owning.* With select tags, only rows that carry all of them may be updated or deleted. To need another row is a
conflict that names it, and so is a deletion that would take such a row along. What was last written under another set
of tags is that set's (`ownership.py`): to change or delete it is a conflict too, unless the plan is told to adopt it.

*Order.* Kinds are created in the order of the registry's levels and deleted in the opposite one. Unique values that
wander between rows (a swap of names, a name taken over from a row that goes) need no order: the repository writes a
plan in one transaction and sets wandering values aside first. decK, which writes row by row, cannot do that.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from control_plane.errors import DocumentRefused, StaleEntity, fault
from control_plane.holdings import Holdings, Row
from control_plane.ownership import NOBODY, Owners, OwnerSet, Reach, words
from control_plane.partials import check_links, displaced
from control_plane.planned import Plan, label, parent_names, title
from control_plane.protocols import mismatch
from control_plane.recognising import recognise
from gateway_schema import content
from gateway_schema.base import canonical_id
from gateway_schema.document import Declaration, Item
from gateway_schema.registry import ENTITY_TYPES, PARTIALS, PLUGINS, ROUTES, EntityType, Listed, children_of, lists_of
from gateway_schema.violations import Path, SchemaViolation, Violation, nearest, render_path

Mode = Literal["sync", "apply", "reset"]


def make_plan(
    holdings: Holdings,
    declaration: Declaration,
    *,
    mode: Mode,
    select_tags: Sequence[str] = (),
    owners: Owners | None = None,
    adopt: bool = False,
    spare: bool = False,
    now: int,
    new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
) -> Plan:
    """`apply` never deletes; `reset` deletes all that carries the tags, whatever the document says.

    `adopt`: what others own is taken over where the document declares it, and deleted where it does not.
    `spare`: what others own is left to them, also where it would be deleted.
    Raises DocumentRefused with every fault.
    """
    reach = Reach(frozenset(select_tags), owners or Owners(), holdings, declaration.lookup_tags)
    planner = _Planner(reach, adopt, now, new_id)
    if mode != "reset":
        planner.declare(declaration.items)
    if mode != "apply":
        planner.delete_undeclared(counting=mode == "sync", spare=spare)
    return planner.finish()


@dataclass(frozen=True, slots=True)
class _Group:
    """What a document declares of one kind, and what is known of that kind: asked for once, not for every item."""

    row: EntityType
    declared: dict[str, Item]
    named: Mapping[str, dict[str, str]]
    owners: Mapping[str, OwnerSet]


class _Planner:
    def __init__(
        self,
        reach: Reach,
        adopt: bool,
        now: int,
        new_id: Callable[[], str],
    ) -> None:
        self._reach = reach
        self._holdings = reach.holdings
        self._tags = reach.tags
        self._owners = reach.owners
        self._adopt = adopt
        self._now = now
        self._new_id = new_id
        self._plan = Plan()
        self._faults: list[dict[str, Any]] = []
        self._ids: dict[Item, str] = {}
        self._items: dict[str, dict[str, Item]] = {name: {} for name in ENTITY_TYPES}
        """What the document declares, by kind and id."""
        self._named: dict[tuple[str, str], dict[str, str]] = {}
        """Ids by the fields that recognise them: of a kind and a field, the id of each value."""
        self._uses: list[tuple[Item, str, Row]] = []
        self._links: dict[tuple[str, tuple[Any, ...] | None], str] = {}
        self._others: list[tuple[Item, Row, OwnerSet]] = []
        """What is declared, is there, and is another's, or nobody's."""

    # -- what the document declares

    def declare(self, items: Sequence[Item]) -> None:
        by_type: dict[str, list[Item]] = {name: [] for name in ENTITY_TYPES}
        for item in items:
            by_type[item.type.name].append(item)
        for name, items_of_kind in by_type.items():
            if items_of_kind:
                self._declare_kind(ENTITY_TYPES[name], items_of_kind)

    def _declare_kind(self, row: EntityType, items: Sequence[Item]) -> None:
        named: dict[str, dict[str, str]] = {key: {} for key in row.match}
        self._named.update({(row.name, key): ids for key, ids in named.items()})
        group = _Group(row, self._items[row.name], named, self._owners.among(row))
        refers = bool(row.parents or row.lists)
        clear = [(item, body) for item in items if (body := self._body(row, item, refers)) is not None]
        given = [_given_id(item) for item, _ in clear]
        met = recognise(row, given, [body for _, body in clear], self._holdings)
        for (item, body), entity_id, before in zip(clear, given, met, strict=True):
            self._declare(group, item, body, entity_id, before)

    def _body(self, row: EntityType, item: Item, refers: bool) -> dict[str, Any] | None:
        """What the item says, references by id; None when it has a fault by now."""
        body = item.body
        if refers:
            references = self._references(row, item)
            if references is None:
                return None
            body = {**body, **references}
        if body.get("id") is not None and _given_id(item) is None:
            self._fault(item, Violation(("id",), "expected a valid UUID"))
            return None
        return body

    def _declare(self, group: _Group, item: Item, body: dict[str, Any], given: str | None, before: Row | None) -> None:
        row = group.row
        entity_id = before.id if before else given or self._new_id()
        if row.is_link:
            # Said from both ends, or twice: it is so all the same.
            entity_id = self._links.setdefault((row.name, content.unique_key(row, body, row.unique[0])), entity_id)
            if entity_id in group.declared:
                return
        if (first := group.declared.setdefault(entity_id, item)) is not item:
            text = f"is declared twice: first at {render_path(first.path)}"
            self._fault(item, Violation((), text), also=first.path)
            return
        self._ids[item] = entity_id
        for key, ids in group.named.items():
            if value := body.get(key):
                ids[str(value)] = entity_id
        if before is None:
            self._compare(row, item, body, None, entity_id)
        else:
            self._meet(group, item, body, before)

    def _meet(self, group: _Group, item: Item, body: dict[str, Any], before: Row) -> None:
        """The document declares what is there."""
        owner = group.owners.get(before.id, NOBODY)
        if owner != self._tags:
            self._others.append((item, before, owner))
            if group.row.is_link:
                return  # there is nothing about it that could differ
            if not (self._adopt or self._tags <= set(before.written.get("tags") or ())):
                self._fault(item, Violation((), self._not_governed(before)))
                return
        if not (group.row.is_link or _says_the_same(body, before.written)):
            self._compare(group.row, item, body, before, before.id)

    def _compare(self, row: EntityType, item: Item, body: dict[str, Any], before: Row | None, entity_id: str) -> None:
        written = content.written_form(row, body)
        try:
            written = content.admitted(row, written, before.written if before else None)
            complete = content.complete(row, written)
            check_links(row, written, self._partial_type)
            if missing := content.unsaid(row, complete):
                raise SchemaViolation(missing)
        except SchemaViolation as error:
            for violation in error.violations:
                self._fault(item, violation)
            return
        if before is None and not _given_id(item) and (lost := content.unrecognisable(row, body)):
            self._fault(item, lost)
            return
        if before is None:
            self._plan.creates.append(Row(row, entity_id, written, row.time(self._now), row.time(self._now), complete))
        elif not _means_the_same(before, complete):
            after = Row(row, entity_id, written, before.created_at, row.time(self._now), complete)
            self._plan.updates.append((before, after))

    # -- references

    def _references(self, row: EntityType, item: Item) -> dict[str, Any] | None:
        """Foreign keys by id; None when one cannot be resolved, or its target has a fault of its own."""
        resolved: dict[str, Any] = {}
        for name, target in item.references.items():
            if isinstance(target, Item):
                found = self._ids.get(target)
            else:
                parent = ENTITY_TYPES[row.parents[name].type]
                found = self._target(item, name, parent, target)
                if found is None:
                    self._fault(item, Violation((name,), self._unknown(parent, target)))
            if found is None:
                return None
            resolved[name] = {"id": found}
        for name, listed in row.lists.items():
            if isinstance(entries := item.body.get(name), list):
                resolved[name] = [self._listed(item, name, listed, entry) for entry in entries]
        return resolved

    def _listed(self, item: Item, name: str, listed: Listed, entry: Any) -> Any:
        """An entry of a list of references, by id; what cannot be one is left for the schema to refuse."""
        given = (entry.get("id") or entry.get("name")) if listed.key and isinstance(entry, Mapping) else entry
        if not isinstance(given, str):
            return entry
        parent = ENTITY_TYPES[listed.type]
        found = self._target(item, name, parent, given)
        if found is None:
            self._fault(item, Violation((name,), self._unknown(parent, given)))
            return entry
        return found if listed.key is None else {**{k: v for k, v in entry.items() if k != "name"}, listed.key: found}

    def _target(self, item: Item, name: str, parent: EntityType, key: str) -> str | None:
        declared = [self._named.get((parent.name, field_name), {}).get(key) for field_name in parent.match]
        if (found := next(filter(None, declared), None)) is not None:
            return found
        entity_id = key.lower()
        if entity_id in self._items[parent.name]:
            return entity_id
        candidates = [self._holdings.of(parent.name).get(entity_id), *self._called(parent, key)]
        declared_ids = self._items[parent.name]
        held = next((row for row in candidates if row is not None and row.id not in declared_ids), None)
        if held is None:
            return None
        self._uses.append((item, name, held))
        return held.id

    def _called(self, parent: EntityType, key: str) -> list[Row]:
        """Rows that have this natural key so far."""
        found = [self._holdings.by(parent, (field_name,)).get((key,)) for field_name in parent.match]
        return [row for row in found if row is not None]

    def _partial_type(self, entity_id: str) -> str | None:
        """As the document says it, or else as it is. Partials are declared before plugins."""
        declared, held = self._items["partials"].get(entity_id), self._holdings.of("partials").get(entity_id)
        kind = declared.body.get("type") if declared is not None else held.written["type"] if held is not None else None
        return kind if isinstance(kind, str) and kind in PARTIALS.configs else None  # others are faults of their own

    def _unknown(self, parent: EntityType, key: str) -> str:
        for row in self._called(parent, key):  # declared, or it would have been found
            now = self._items[parent.name][row.id].label
            return f"there is no {parent.kind} '{key}' any more: the document gives that one another name, '{now}'"
        known: set[str] = set()
        for field_name in parent.match:
            known |= self._named.get((parent.name, field_name), {}).keys()
            known |= {str(name[0]) for name in self._holdings.by(parent, (field_name,))}
        suggestion = nearest(key, sorted(known)[:2000])
        hint = f" (did you mean '{suggestion}'?)" if suggestion else ""
        return f"there is no {parent.kind} '{key}', neither in the document nor in the control plane{hint}"

    # -- what goes, and whether all that stays can stay

    def delete_undeclared(self, counting: bool, spare: bool) -> None:
        """`counting`: deleting much of it would be a surprise."""
        for row in reversed(list(ENTITY_TYPES.values())):
            declared, held = self._items[row.name], self._holdings.of(row.name)
            others = [each for entity_id, each in held.items() if entity_id not in declared]
            going = [each for each in others if self._reach.governs(each)]
            if counting:
                going = [each for each in going if not self._reach.looks_up(each)]
            if spare:
                going = [each for each in going if self._reach.owners.of(each) in (NOBODY, self._tags)]
            self._plan.deletes += going
            if counting:
                self._plan.governed += len(going) + self._governed_among(row, declared, len(held) - len(others))

    def _governed_among(self, row: EntityType, declared: Mapping[str, Item], count: int) -> int:
        """How many of the rows that the document declares are in its reach; `count` are there."""
        if not (self._adopt or row.is_link):
            return count  # any that is not was a fault
        held = self._holdings.of(row.name)
        return sum(self._reach.governs(held[entity_id]) for entity_id in declared if entity_id in held)

    def finish(self) -> Plan:
        self._delete_loose_links()
        going = {(row.type.name, row.id) for row in self._plan.deletes}
        for item, name, held in self._uses:
            if (held.type.name, held.id) in going:
                text = f"{held.type.kind} '{label(held)}' is not in the document, so this sync would delete it"
                self._fault(item, Violation((name,), text))
        self._check_left_behind(going)
        self._check_partials(going)
        self._check_unique(going)
        self._check_protocols(going)
        changed = [*self._plan.creates, *self._plan.deletes, *(after for _, after in self._plan.updates)]
        self._plan.names = parent_names(changed, lambda kind, target: self._holdings.of(kind).get(target))
        self._settle_ownership()
        if self._faults:
            raise DocumentRefused(self._faults)
        return self._plan

    def _delete_loose_links(self) -> None:
        """What joins two others goes with either, whoever wrote it."""
        going = {(row.type.name, row.id) for row in self._plan.deletes}
        for row in ENTITY_TYPES.values():
            for held in self._holdings.of(row.name).values() if row.is_link and going else ():
                ends = {(parent.type, held.reference(name)) for name, parent in row.parents.items()}
                if ends & going and (row.name, held.id) not in going and held.id not in self._items[row.name]:
                    self._plan.deletes.insert(0, held)

    def _settle_ownership(self) -> None:
        """Who owns what afterwards; a change of what others own is a fault, or an adoption."""
        changed = {(before.type.name, before.id) for before, _ in self._plan.updates}
        for item, before, owner in self._others:
            if owner and not self._adopt:
                if (before.type.name, before.id) in changed:
                    self._not_ours(before, item.path, "change")
            else:
                self._plan.assigned.append((before, self._tags))
                if owner or not (before.type.is_link or self._tags <= set(before.tags)):
                    self._plan.adopted.append((before, owner))
        for row in self._plan.deletes:
            owner = self._owners.of(row)
            if owner and owner != self._tags and self._adopt:
                self._plan.adopted.append((row, owner))
            elif owner and owner != self._tags:
                self._not_ours(row, self._place_of_absent(row), "delete")
        if self._tags:
            self._plan.assigned += [(row, self._tags) for row in self._plan.creates]

    def _not_ours(self, row: Row, path: Path, verb: str) -> None:
        owner = self._owners.of(row)
        ours = words(self._tags) if self._tags else "no tag"
        text = (
            f"is owned by {words(owner)}, and this document, written under {ours}, would {verb} it; leave it to its "
            "owner, or take it over with adopt (--adopt)"
        )
        entity = f"{row.type.kind} {title(row, self._plan.names)}"
        found = fault(path, entity, Violation((), text))
        self._faults.append({**found, "owner": sorted(owner), "conflict": {"kind": row.type.kind, "id": row.id}})

    def _place_of_absent(self, row: Row) -> Path:
        """Where in the document one would look for what it does not declare: inside its parent, or in its list."""
        for name, parent in row.type.parents.items():
            item = self._items[parent.type].get(row.reference(name) or "")
            if item is not None:
                return item.path
        return (row.type.file_key,) if row.type.file_key else ()

    def _check_left_behind(self, going: set[tuple[str, str]]) -> None:
        """Rows of others that refer to a row that goes would lose their parent, or go with it."""
        for parent in ENTITY_TYPES.values():
            ids = {entity_id for name, entity_id in going if name == parent.name}
            if not ids:
                continue
            for child, name, _ in children_of(parent.name):
                for held in self._holdings.of(child.name).values():
                    target = held.reference(name)
                    if target not in ids or (child.name, held.id) in going or held.id in self._items[child.name]:
                        continue
                    gone = self._holdings.of(parent.name)[str(target)]
                    self._conflict(gone, held)
            for lister, name, listed in lists_of(parent.name):
                for held in self._holdings.of(lister.name).values():
                    if (lister.name, held.id) in going or held.id in self._items[lister.name]:
                        continue
                    for target in ids & listed.ids(held.written.get(name)):
                        self._conflict(self._holdings.of(parent.name)[target], held)

    def _check_partials(self, going: set[tuple[str, str]]) -> None:
        """A partial that changes its type may be out of place in plugins that stay as they are."""
        changed = [(old, new) for old, new in self._plan.updates if new.type is PARTIALS]
        moved = [new for old, new in changed if old.written["type"] != new.written["type"]]
        settled = going | {(after.type.name, after.id) for _, after in self._plan.updates}
        for partial in moved:
            staying = [row for row in self._holdings.of("plugins").values() if (row.type.name, row.id) not in settled]
            users = [row for row in staying if partial.id in PLUGINS.lists["partials"].ids(row.written.get("partials"))]
            for violation in displaced(users, partial):
                self._fault(self._items["partials"][partial.id], violation)

    def _conflict(self, gone: Row, held: Row) -> None:
        entity = f"{gone.type.kind} {label(gone)}"
        child = f"{held.type.kind} {title(held, {gone.type.name: {gone.id: label(gone)}})}"
        if self._reach.looks_up(held):
            why = "is kept by _info.default_lookup_tags"
        elif self._tags:
            why = f"does not carry {words(self._tags)}"
        else:
            why = f"is owned by {words(self._reach.owners.of(held))}"
        text = f"cannot be deleted: {child} refers to it and {why}"
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
                    text, also = self._taken(holder, fields)
                    self._fault(self._items[name][entity_id], Violation(_key_path(fields), text), also)

    def _check_protocols(self, going: set[tuple[str, str]]) -> None:
        """Of the plugins that are written, against the routes that will be. One that has a fault of its own is none."""
        puts = [*self._plan.creates, *(after for _, after in self._plan.updates)]
        plugins = [row for row in puts if row.type is PLUGINS]
        if not plugins:
            return
        routes = {**self._holdings.of(ROUTES.name), **{row.id: row for row in puts if row.type is ROUTES}}
        of_service: dict[str | None, list[Row]] = {
            plugin.reference("service"): [] for plugin in plugins if plugin.reference("route") is None
        }
        for route in routes.values() if any(of_service) else ():
            service = route.written.get("service")  # one of thousands: not by a call
            if service is not None and service["id"] in of_service and (ROUTES.name, route.id) not in going:
                of_service[service["id"]].append(route)
        for plugin in plugins:
            own = plugin.reference("route")
            met = of_service[plugin.reference("service")] if own is None else [routes[own]] if own in routes else []
            if violation := mismatch(plugin, met):
                self._fault(self._items[PLUGINS.name][plugin.id], violation)

    def _taken(self, holder: Row, fields: Sequence[str]) -> tuple[str, Path]:
        """Who has it already, and where the document declares that one, if it does."""
        what = "this name" if fields[-1] in {"name", "username", "instance_name"} else f"this {' and '.join(fields)}"
        known = self._items[holder.type.name].get(holder.id)
        if known is not None:
            return f"{what} is declared twice: also at {render_path(known.path)}", known.path
        tags = "" if self._reach.governs(holder) else f", which does not carry {words(self._tags)}"
        return f"{what} is taken by {holder.type.kind} '{label(holder)}' (id {holder.id}){tags}", ()

    # -- words

    def _not_governed(self, row: Row) -> str:
        owner = self._owners.of(row)
        whose = f"it is owned by {words(owner)}" if owner else "it is not this document's to change"
        return (
            f"{row.type.kind} '{label(row)}' exists (id {row.id}) and does not carry {words(self._tags)}: {whose}; "
            "rename one of the two, tag the existing one first, or take it over with adopt (--adopt)"
        )

    def _fault(self, item: Item, violation: Violation, also: Path = ()) -> None:
        """`also`: the path of another item that has to do with it; for programs, as the message is for people."""
        found = fault(item.path, _item_title(item), violation)
        self._faults.append({**found, "also": list(also)} if also else found)


def _item_title(item: Item) -> str:
    scopes = [
        f"{name.replace('_', '-')} {target.label if isinstance(target, Item) else target}"
        for name, target in item.references.items()
    ]
    own = item.type.kind if item.label == item.type.kind else f"{item.type.kind} {item.label}"
    return f"{own} for {' and '.join(scopes)}" if scopes and item.type.name != "routes" else own


def _says_the_same(body: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    """The short cut that makes large unchanged documents cheap; what it misses, the comparison finds."""
    if "id" in body:
        body = {key: value for key, value in body.items() if key != "id"}
    return body == written


def _means_the_same(before: Row, complete: Mapping[str, Any]) -> bool:
    """What breaks the rules of today means nothing: whatever is declared in its place mends it."""
    try:
        return content.same(before.type, before.complete, complete)
    except StaleEntity:
        return False


def _never(row: Row) -> bool:
    return False


def _key_path(fields: Sequence[str]) -> Path:
    return (fields[0],)


def _given_id(item: Item) -> str | None:
    """The id that the document gives, as it is stored; None when it gives none, or what is no UUID."""
    given = item.body.get("id")
    return canonical_id(given) if isinstance(given, str) else None
