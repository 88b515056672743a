"""A plan becomes true: one transaction, one snapshot, one entry in the history.

Whoever writes more than one entity ends here: the atomic apply, a saved plan, a rollback.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

from control_plane import audit, ownership
from control_plane.api.konnect import find
from control_plane.batches import Changes
from control_plane.errands import aside
from control_plane.errors import Conflict, StaleEntity
from control_plane.history import State
from control_plane.holdings import Holdings, Row
from control_plane.ownership import NOBODY, Owners
from control_plane.planned import Plan
from control_plane.repository import Repository, check_may_hold_entities
from gateway_schema.base import canonical_id

if TYPE_CHECKING:
    from control_plane.auth import Principal
    from control_plane.plane import ControlPlane


@dataclass(slots=True)
class Undertaking:
    """One transaction over all of a control plane. Without `commit` it only looks."""

    plane: ControlPlane
    session: AsyncSession
    caller: Principal
    commit: bool
    name: str
    holdings: Holdings
    owners: Owners
    began_us: int
    """Unix microseconds: what others wrote was written before."""
    written: Holdings | None = None
    """What is held once the transaction has committed, when it wrote something."""
    written_us: int = 0
    """Unix microseconds: what others will write comes after."""
    action: str = ""
    plan: Plan = field(default_factory=Plan)

    @property
    def control_plane_id(self) -> str:
        return self.holdings.control_plane_id

    async def carry_out(self, plan: Plan, action: str, *, force: bool = False) -> None:
        """Write the plan, if this is for real.

        Raises Conflict when it should be asked for with `force`, and StaleEntity, which the plan leaves as it is.
        """
        self.plan, self.action = plan, action
        if not self.commit:
            return
        if plan.alarm and not force:
            raise Conflict(
                f"{plan.alarm}; nothing was written. If that is what you want, say so with force: true (--force)",
                deleting=len(plan.deletes),
                governed=plan.governed,
            )
        if plan:
            now = time.time()
            plan.creates = [_begun(row, now) for row in plan.creates]
            plan.updates = [(before, _begun(after, now)) for before, after in plan.updates]
            changes = Changes(plan.creates, plan.updates, plan.deletes)
            repository = Repository(self.session, self.control_plane_id, self.plane.cipher)
            version = await repository.write(changes)
            self.written = self.holdings.after(version, changes.puts, changes.deletes)
            await aside(self.written.unbuilt, self.written.encode)  # no version that nodes could not get
        await ownership.assign(self.session, self.control_plane_id, plan.assigned)
        await self._leave_lines(plan)
        self.written_us = time.time_ns() // 1000

    async def _leave_lines(self, plan: Plan) -> None:
        """Who did what, for the audit log. Taking over what others own is said entity by entity."""
        if not plan and not plan.adopted:
            return
        details = {"mode": self.action, **plan.counts}
        await audit.record(self.session, self.caller, "apply", control_plane_id=self.control_plane_id, details=details)
        if plan:
            changes = Changes(plan.creates, plan.updates, plan.deletes)
            await audit.record_changes(self.session, self.caller, self.control_plane_id, changes)
        new = {(row.type.name, row.id): NOBODY for row in plan.deletes}
        new |= {(row.type.name, row.id): owner for row, owner in plan.assigned}
        for row, owner in plan.adopted:
            moved = {"from": sorted(owner), "to": sorted(new.get((row.type.name, row.id), owner))}
            what = (row.type.name, row.id, audit.label(row))
            await audit.record(
                self.session, self.caller, "adopt", *what, control_plane_id=self.control_plane_id, details=moved
            )


def _begun(row: Row, now: float) -> Row:
    """A period begins when it is written, which may be days after it was planned."""
    if row.expires_at is None:
        return row
    return Row(row.type, row.id, row.written, row.created_at, row.type.time(now), row.complete)


@contextlib.asynccontextmanager
async def undertaking(
    plane: ControlPlane, control_plane_id: str, caller: Principal, *, commit: bool
) -> AsyncIterator[Undertaking]:
    """The transaction: alone with this control plane when it is for real. Raises NotFound, and BadRequest when the
    control plane holds no entities: also who only looks is told what would be.

    What is over is not there: deleted before when it is for real, so that its keys are free, else left out.
    """
    if commit and (known := canonical_id(control_plane_id)) is not None:
        await plane.expiry.sweep(known)
    unit_of_work = plane.database.writing if commit else plane.database.reading
    async with unit_of_work() as session:
        control_plane = await find(session, control_plane_id, lock=commit)
        began_us = time.time_ns() // 1000
        check_may_hold_entities(control_plane.name, control_plane.cluster_type)
        holdings = await plane.holdings.load(session, control_plane.id, control_plane.config_version)
        if not commit:
            holdings = holdings.living(time.time())
        owners = await ownership.load(session, control_plane.id)
        yield Undertaking(plane, session, caller, commit, control_plane.name, holdings, owners, began_us)


async def publish(done: Undertaking) -> dict[str, Any]:
    """After the transaction: make the snapshot, remember it, and say which it is."""
    plane = done.plane
    if done.written is not None:
        plane.holdings.keep(done.written)
        plane.expiry.expect([*done.plan.creates, *(after for _, after in done.plan.updates)])
    version = done.written.version if done.written is not None else None
    try:
        snapshot = await plane.snapshots.refresh(done.control_plane_id, version)
    except StaleEntity:
        if done.commit:
            raise
        # Whoever only looks may be looking at what mends it.
        return {"committed": False, "version": done.holdings.version, "hash": None}
    if done.written is not None:
        before = State(done.holdings, done.owners, done.began_us)
        after = State(done.written, done.owners.after(done.plan.assigned), done.written_us)
        hash_ = snapshot.hash if snapshot.version == after.version else None
        plane.history.record(before, after, hash_, done.caller.name, done.action)
    return {"committed": done.commit, "version": snapshot.version, "hash": snapshot.hash}
