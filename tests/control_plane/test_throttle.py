"""Counting wrong tokens, by an injected clock."""

from __future__ import annotations

from control_plane.throttle import FORGIVEN_AFTER, FREE, LONGEST, MOST_TOLD, Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def exhausted(throttle: Throttle, address: str = "192.0.2.1") -> None:
    for number in range(FREE):
        assert throttle.refused(address, f"{number:08d}") == 0


def test_the_first_mistakes_cost_nothing_then_waits_double() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    exhausted(throttle)
    waits = []
    for number in range(12):
        waits.append(throttle.refused("192.0.2.1", f"x{number:07d}"))
        clock.now += waits[-1]
    assert waits[:3] == [2, 4, 8]
    assert waits == sorted(waits)
    assert max(waits) == LONGEST


def test_an_attempt_inside_the_wait_hears_what_is_left_of_it() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    exhausted(throttle)
    assert throttle.refused("192.0.2.1", "aaaaaaaa") == 2
    clock.now += 1.5
    assert throttle.refused("192.0.2.1", "bbbbbbbb") == 0.5


def test_another_address_is_not_concerned() -> None:
    throttle = Throttle(Clock())
    exhausted(throttle)
    assert throttle.refused("192.0.2.1", "aaaaaaaa") > 0
    assert throttle.refused("192.0.2.2", "bbbbbbbb") == 0


def test_one_token_tried_from_many_addresses_is_slowed_down() -> None:
    throttle = Throttle(Clock())
    for number in range(FREE):
        assert throttle.refused(f"192.0.2.{number}", "cafecafe0000") == 0
    assert throttle.refused("198.51.100.1", "cafecafe1111") > 0


def test_silence_forgives() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    exhausted(throttle)
    clock.now += FREE * FORGIVEN_AFTER
    exhausted(throttle)


def test_a_steady_trickle_below_the_pace_of_forgiving_is_never_throttled() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for number in range(200):
        assert throttle.refused("192.0.2.1", f"{number:08d}") == 0
        clock.now += FORGIVEN_AFTER


def test_memory_is_bounded_and_the_noisiest_stays_known() -> None:
    throttle = Throttle(Clock())
    exhausted(throttle, "192.0.2.1")
    for number in range(30_000):
        throttle.refused(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", f"t{number:07d}")
        if number % 1000 == 0:
            throttle.refused("192.0.2.1", "deadbeef")
        throttle.tells("login", f"event {number}")
    assert len(throttle._records) <= 10_000
    assert len(throttle._told) <= 10_000
    assert throttle.refused("192.0.2.1", "feedfeed") > 0


def test_an_event_is_told_once_a_minute() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    assert throttle.tells("login", "refused 192.0.2.1")
    assert not throttle.tells("login", "refused 192.0.2.1")
    assert throttle.tells("login", "refused 192.0.2.2")
    clock.now += 60
    assert throttle.tells("login", "refused 192.0.2.1")


def test_many_addresses_do_not_fill_the_log() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    assert sum(throttle.tells("login", f"refused 10.0.{n >> 8}.{n & 255}") for n in range(5000)) == MOST_TOLD
    clock.now += 60
    assert throttle.tells("login", "refused 192.0.2.1")
