"""The way back: what must change so that a control plane holds again what it held at an earlier version."""

from __future__ import annotations

from typing import Any

from control_plane.errors import DocumentRefused, fault
from control_plane.history import State
from control_plane.holdings import Row
from control_plane.ownership import NOBODY, OwnerSet, words
from control_plane.planned import Plan, parent_names, row_changes, title
from gateway_schema.violations import SchemaViolation, Violation


def restoring_plan(now: State, then: State, *, acting: OwnerSet | None, adopt: bool, time: float) -> Plan:
    """`acting`: the select tags of who asks. Without them it is whoever owns all that would change; where several sets
    do, the plan would change what others own, and stops unless it is told to `adopt`. Raises DocumentRefused."""
    creates, updates, deletes = row_changes(now.holdings, then.holdings)
    plan = Plan(deletes=deletes, governed=sum(1 for _ in now.holdings.all()))
    plan.creates = [Row(row.type, row.id, row.written, row.created_at, row.type.time(time)) for row in creates]
    plan.updates = [
        (old, Row(new.type, new.id, new.written, old.created_at, new.type.time(time))) for old, new in updates
    ]
    puts = [*plan.creates, *(after for _, after in plan.updates)]
    plan.names = parent_names([*puts, *deletes], lambda kind, target: now.holdings.of(kind).get(target))
    faults = [*_invalid(puts, plan), *_not_ours(plan, now, acting, adopt)]
    if faults:
        raise DocumentRefused(faults)
    plan.assigned = [(row, then.owners.of(row)) for row in puts if then.owners.of(row) != now.owners.of(row)]
    return plan


def _invalid(puts: list[Row], plan: Plan) -> list[dict[str, Any]]:
    """What was right then and is not any more: an upgrade may have changed a schema."""
    found = []
    for row in puts:
        try:
            _ = row.complete
        except SchemaViolation as error:
            entity = f"{row.type.kind} {title(row, plan.names)}"
            found += [fault((), entity, violation) for violation in error.violations]
    return found


def _not_ours(plan: Plan, now: State, acting: OwnerSet | None, adopt: bool) -> list[dict[str, Any]]:
    owned = [
        (row, owner) for row in [*(old for old, _ in plan.updates), *plan.deletes] if (owner := now.owners.of(row))
    ]
    owners = {owner for _, owner in owned}
    if acting is None:
        acting = next(iter(owners)) if len(owners) == 1 else NOBODY
    others = [(row, owner) for row, owner in owned if owner != acting]
    if adopt:
        plan.adopted = others
        return []
    text = "is owned by {}; say which tags you act for (--select-tag), or change it all the same with adopt (--adopt)"
    return [
        {
            **fault((), f"{row.type.kind} {title(row, plan.names)}", Violation((), text.format(words(owner)))),
            "owner": sorted(owner),
            "conflict": {"kind": row.type.kind, "id": row.id},
        }
        for row, owner in others
    ]
