"""Running one plan of a workflow: the nodes of one phase, each as soon as all that it waits for is settled.

Nodes that wait (calls) run concurrently; all others run in place, in the order of the configuration. A node that only
branches not taken list is skipped; whoever reads it sees null. The first failure, an exit, or the client's leaving
cancels what is still running.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from data_plane.messages import Response
from data_plane.plugins.datakit.nodes import Exit, Kind
from data_plane.plugins.datakit.sources import Output, read_output
from data_plane.plugins.datakit.state import State
from data_plane.plugins.datakit.values import NULL, NodeError, Value
from gateway_schema.plugins.datakit_graph import NodePlan


class NodeFailure(Exception):
    """A run that ended because a node failed."""

    def __init__(self, index: int, name: str, kind: str, reason: str) -> None:
        self.index = index
        self.name = name
        self.kind = kind
        self.reason = reason
        super().__init__(f'node #{index} ({name}) failed with error: "{reason}"')


@dataclass(frozen=True, slots=True)
class Step:
    plan: NodePlan
    kind: Kind


class Stage:
    """The nodes of one phase, with who waits for whom among them. Shared by all requests."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        positions = {step.plan.name: position for position, step in enumerate(steps)}
        waits = [[positions[name] for name in step.plan.waits_for if name in positions] for step in steps]
        self.waiting = tuple(len(names) for names in waits)
        self.dependents = tuple(
            tuple(waiter for waiter, names in enumerate(waits) if position in names) for position in range(len(steps))
        )
        self.foreseen = _foreseen(self)
        self.opening = tuple(
            (step, step.kind.run, step.kind.asynchronous) for step in map(steps.__getitem__, self.foreseen)
        )


def _foreseen(stage: Stage) -> tuple[int, ...]:
    """The nodes that come first in every run, in their order: each as long as nothing else has its turn meanwhile.

    They end where a branch decides, or where a call would leave others something to do.
    """
    waiting = list(stage.waiting)
    calls: list[int] = []
    ready: list[int] = []
    order: list[int] = []
    free = [position for position, count in enumerate(waiting) if count == 0]
    while not any(stage.steps[position].plan.branches for position in free):
        for position in free:
            if stage.steps[position].kind.asynchronous:
                calls.append(position)
            else:
                heappush(ready, position)
        if len(calls) > 1 or (calls and ready) or not (calls or ready):
            break
        settled = calls.pop() if calls else heappop(ready)
        order.append(settled)
        free = []
        for waiter in stage.dependents[settled]:
            waiting[waiter] -= 1
            if waiting[waiter] == 0:
                free.append(waiter)
    return tuple(order)


async def run_stage(stage: Stage, state: State) -> Response | None:
    """Run all nodes; the response of an exit, if one was reached. Raises NodeFailure."""
    if state.trace is not None:
        return await _walk(stage, state, 0)
    outputs = state.outputs
    for count, (step, run, waits) in enumerate(stage.opening):
        try:
            outcome = run(state)
            if waits:
                outcome = await outcome  # type: ignore[misc]
            elif not isinstance(outcome, Value):
                if isinstance(outcome, Exit):
                    return outcome.response
                if inspect.isawaitable(outcome):
                    return await _walk(stage, state, count, outcome)
        except NodeError as error:
            raise _failure(step, error) from None
        outputs[step.plan.name] = outcome
    return await _walk(stage, state, len(stage.foreseen)) if len(stage.foreseen) < len(stage.steps) else None


async def _walk(stage: Stage, state: State, done: int, work: Awaitable[Output] | None = None) -> Response | None:
    """Run what the first `done` of the foreseen nodes leave; `work`, if any, is what the next of them has begun."""
    walk = _Walk(stage, state, stage.foreseen[:done])
    try:
        if work is not None:
            walk.spawn(stage.foreseen[done], work)
        return await walk.run()
    finally:
        await walk.cancel()


def _failure(step: Step, error: NodeError) -> NodeFailure:
    return NodeFailure(step.plan.index, step.plan.name, step.plan.kind, str(error))


class _Walk:
    def __init__(self, stage: Stage, state: State, settled: Sequence[int]) -> None:
        self._stage = stage
        self._state = state
        self._waiting = list(stage.waiting)
        self._begun = set(settled)
        """Nodes that need not be entered at the start."""
        self._calls: list[int] = []
        """Ready nodes that wait for something themselves."""
        self._ready: list[int] = []
        """Ready nodes that run in place: a heap, so that the order of the configuration decides."""
        self._tasks: dict[asyncio.Task[Output], int] = {}
        for position in settled:
            for waiter in stage.dependents[position]:
                self._waiting[waiter] -= 1

    async def run(self) -> Response | None:
        free = [n for n, count in enumerate(self._waiting) if count == 0 and n not in self._begun]
        for position in free:
            self._enqueue(position)
        while self._calls or self._ready or self._tasks:
            if self._calls:
                await self._start_calls()
            elif self._ready:
                response = self._run_in_place(heappop(self._ready))
                if response is not None:
                    return response
            else:
                await self._await_one()
        return None

    async def cancel(self) -> None:
        """Stop what still runs, and wait until it has let go of its connections."""
        if not self._tasks:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._state.trace is not None:
            for position in self._tasks.values():
                self._state.trace.event(self._stage.steps[position].plan.name, "cancel")
        self._tasks.clear()

    def _enqueue(self, position: int) -> None:
        step = self._stage.steps[position]
        if step.plan.branches and step.plan.name not in self._state.chosen:
            self._settle(position, NULL, "skip")
        elif step.kind.asynchronous:
            self._calls.append(position)
        else:
            heappush(self._ready, position)

    def _settle(self, position: int, output: Output, action: str = "complete") -> None:
        step = self._stage.steps[position]
        self._state.outputs[step.plan.name] = output
        if self._state.trace is not None:
            self._state.trace.event(step.plan.name, action, read_output(output, None))
        for waiter in self._stage.dependents[position]:
            self._waiting[waiter] -= 1
            if self._waiting[waiter] == 0:
                self._enqueue(waiter)

    async def _start_calls(self) -> None:
        calls, self._calls = self._calls, []
        if len(calls) == 1 and not self._ready and not self._tasks:
            # Nothing else can run meanwhile, so a task would only cost.
            try:
                output = await self._begin(calls[0])
            except NodeError as error:
                raise self._failure(calls[0], error) from None
            self._settle(calls[0], output)
            return
        for position in calls:
            self.spawn(position, self._begin(position))

    def _begin(self, position: int) -> Awaitable[Output]:
        step = self._stage.steps[position]
        if self._state.trace is not None:
            self._state.trace.event(step.plan.name, "dispatch")
        outcome = step.kind.run(self._state)
        assert inspect.isawaitable(outcome)
        return outcome

    def spawn(self, position: int, work: Awaitable[Output]) -> None:
        name = self._stage.steps[position].plan.name
        # Not a coroutine around it: cancelled before its first step, that would never have awaited the work.
        task = asyncio.ensure_future(work)
        task.set_name(f"datakit node {name}")
        self._begun.add(position)
        self._tasks[task] = position

    def _run_in_place(self, position: int) -> Response | None:
        step = self._stage.steps[position]
        if self._state.trace is not None:
            self._state.trace.event(step.plan.name, "run")
        try:
            outcome = step.kind.run(self._state)
        except NodeError as error:
            raise self._failure(position, error) from None
        if isinstance(outcome, Exit):
            self._settle(position, NULL)
            return outcome.response
        if inspect.isawaitable(outcome):
            self.spawn(position, outcome)
        else:
            self._settle(position, outcome)
        return None

    async def _await_one(self) -> None:
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in sorted(done, key=self._tasks.__getitem__):
            # Taken out only when its result is taken: `cancel` sees to the others should this one have failed.
            position = self._tasks.pop(task)
            try:
                output = task.result()
            except NodeError as error:
                raise self._failure(position, error) from None
            self._settle(position, output)

    def _failure(self, position: int, error: NodeError) -> NodeFailure:
        step = self._stage.steps[position]
        if self._state.trace is not None:
            self._state.trace.event(step.plan.name, "fail", error=str(error))
        return _failure(step, error)
