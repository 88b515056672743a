"""Rides of one turn take their steps together, and none keeps the others from theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from data_plane.http1 import turn
from data_plane.http1.express import Ride, Steps
from data_plane.http1.turn import Turn, in_step, turn_of


class Diary:
    """A line, a platform and a connection in one: notes what is done with rides."""

    is_draining = False

    def __init__(self) -> None:
        self.entries: list[str] = []

    def board(self, ride: Ride) -> Steps:
        return self._steps(ride, "boards")

    def arrive(self, ride: Ride) -> Steps:
        return self._steps(ride, "arrives")

    def derail(self, ride: Ride) -> None:
        self.entries.append(f"{ride.id} derails")

    def landed(self, ride: Ride) -> None:
        self.entries.append(f"{ride.id} lands")

    def _steps(self, ride: Ride, does: str) -> Steps:
        self.entries.append(f"{ride.id} {does}")
        yield
        self.entries.append(f"{ride.id} goes on")


def ride(diary: Diary, name: str) -> Ride:
    made = Ride(diary, diary, None, b"")  # type: ignore[arg-type]
    made.id = name
    return made


def arriving(diary: Diary, name: str) -> Ride:
    made = ride(diary, name)
    made.behind = diary  # type: ignore[assignment]
    return made


async def test_steps_are_taken_together_when_the_turn_ends_answers_first() -> None:
    diary = Diary()
    now = turn_of(asyncio.get_running_loop())
    for name in "ab":
        now.take(ride(diary, name))
    now.take(arriving(diary, "c"))
    now.take(arriving(diary, "d"))
    assert diary.entries == []
    await asyncio.sleep(0)
    assert diary.entries == [
        *("c arrives", "d arrives", "c goes on", "d goes on", "c lands", "d lands"),
        *("a boards", "b boards", "a goes on", "b goes on", "a derails", "b derails"),
    ]


async def test_who_has_left_meanwhile_is_passed_over() -> None:
    diary = Diary()
    now = Turn(asyncio.get_running_loop())
    for name in "abc":
        made = ride(diary, name)
        now.take(made)
        made.is_on = name == "b"
    await asyncio.sleep(0)
    assert diary.entries == ["b boards", "b goes on", "b derails"]


@pytest.mark.parametrize("make", [ride, arriving])
async def test_no_more_than_so_many_wait_for_each_other(make: Callable[[Diary, str], Ride]) -> None:
    diary = Diary()
    now = Turn(asyncio.get_running_loop())
    for number in range(turn._MOST):
        assert diary.entries == []
        now.take(make(diary, str(number)))
    assert len(diary.entries) == 3 * turn._MOST
    now.take(make(diary, "next"))
    assert len(diary.entries) == 3 * turn._MOST
    await asyncio.sleep(0)
    assert len(diary.entries) == 3 * (turn._MOST + 1)


async def test_turns_follow_one_another() -> None:
    diary = Diary()
    now = Turn(asyncio.get_running_loop())
    for name in "abc":
        now.take(ride(diary, name))
        await asyncio.sleep(0)
        assert diary.entries[-1] == f"{name} derails"


async def test_a_fault_in_one_turn_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Diary):
        def derail(self, ride: Ride) -> None:
            raise RuntimeError

    diary = Diary()
    now = Turn(asyncio.get_running_loop())
    now.take(ride(Faulty(), "a"))
    now.take(ride(diary, "b"))
    await asyncio.sleep(0)
    assert diary.entries[-1:] == ["b derails"]
    assert "could not be" in caplog.text
    now.take(ride(diary, "c"))
    await asyncio.sleep(0)
    assert diary.entries[-1] == "c derails"


def test_steps_in_step(caplog: pytest.LogCaptureFixture) -> None:
    taken: list[tuple[str, int]] = []

    def steps(name: str, count: int, fault: Exception | None = None) -> Steps:
        for number in range(count):
            taken.append((name, number))
            yield
        if fault is not None:
            raise fault

    in_step([steps("a", 3), steps("b", 1), steps("c", 2), steps("d", 0)])
    assert taken == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1), ("a", 2)]
    taken.clear()
    in_step([steps("a", 3), steps("b", 1, RuntimeError("no way")), steps("c", 2)])
    assert sorted(taken) == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0), ("c", 1)]
    assert "no way" in caplog.text
