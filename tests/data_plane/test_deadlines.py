"""Deadlines that share a timer end what `asyncio.timeout` would end, and at the same moments. Time is ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_plane.deadlines import Deadlines


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time passes when the test says so."""

    now = 1000.0
    timers = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        self.timers += 1
        return super().call_at(when, *args, **options)

    async def pass_(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(5):
            await asyncio.sleep(0)


def in_time_of_its_own(test: Callable[[Loop], Coroutine[Any, Any, Any]]) -> Any:
    loop = Loop()
    try:
        return loop.run_until_complete(test(loop))
    finally:
        loop.close()


@asynccontextmanager
async def ours(deadlines: Deadlines, seconds: float) -> Any:
    with deadlines.within(seconds):
        yield


@asynccontextmanager
async def theirs(_: Deadlines, seconds: float) -> Any:
    async with asyncio.timeout(seconds):
        yield


async def outcomes(loop: Loop, way: Any, blocks: list[tuple[int, int, int, int, int]]) -> list[Any]:
    """What becomes of work with a limit around it and another around that, and when; some is cancelled from outside."""
    deadlines = Deadlines()

    async def one(outer: int, inner: int, work: asyncio.Future[None]) -> Any:
        try:
            async with way(deadlines, outer):
                try:
                    async with way(deadlines, inner):
                        await work
                except TimeoutError:
                    return "inner", loop.now
        except TimeoutError:
            return "outer", loop.now
        except asyncio.CancelledError:
            return "cancelled", loop.now
        return "done", loop.now

    works = [loop.create_future() for _ in blocks]
    tasks: dict[int, asyncio.Task[Any]] = {}
    for now in range(14):
        for number, (start, outer, inner, length, cancelled) in enumerate(blocks):
            if now == start:
                tasks[number] = asyncio.create_task(one(outer, inner, works[number]))
            if now >= start + length and not works[number].done():
                works[number].set_result(None)
            if now == start + cancelled and now > start:
                tasks[number].cancel()
        await loop.pass_(0)
        await loop.pass_(1)
    for task in tasks.values():
        task.cancel()
    return list(await asyncio.gather(*tasks.values(), return_exceptions=True))


MOMENTS = st.integers(0, 6)


@settings(deadline=None)
@given(st.lists(st.tuples(MOMENTS, MOMENTS, MOMENTS, st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5))
@example([(0, 3, 3, 9, 9)])
@example([(0, 6, 5, 1, 9), (0, 6, 3, 9, 9)])
@example([(0, 5, 2, 9, 2)])
def test_blocks_end_as_those_of_asyncio(blocks: list[tuple[int, int, int, int, int]]) -> None:
    mine = in_time_of_its_own(lambda loop: outcomes(loop, ours, blocks))
    theirs_ = in_time_of_its_own(lambda loop: outcomes(loop, theirs, blocks))

    assert [str(outcome) for outcome in mine] == [str(outcome) for outcome in theirs_]


def test_a_thousand_blocks_that_end_in_time_take_one_timer() -> None:
    async def test(loop: Loop) -> None:
        deadlines = Deadlines()
        for _ in range(1000):
            with deadlines.within(60):
                await loop.pass_(0.001)

        assert loop.timers == 1

    in_time_of_its_own(test)


def test_a_deadline_that_passed_already_ends_what_waits() -> None:
    async def test(loop: Loop) -> None:
        with pytest.raises(TimeoutError), Deadlines().within(-1):
            await asyncio.Event().wait()

    in_time_of_its_own(test)


def test_what_fails_for_another_reason_says_so() -> None:
    async def test(loop: Loop) -> None:
        deadlines = Deadlines()
        with pytest.raises(ZeroDivisionError), deadlines.within(1):
            raise ZeroDivisionError
        await loop.pass_(2)
        assert not deadlines.running

    in_time_of_its_own(test)


def test_deadlines_go_on_in_another_loop() -> None:
    deadlines = Deadlines()

    async def test(loop: Loop) -> None:
        with pytest.raises(TimeoutError), deadlines.within(5):
            await asyncio.gather(loop.pass_(6), asyncio.Event().wait())

    in_time_of_its_own(test)
    in_time_of_its_own(test)
