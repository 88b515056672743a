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
from data_plane.plugins.datakit.values import NULL, NodeError
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


async def run_stage(stage: Stage, state: State) -> Response | None:
    """Run all nodes; the response of an exit, if one was reached. Raises NodeFailure."""
    if not stage.steps:
        return None
    walk = _Walk(stage, state)
    try:
        return await walk.run()
    finally:
        await walk.cancel()


class _Walk:
    def __init__(self, stage: Stage, state: State) -> None:
        self._stage = stage
        self._state = state
        self._waiting = list(stage.waiting)
        self._calls: list[int] = []
        """Ready nodes that wait for something themselves."""
        self._ready: list[int] = []
        """Ready nodes that run in place: a heap, so that the order of the configuration decides."""
        self._tasks: dict[asyncio.Task[Output], int] = {}

    async def run(self) -> Response | None:
        for position, count in enumerate(self._stage.waiting):
            if count == 0:
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
            self._spawn(position, self._begin(position))

    def _begin(self, position: int) -> Awaitable[Output]:
        step = self._stage.steps[position]
        if self._state.trace is not None:
            self._state.trace.event(step.plan.name, "dispatch")
        outcome = step.kind.run(self._state)
        assert inspect.isawaitable(outcome)
        return outcome

    def _spawn(self, position: int, work: Awaitable[Output]) -> None:
        name = self._stage.steps[position].plan.name
        task = asyncio.create_task(_awaited(work), name=f"datakit node {name}")
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
            self._spawn(position, outcome)
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
        plan = self._stage.steps[position].plan
        if self._state.trace is not None:
            self._state.trace.event(plan.name, "fail", error=str(error))
        return NodeFailure(plan.index, plan.name, plan.kind, str(error))


async def _awaited(work: Awaitable[Output]) -> Output:
    return await work
