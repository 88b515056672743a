"""The spool's way to the control plane, over real gRPC with mutual TLS."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from data_plane.agent import report
from data_plane.agent.link import Backoff, open_channel
from data_plane.agent.report import WINDOW, Reporter
from data_plane.agent.spool import Sealed
from gateway_schema.wire import analytics_pb2 as pb
from tests.data_plane.agent.control_plane import PATIENCE, ControlPlane, eventually
from tests.data_plane.agent.events import event, intake, worker_name
from tests.data_plane.agent.spools import opened
from tests.data_plane.agent.test_spool import LIMIT, ids


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "next", lambda self: 0.02)


class Sender:
    """A spool and its reporter; `crash` and `open` stand for an agent's death and the next one."""

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        self._settings = control_plane.settings(folder)
        self._folder = folder
        self._number = 0
        self.reported = 0
        self.open()

    def open(self) -> None:
        self.spool = opened(self._folder / "spool", LIMIT)
        self.channel: Any = open_channel(self._settings)
        self.reporter = Reporter(self.channel, "node", self.spool)
        self.task = asyncio.create_task(self.reporter.run())

    async def crash(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.channel.close()

    def report(self, count: int) -> None:
        self._number += 1
        some = [event(self.reported + number) for number in range(count)]
        self.reported += count
        self.spool.take_in(intake(worker_name(1), self._number, some))
        self.reporter.arrived()


@pytest.fixture
async def sender(control_plane: ControlPlane, state_dir: Path) -> AsyncIterator[Sender]:
    made = Sender(control_plane, state_dir)
    yield made
    await made.crash()


def counted(control_plane: ControlPlane) -> Counter[int]:
    return ids(list(control_plane.stored.values()))


async def all_stored(control_plane: ControlPlane, sender: Sender) -> None:
    await eventually(lambda: len(counted(control_plane)) >= sender.reported, "all is stored")
    assert counted(control_plane) == dict.fromkeys(range(sender.reported), 1)


async def test_events_arrive_and_leave_the_spool(control_plane: ControlPlane, sender: Sender) -> None:
    for _ in range(5):
        sender.report(300)
    await all_stored(control_plane, sender)
    await eventually(lambda: sender.spool.waiting_batches == 0, "all is acknowledged")
    assert [key[1] for key in control_plane.stored] == list(range(1, len(control_plane.stored) + 1))
    assert control_plane.reports[0].epoch == sender.spool.epoch


async def test_few_events_do_not_wait_for_company_for_long(control_plane: ControlPlane, sender: Sender) -> None:
    sender.report(1)
    await all_stored(control_plane, sender)


async def test_at_most_four_batches_are_under_way(control_plane: ControlPlane, sender: Sender) -> None:
    control_plane.acknowledging = False
    for _ in range(20):
        sender.report(500)
    await eventually(lambda: len(control_plane.arrived) == WINDOW, "the window is used")
    # A greeting behind the batches on another stream shows that nothing more was on its way.
    await sender.crash()
    control_plane.acknowledging = True
    assert len(control_plane.arrived) == WINDOW
    sender.open()
    await all_stored(control_plane, sender)


async def test_what_was_stored_but_not_acknowledged_is_not_stored_twice(
    control_plane: ControlPlane, sender: Sender
) -> None:
    control_plane.acknowledging = False
    sender.report(700)
    await eventually(lambda: len(control_plane.arrived) >= 1, "something arrived")
    await sender.crash()
    control_plane.acknowledging = True
    sender.open()
    sender.report(10)
    await all_stored(control_plane, sender)


async def test_a_batch_that_was_lost_on_the_way_is_sent_again_as_it_was(
    control_plane: ControlPlane, sender: Sender
) -> None:
    control_plane.acknowledging = False
    sender.report(10)
    await eventually(lambda: control_plane.arrived, "it arrived")
    control_plane.stored.clear()  # as if it never had
    await sender.crash()
    control_plane.acknowledging = True
    sender.open()
    await all_stored(control_plane, sender)
    first, again = control_plane.arrived
    assert first == again


async def test_an_outage_delays_and_loses_nothing(
    control_plane: ControlPlane, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        sender.report(10)
        await all_stored(control_plane, sender)
        await control_plane.stop()
        for _ in range(3):
            sender.report(400)
        await eventually(lambda: not sender.reporter.connected, "the stream is down")
        await control_plane.start()
        await all_stored(control_plane, sender)
    assert len([record for record in caplog.records if "analytics wait on disk" in record.message]) == 1


async def test_a_control_plane_that_lost_its_database_gets_a_new_epoch(
    control_plane: ControlPlane, sender: Sender
) -> None:
    sender.report(600)
    await all_stored(control_plane, sender)
    await eventually(lambda: sender.spool.waiting_batches == 0, "all is acknowledged")
    first = sender.spool.epoch
    control_plane.forgetful = True
    await sender.crash()
    sender.open()
    sender.report(5)
    await eventually(lambda: len(control_plane.events) == 5, "what came later is stored")
    assert sender.spool.epoch != first
    assert [sequence for _, sequence in control_plane.stored] == [1]


async def test_a_node_whose_place_another_took_numbers_anew_and_loses_nothing(
    control_plane: ControlPlane, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    sender.report(5)
    await all_stored(control_plane, sender)
    await eventually(lambda: sender.spool.waiting_batches == 0, "all is acknowledged")
    control_plane.taken_over = True
    sender.report(7)
    await all_stored(control_plane, sender)
    assert len({hello.epoch for hello in control_plane.reports}) == 2
    assert "another node reports under this node's id" in caplog.text


async def test_a_batch_that_nobody_acknowledges_means_a_dead_connection(
    control_plane: ControlPlane, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "ACK_TIMEOUT", 0.05)
    control_plane.acknowledging = False
    sender.report(1)
    await eventually(lambda: len(control_plane.reports) >= 2, "the stream is opened anew")
    control_plane.acknowledging = True
    await all_stored(control_plane, sender)


async def test_a_control_plane_can_ask_for_a_pause(control_plane: ControlPlane, sender: Sender) -> None:
    pauses: list[float] = []
    flight = report._Flight(sender.spool, _Call())
    flight.acknowledged(1, 0.01)
    started = time.monotonic()
    await flight.send(Sealed(2, pb.Batch(sequence=2).SerializeToString()))
    pauses.append(time.monotonic() - started)
    assert pauses[0] >= 0.01
    assert not flight.empty


class _Call:
    async def write(self, message: pb.ReportMessage) -> None:
        assert message.batch.sequence == 2


async def test_closing_delivers_what_is_left_and_says_goodbye(control_plane: ControlPlane, sender: Sender) -> None:
    sender.report(3)
    await eventually(lambda: sender.reporter.connected, "it is connected")
    sender.report(4)
    sender.reporter.close()
    async with asyncio.timeout(PATIENCE):
        await sender.task
    await all_stored(control_plane, sender)
    assert [bye.last_sequence for bye in control_plane.byes] == [sender.spool.last_sequence]


async def test_closing_without_a_control_plane_does_not_wait_for_one(
    control_plane: ControlPlane, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    await eventually(lambda: sender.reporter.connected, "it is connected")
    monkeypatch.setattr(Backoff, "next", lambda self: 3600.0)
    await control_plane.stop()
    await eventually(lambda: not sender.reporter.connected, "it is not any more")
    sender.report(3)
    sender.reporter.close()
    async with asyncio.timeout(PATIENCE):
        await sender.task
    assert sender.spool.unsent_events == 3
    await control_plane.start()
