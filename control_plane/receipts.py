"""Which node and which worker runs a version, since when, or why not; and how long versions take to get there.

What nodes say stands in the nodes table, whichever replica they are connected to: that is where answers come from.
Times are in this process only: when it made a snapshot, and when the answer of a node connected to it arrived. A
receipt from elsewhere has no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from control_plane.cache import Parcel
from control_plane.models import Node
from control_plane.roster import Moment, NodeId
from gateway_schema.sketch import Sketch

ReceiptState = Literal["applied", "refused", "silent", "behind"]

SILENT_SECONDS = 5.0
"""A connected node that has not answered for so long is silent; before that it is behind."""
BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)
_KEPT_VERSIONS = 64
_KEPT_CONTROL_PLANES = 256


@dataclass(slots=True)
class Propagation:
    """Milliseconds from the making of a snapshot to each node's receipt of it."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_MS) + 1))
    sum_ms: float = 0.0
    max_ms: float = 0.0
    sketch: Sketch = field(default_factory=Sketch)

    def add(self, milliseconds: float) -> None:
        place = next((index for index, bound in enumerate(BOUNDS_MS) if milliseconds <= bound), len(BOUNDS_MS))
        self.counts[place] += 1
        self.sum_ms += milliseconds
        self.max_ms = max(self.max_ms, milliseconds)
        self.sketch.add(round(milliseconds * 1000))

    def cumulative(self) -> Iterator[tuple[int | None, int]]:
        """(upper bound in milliseconds, how many were no longer than that); None stands for no bound."""
        total = 0
        for bound, count in zip((*BOUNDS_MS, None), self.counts, strict=True):
            total += count
            yield bound, total

    def shown(self) -> dict[str, Any]:
        quantiles = {
            f"p{round(100 * q)}_ms": None if (us := self.sketch.quantile(q)) is None else round(us / 1000, 3)
            for q in (0.5, 0.95, 0.99)
        }
        return {
            "count": sum(self.counts),
            "sum_ms": round(self.sum_ms, 3),
            "max_ms": round(self.max_ms, 3),
            **quantiles,
            "buckets": [{"le_ms": bound, "count": count} for bound, count in self.cumulative()],
        }


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a node said of a snapshot, how many milliseconds after its making, and when (Unix milliseconds)."""

    milliseconds: float | None
    at_ms: int
    refused: bool


@dataclass(slots=True)
class _Making:
    """A snapshot of which this process knows when it was made. Clocks: monotonic, and Unix milliseconds."""

    hash: str
    at: float
    at_ms: int
    cold: bool
    """Made when the process started to need it, not because something changed."""
    answers: dict[str, _Answer] = field(default_factory=dict)
    """Of each node that answered: that it took the snapshot, or else its first refusal."""


@dataclass(slots=True)
class _Track:
    """One control plane."""

    makings: OrderedDict[int, _Making] = field(default_factory=OrderedDict)
    arrivals: dict[str, float] = field(default_factory=dict)
    words: dict[str, list[Moment]] = field(default_factory=dict)
    """When each node said what is being written of it just now."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    """How many requests wait for receipts."""
    propagation: Propagation = field(default_factory=Propagation)

    def had(self, node_id: str, making: _Making) -> bool:
        """Whether the node was connected to this process when the snapshot was made."""
        return self.arrivals.get(node_id, math.inf) <= making.at

    def answer(self, making: _Making, node_id: str, moment: Moment, refused: bool) -> _Answer:
        known = self.had(node_id, making) or not making.cold
        return _Answer(_passed(making, moment) if known else None, moment.at_ms, refused)

    def answer_of(self, making: _Making, node_id: str, refused: bool) -> _Answer | None:
        """What a node answered, be it that its row is still being written."""
        known, words = making.answers.get(node_id), self.words.get(node_id)
        if words and (known is None or known.refused != refused):
            return self.answer(making, node_id, words[-1], refused)
        return known


class Receipts:
    """Hears of every snapshot that is made (`cache.on_made`) and of every word of a node (`roster.watch`)."""

    def __init__(self) -> None:
        self._tracks: OrderedDict[str, _Track] = OrderedDict()

    # -- listening

    def made(self, parcel: Parcel, cold: bool) -> None:
        snapshot = parcel.snapshot
        track = self._track(snapshot.control_plane_id)
        making = _Making(snapshot.hash, time.monotonic(), time.time_ns() // 1_000_000, cold)
        track.makings[snapshot.version] = making
        while len(track.makings) > _KEPT_VERSIONS:
            track.makings.popitem(last=False)
        _wake(track)

    def arrived(self, who: NodeId) -> None:
        self._track(who.control_plane_id).arrivals[who.node_id] = time.monotonic()

    def said(self, who: NodeId, moment: Moment) -> None:
        """A node's row will be written: from now on it may be read."""
        self._track(who.control_plane_id).words.setdefault(who.node_id, []).append(moment)

    def heard(self, who: NodeId, moment: Moment, values: Mapping[str, Any] | None) -> None:
        """It was written; `values` are its new columns, None when there was no row for them."""
        track = self._track(who.control_plane_id)
        _drop(track.words, who.node_id, moment)
        if values is None:
            return
        workers, error = values.get("workers") or (), values.get("last_error")
        newest = next((making.hash for making in reversed(track.makings.values())), "")
        for version, making in reversed(track.makings.items()):
            known = making.answers.get(who.node_id)
            refused = isinstance(error, Mapping) and error.get("version") == version
            if known is not None and (refused or not known.refused):
                break  # older ones were answered before, or overtaken
            if refused or runs_on_all(workers, version, (making.hash, newest)):
                making.answers[who.node_id] = track.answer(making, who.node_id, moment, refused)
                if values.get("config_version") == version and not refused and track.had(who.node_id, making):
                    track.propagation.add(_passed(making, moment))
        if values.get("sync_state") == "offline":
            track.arrivals.pop(who.node_id, None)
        _wake(track)

    def forget(self, control_plane_id: str) -> None:
        self._tracks.pop(control_plane_id, None)

    def _track(self, control_plane_id: str) -> _Track:
        track = self._tracks.setdefault(control_plane_id, _Track())
        self._tracks.move_to_end(control_plane_id)
        while len(self._tracks) > _KEPT_CONTROL_PLANES:
            self._tracks.popitem(last=False)
        return track

    # -- asking

    def changed(self, control_plane_id: str) -> asyncio.Event:
        """Set at the next change of anything. Take it before you look."""
        return self._track(control_plane_id).changed

    @contextlib.contextmanager
    def waiting(self, control_plane_id: str) -> Iterator[Callable[[], int]]:
        """Somebody waits for receipts; gives a way to ask how many do."""
        track = self._track(control_plane_id)
        track.waiting += 1
        try:
            yield lambda: track.waiting
        finally:
            track.waiting -= 1

    def hash_of(self, control_plane_id: str, version: int) -> str | None:
        making = self._track(control_plane_id).makings.get(version)
        return making.hash if making else None

    def propagation(self, control_plane_id: str) -> Propagation:
        return self._track(control_plane_id).propagation

    def propagations(self) -> Mapping[str, Propagation]:
        return {control_plane_id: track.propagation for control_plane_id, track in self._tracks.items()}

    def view(
        self, control_plane_id: str, version: int, hashes: tuple[str, ...], nodes: Sequence[tuple[Node, bool]]
    ) -> dict[str, Any]:
        """The receipts of a version. `nodes` are rows, each with whether it is connected.

        `hashes`: the version's own, and the current one's, if that is as new: it may have the content of an older one,
        and whoever runs that has nothing to take any more.
        """
        track = self._track(control_plane_id)
        making = track.makings.get(version)
        items = []
        for node, connected in nodes:
            state = _state(node, connected, version, hashes, making)
            answer = None
            if making is not None and state in {"applied", "refused"}:
                answer = track.answer_of(making, node.id, refused=state == "refused")
            items.append({**_receipt(node, state, version, hashes, answer), "connected": connected})
        states = [item["state"] for item in items if item["connected"]]
        summary = {name: states.count(name) for name in ("applied", "refused", "silent", "behind")}
        return {
            "version": version,
            "hash": hashes[0],
            "made_at_ms": making.at_ms if making and not making.cold else None,
            "complete": summary["silent"] + summary["behind"] == 0,
            "summary": {"connected": len(states), **summary},
            "items": items,
        }


def runs_on_all(workers: Sequence[Mapping[str, Any]], version: int, hashes: tuple[str, ...]) -> bool:
    """Whether every worker, and there is one, runs the version: one with equal content, or a later one."""
    return bool(workers) and all(_runs(worker, version, hashes) for worker in workers)


def _runs(worker: Mapping[str, Any], version: int, hashes: tuple[str, ...]) -> bool:
    return worker.get("hash") in hashes or int(worker.get("version") or 0) > version


def _receipt(
    node: Node, state: ReceiptState, version: int, hashes: tuple[str, ...], answer: _Answer | None
) -> dict[str, Any]:
    took = answer.milliseconds if answer is not None else None
    return {
        "node_id": node.id,
        "hostname": node.hostname,
        "state": state,
        "version": node.config_version,
        "hash": node.config_hash,
        "error": node.last_error if state == "refused" else None,
        "at_ms": answer.at_ms if answer is not None else None,
        "milliseconds": None if took is None else round(took, 3),
        "workers": [
            {
                **worker,
                "state": "applied" if _runs(worker, version, hashes) else state if state != "applied" else "behind",
            }
            for worker in node.workers
        ],
    }


def _state(node: Node, connected: bool, version: int, hashes: tuple[str, ...], making: _Making | None) -> ReceiptState:
    if runs_on_all(node.workers, version, hashes):
        return "applied"
    error = node.last_error
    if node.sync_state == "rejected" and error is not None:
        about = error.get("version")
        if about is None or about >= version:
            return "refused"
    late = making is not None and time.monotonic() - making.at > SILENT_SECONDS
    return "silent" if connected and late else "behind"


def _passed(making: _Making, moment: Moment) -> float:
    """Milliseconds; none for a node that ran the content before."""
    return max(0.0, (moment.at - making.at) * 1000)


def _drop(words: dict[str, list[Moment]], node_id: str, moment: Moment) -> None:
    if moment in (said := words.get(node_id, [])):
        said.remove(moment)
    if not said:
        words.pop(node_id, None)


def _wake(track: _Track) -> None:
    woken, track.changed = track.changed, asyncio.Event()
    woken.set()
