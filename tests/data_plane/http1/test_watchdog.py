"""A deadline that moves: a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from data_plane.http1.watchdog import Watchdog


class Timer:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """As much of an event loop as a watchdog uses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(when, callback))
        return self.timers[-1]

    def turn_to(self, moment: float) -> None:
        while due := [timer for timer in self.timers if not timer.cancelled and timer.when <= moment]:
            timer = min(due, key=lambda timer: timer.when)
            self.timers.remove(timer)
            self.now = timer.when
            timer.callback()
        self.now = moment


def make() -> tuple[Watchdog, Clock, list[float]]:
    clock: Any = Clock()
    fired: list[float] = []
    return Watchdog(clock, lambda: fired.append(clock.now)), clock, fired


def test_it_fires_once_when_the_deadline_passes() -> None:
    watchdog, clock, fired = make()
    watchdog.set(5)
    clock.turn_to(4.9)
    assert fired == []
    clock.turn_to(100)
    assert fired == [5.0]


def test_moving_the_deadline_on_costs_no_timer() -> None:
    watchdog, clock, fired = make()
    for moment in range(40):
        clock.turn_to(moment / 10)
        watchdog.set(5)
    assert len(clock.timers) == 1
    clock.turn_to(100)
    assert fired == [8.9]


def test_a_nearer_deadline_is_met() -> None:
    watchdog, clock, fired = make()
    watchdog.set(60)
    watchdog.set(5)
    clock.turn_to(100)
    assert fired == [5.0]


def test_no_deadline_is_no_alarm_and_a_new_one_counts() -> None:
    watchdog, clock, fired = make()
    watchdog.set(5)
    watchdog.clear()
    clock.turn_to(50)
    assert fired == []
    watchdog.set(5)
    clock.turn_to(100)
    assert fired == [55.0]


def test_a_closed_one_is_silent_and_leaves_no_timer() -> None:
    watchdog, clock, fired = make()
    watchdog.set(5)
    watchdog.close()
    clock.turn_to(100)
    assert fired == []
    assert clock.timers == [] or all(timer.cancelled for timer in clock.timers)
