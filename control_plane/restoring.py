"""The way back: what must change so that a control plane holds again what it held at an earlier version.

*All of it*, or with select tags *a part*: the entities that carry the tags or were last written under them, now or
then. The rest stays as it is now. The whole of a version fits together; a part of it need not fit to the rest of today,
and what does not is a fault: a parent that is gone, a name that is taken, a child of others that would lose its parent.

*Owning.* Who owns an entity now decides about it; about one that is to come back, who owned it then. To change what
others own is a fault, unless the plan is told to adopt it. With its content an entity gets back the owner it had.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Any

from control_plane.errors import DocumentRefused, StaleEntity, fault
from control_plane.history import State
from control_plane.holdings import Holdings, Row
from control_plane.ownership import NOBODY, OwnerSet, Reach, words
from control_plane.planned import Plan, label, parent_names, row_changes, title
from gateway_schema.registry import ENTITY_TYPES
from gateway_schema.violations import Violation

_Fault = dict[str, Any]


def restoring_plan(now: State, then: State, *, acting: OwnerSet | None, adopt: bool, time: float) -> Plan:
    """`acting`: the select tags of who asks; they narrow the plan to what is in their reach. Without them it is whoever
    owns all that would change; where several sets do, the plan would change what others own, and stops unless it is
    told to `adopt`. Raises DocumentRefused."""
    tags = acting or NOBODY
    reached = Reach(tags, now.owners, now.holdings)
    creates, updates, deletes = _within(reached, Reach(tags, then.owners, then.holdings))
    plan = Plan(deletes=deletes, governed=sum(map(reached.governs, now.holdings.all())))
    plan.creates = [Row(row.type, row.id, row.written, row.created_at, row.type.time(time)) for row in creates]
    plan.updates = [
        (old, Row(new.type, new.id, new.written, old.created_at, new.type.time(time))) for old, new in updates
    ]
    puts = [*plan.creates, *(after for _, after in plan.updates)]
    plan.names = parent_names([*puts, *deletes], lambda kind, target: now.holdings.of(kind).get(target))
    unfit = _unfit(plan, puts, now, then, tags) if tags else ()
    faults = [*_invalid(puts, plan), *_not_ours(plan, now, then, acting, adopt), *unfit]
    if faults:
        raise DocumentRefused(faults)
    plan.assigned = [(row, then.owners.of(row)) for row in puts if then.owners.of(row) != now.owners.of(row)]
    return plan


def _within(now: Reach, then: Reach) -> tuple[list[Row], list[tuple[Row, Row]], list[Row]]:
    """What differs and is in reach, now or then, as `row_changes` gives it."""
    creates, updates, deletes = row_changes(now.holdings, then.holdings)
    came = [row for row in creates if then.governs(row)]
    went = [row for row in deletes if now.governs(row)]
    # What joins two others comes and goes with either; nobody's does not come if that takes more than is in reach.
    back, gone = set(map(_key, came)), set(map(_key, went))
    there = back | set(map(_key, now.holdings.all())) - gone
    loose = [row for row in creates if row.type.is_link and _key(row) not in back and not then.owners.of(row)]
    came += [row for row in loose if back & (ends := _ends(row)) and ends <= there]
    went[:0] = [row for row in deletes if row.type.is_link and _key(row) not in gone and gone & _ends(row)]
    changed = [(old, new) for old, new in updates if now.governs(old) or then.governs(new)]
    return came, changed, went


def _key(row: Row) -> tuple[str, str]:
    return row.type.name, row.id


def _ends(row: Row) -> set[tuple[str, str]]:
    """What a row that joins others joins."""
    return {(kind, target) for kind, _, target in _targets(row)}


def _invalid(puts: Iterable[Row], plan: Plan) -> Iterator[_Fault]:
    """What was right then and is not any more: an upgrade may have changed a schema."""
    for row in puts:
        try:
            _ = row.complete
        except StaleEntity as error:
            for violation in error.violations:
                yield fault((), _entity(row, plan), violation)


# -- whose it is


def _not_ours(plan: Plan, now: State, then: State, acting: OwnerSet | None, adopt: bool) -> Iterator[_Fault]:
    held = [*(old for old, _ in plan.updates), *plan.deletes]
    owned = [(row, owner) for row in held if (owner := now.owners.of(row))]
    owned += [(row, owner) for row in plan.creates if (owner := then.owners.of(row))]
    owners = {owner for _, owner in owned}
    ours = acting if acting is not None else next(iter(owners)) if len(owners) == 1 else NOBODY
    others = [(row, owner) for row, owner in owned if owner != ours]
    if adopt:
        plan.adopted = others
        return
    hint = "say which tags you act for (--select-tag), or change it" if acting is None else "leave it, or change it"
    for row, owner in others:
        verb = "is" if row.id in now.holdings.of(row.type.name) else "was"
        text = f"{verb} owned by {words(owner)}; {hint} all the same with adopt (--adopt)"
        conflict = {"kind": row.type.kind, "id": row.id}
        yield {**_said(row, plan, text), "owner": sorted(owner), "conflict": conflict}
    reached = Reach(ours, now.owners, now.holdings)
    for row, _ in plan.updates if acting else ():
        if not (now.owners.of(row) or reached.governs(row)):
            text = f"does not carry {words(ours)} any more and is nobody's; tag it first, or change it all the same "
            yield _said(row, plan, f"{text}with adopt (--adopt)")


# -- whether a part fits to the rest


def _unfit(plan: Plan, puts: list[Row], now: State, then: State, tags: OwnerSet) -> Iterator[_Fault]:
    gone = {(row.type.name, row.id) for row in plan.deletes}
    coming = {(row.type.name, row.id) for row in puts}
    moving = gone | coming
    after = now.holdings.after(now.version + 1, puts, plan.deletes)
    for row in puts:
        yield from _unresolved(row, after, then, plan, tags)
        yield from _taken(row, now, moving, plan)
    for held in after.all() if gone else ():
        for kind, _, target in _targets(held):
            if (kind, target) in gone and (held.type.name, held.id) not in coming:
                yield _left_behind(now.holdings.of(kind)[target], held, plan, tags)


def _unresolved(row: Row, after: Holdings, then: State, plan: Plan, tags: OwnerSet) -> Iterator[_Fault]:
    for kind, name, target in _targets(row):
        if target not in after.of(kind):
            missing = then.holdings.of(kind).get(target)
            what = f"{ENTITY_TYPES[kind].kind} '{label(missing) if missing else target}' with the id {target}"
            text = f"there is no {what} any more, and {words(tags)} does not reach it; bring it back first"
            yield fault((), _entity(row, plan), Violation((name,), text))


def _taken(row: Row, now: State, moving: Set[tuple[str, str]], plan: Plan) -> Iterator[_Fault]:
    for fields in row.type.unique:
        key = row.key(fields)
        holder = now.holdings.by(row.type, fields).get(key) if key is not None else None
        if holder is not None and (row.type.name, holder.id) not in moving:
            text = f"is taken by {row.type.kind} '{label(holder)}' (id {holder.id}) now; rename or delete that first"
            yield fault((), _entity(row, plan), Violation((fields[0],), text))


def _targets(row: Row) -> Iterator[tuple[str, str, str]]:
    """What a row refers to: kind, field, id."""
    for name, parent in row.type.parents.items():
        if (target := row.reference(name)) is not None:
            yield parent.type, name, target
    for name, listed in row.type.lists.items():
        for target in sorted(listed.ids(row.written.get(name))):
            yield listed.type, name, target


def _left_behind(gone: Row, held: Row, plan: Plan, tags: OwnerSet) -> _Fault:
    child = f"{held.type.kind} {title(held, {gone.type.name: {gone.id: label(gone)}})}"
    text = f"cannot be deleted: {child} refers to it and is not in the reach of {words(tags)}"
    return {**_said(gone, plan, text), "conflict": {"kind": held.type.kind, "id": held.id}}


# -- words


def _said(row: Row, plan: Plan, text: str) -> _Fault:
    return fault((), _entity(row, plan), Violation((), text))


def _entity(row: Row, plan: Plan) -> str:
    return f"{row.type.kind} {title(row, plan.names)}"
