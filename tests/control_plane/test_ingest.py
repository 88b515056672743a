"""Batches are stored once: whatever is resent, in whatever order, and whatever breaks in between."""

from __future__ import annotations

import asyncio
import itertools
import random
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from control_plane import ingest as module
from control_plane.bounds import MAX_AMOUNT, MAX_TOKENS
from control_plane.database import Database
from control_plane.ingest import Ingest, InvalidBatch, Reporter
from control_plane.models import ANALYTICS_EPOCHS, API_USAGE, LLM_CALLS, LLM_USAGE, REQUEST_EVENTS
from control_plane.rollups import MAX_INT, Rollups
from gateway_schema.wire import analytics_pb2
from tests.control_plane.usage import CONTROL_PLANE, START, batches, event, fold

NODE = "22222222-2222-4222-8222-222222222222"


def reporter(epoch: str = "a") -> Reporter:
    return Reporter(CONTROL_PLANE, NODE, epoch)


async def stored(database: Database) -> dict[str, Any]:
    """Everything that the usage tables hold, and how many rows the log has."""
    async with database.reading() as session:
        usage = {
            table.name: sorted(tuple(row) for row in await session.execute(select(table)))
            for table in (API_USAGE, LLM_USAGE)
        }
        counts = {
            table.name: (await session.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (REQUEST_EVENTS, LLM_CALLS)
        }
    return usage | {"counts": counts}


async def requests_of(database: Database) -> int:
    async with database.reading() as session:
        return int((await session.execute(select(func.sum(API_USAGE.c.requests)))).scalar_one() or 0)


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_and_any_number_of_replays_leave_all_totals_equal(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    ingest, sent = Ingest(database), batches(chance, 8, 12)
    for batch in sent:
        await ingest.apply(reporter(), batch)
    once = await stored(database)
    assert once["counts"]["request_events"] == 96

    shuffled = [batch for batch in sent for _ in range(chance.randrange(1, 4))]
    chance.shuffle(shuffled)
    for batch in shuffled:
        await ingest.apply(reporter(), batch)
    assert await stored(database) == once

    for batch in shuffled:  # another spool, in any order from its first batch on
        last = await Ingest(database).apply(reporter("b"), batch)
    assert last == 8
    assert await requests_of(database) == 2 * 96


async def test_streams_that_send_the_same_batches_at_once_count_them_once(database: Database) -> None:
    sent = batches(random.Random(1), 6, 5)
    streams = [Ingest(database) for _ in range(3)]
    await asyncio.gather(*(ingest.apply(reporter(), batch) for ingest in streams for batch in sent))
    assert await requests_of(database) == 30
    assert await streams[0].last_durable(reporter()) == 6


async def test_nodes_that_report_at_once_lose_nothing_of_the_minutes_that_they_share(database: Database) -> None:
    ingest = Ingest(database)
    by_node = {name: batches(random.Random(name), 3, 6) for name in "abcd"}
    await asyncio.gather(*(ingest.apply(reporter(name), batch) for name, sent in by_node.items() for batch in sent))
    assert await requests_of(database) == 4 * 18


async def test_the_last_durable_sequence_waits_for_the_batches_before(database: Database) -> None:
    ingest, sent = Ingest(database), batches(random.Random(2), 4, 1)
    assert [await ingest.apply(reporter(), sent[place]) for place in (1, 3, 0, 2)] == [0, 0, 2, 4]
    assert await ingest.last_durable(reporter()) == 4
    assert await ingest.last_durable(reporter("unheard of")) == 0


async def test_a_break_inside_the_transaction_leaves_no_trace_and_the_batch_can_come_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, batch = Ingest(database), batches(random.Random(3), 1, 5)[0]
    before = await stored(database)
    for step in ("write", "add_event"):
        with monkeypatch.context() as patch:

            def explode(*_: Any) -> None:
                raise ConnectionError("the database went away")

            patch.setattr(Rollups, step, explode)
            with pytest.raises(ConnectionError):
                await ingest.apply(reporter(), batch)
        assert await stored(database) == before
        assert await ingest.last_durable(reporter()) == 0
    assert await ingest.apply(reporter(), batch) == 1
    assert await requests_of(database) == 5


async def test_a_stream_that_is_cut_off_while_its_batch_is_stored_loses_neither_batch_nor_connection(
    database: Database,
) -> None:
    ingest, batch = Ingest(database), batches(random.Random(4), 1, 5)[0]
    for turns in range(12):
        asked = asyncio.ensure_future(ingest.apply(reporter(), batch))
        for _ in range(turns):
            await asyncio.sleep(0)
        asked.cancel()
    await ingest.close()
    await ingest.apply(reporter(), batch)
    assert await requests_of(database) == 5


async def test_folded_events_add_up_to_the_same_as_whole_ones(database: Database) -> None:
    chance = random.Random(5)
    events = [event(chance) for _ in range(60)]
    ingest = Ingest(database)
    await ingest.apply(reporter(), analytics_pb2.Batch(sequence=1, events=events))
    whole = await stored(database)
    folded = analytics_pb2.Batch(sequence=2, deltas=[fold(one) for one in events])
    await ingest.apply(reporter(), folded)
    both = await stored(database)
    assert both["counts"] == whole["counts"]
    counters = [place for place, column in enumerate(API_USAGE.columns) if column.name in ("requests", "total_sum_us")]
    for before, after in zip(whole["api_usage"], both["api_usage"], strict=True):
        assert [after[place] for place in counters] == [2 * before[place] for place in counters]


async def test_a_batch_without_a_sequence_or_of_immoderate_size_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 3)
    for batch in (
        analytics_pb2.Batch(sequence=0),
        analytics_pb2.Batch(sequence=MAX_INT + 1),
        batches(random.Random(6), 1, 4)[0],
    ):
        with pytest.raises(InvalidBatch):
            await Ingest(database).apply(reporter(), batch)
    assert await requests_of(database) == 0


async def test_gaps_beyond_reason_are_given_up_in_order(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RANGES", 4)
    ingest = Ingest(database)
    for sequence in range(10, 100, 10):
        last = await ingest.apply(reporter(), analytics_pb2.Batch(sequence=sequence))
    assert last > 0
    async with database.reading() as session:
        ahead = (await session.execute(select(ANALYTICS_EPOCHS.c.applied_ahead))).scalar_one()
    assert len(ahead) <= 4


async def test_strange_values_are_stored_and_not_refused_for_ever(database: Database) -> None:
    """A batch that could not be stored would be sent again without end."""
    strange = event(
        random.Random(7),
        path="/\0" + "x" * 5000,
        user_agent="\0",
        service_id="s" * 500,
        request_size=(1 << 64) - 1,
        config_version=(1 << 64) - 1,
        total_us=(1 << 64) - 1,
        finished_us=1 << 62,
        status=(1 << 32) - 1,
    )
    strange.llm_calls.append(analytics_pb2.LlmCall(provider="p\0" * 500, prompt_tokens=(1 << 64) - 1))
    delta = analytics_pb2.UsageDelta(minute=-5, requests=1, total=analytics_pb2.Distribution(count=1, sketch=b"\xff"))
    huge = analytics_pb2.Distribution(count=(1 << 64) - 1, sketch=b"\xff" * 9 + b"\x01\x01")
    deltas = [delta, analytics_pb2.UsageDelta(minute=START, requests=(1 << 64) - 1, total=huge)]
    ingest = Ingest(database)
    batch = analytics_pb2.Batch(sequence=1, events=[strange], deltas=deltas, dropped_events=(1 << 64) - 1)
    assert await ingest.apply(reporter(), batch) == 1
    assert await ingest.apply(reporter(), analytics_pb2.Batch(sequence=2, events=[strange], deltas=deltas)) == 2


async def test_numbers_that_cannot_be_are_cut_and_told(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    absurd = event(random.Random(8), request_size=(1 << 64) - 1, status=200)
    below = analytics_pb2.LlmCall(request_model="m", prompt_tokens=(1 << 63) - 1, cost_nano_usd=-(1 << 63))
    above = analytics_pb2.LlmCall(request_model="m", completion_tokens=1 << 63, cost_nano_usd=(1 << 63) - 1)
    del absurd.llm_calls[:]
    absurd.llm_calls.extend([below, above])
    folded = analytics_pb2.UsageDelta(minute=START, llm=[analytics_pb2.LlmDelta(calls=1, cost_nano_usd=-(1 << 63))])
    batch = analytics_pb2.Batch(sequence=1, events=[absurd], deltas=[folded])
    assert await Ingest(database).apply(reporter(), batch) == 1
    assert f"batch 1 of node {NODE}: 6 numbers that cannot be are cut" in caplog.text
    async with database.reading() as session:
        rows = (await session.execute(select(LLM_CALLS).order_by(LLM_CALLS.c.call_index))).all()
        sums = [row.cost_nano_usd for row in await session.execute(select(LLM_USAGE.c.cost_nano_usd))]
    assert [(row.prompt_tokens, row.completion_tokens) for row in rows] == [(MAX_TOKENS, 0), (0, MAX_TOKENS)]
    assert [row.cost_nano_usd for row in rows] == [0, MAX_AMOUNT]
    assert sorted(sums) == [0, MAX_AMOUNT]


async def test_what_can_be_is_stored_as_it_came(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    await Ingest(database).apply(reporter(), batches(random.Random(9), 1, 20)[0])
    assert "cannot be" not in caplog.text


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
SEQUENCES = itertools.count(1)


def with_texts(message: Any, texts: Iterator[str]) -> Any:
    """Every text of a message, and of those within it, is the next of these."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING:
            setattr(message, field.name, next(texts))
        elif field.type == field.TYPE_MESSAGE:
            value = getattr(message, field.name)
            for one in [value.add()] if field.is_repeated else [value]:
                with_texts(one, texts)
    return message


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ANY_TEXT, min_size=1, max_size=8))
@example(["a\0b"])
@example(["\0"])
@example(["\x1b[2J\r\n" * 500])
async def test_whatever_texts_a_batch_holds_it_is_stored_and_none_has_control_characters(
    database: Database, texts: list[str]
) -> None:
    batch = with_texts(analytics_pb2.Batch(sequence=next(SEQUENCES)), itertools.cycle(texts))
    await Ingest(database).apply(reporter("texts"), batch)
    async with database.reading() as session:
        for table in (REQUEST_EVENTS, LLM_CALLS, API_USAGE, LLM_USAGE):
            for row in await session.execute(select(table)):
                assert not any(unicodedata.category(letter) == "Cc" for letter in "".join(filter(is_text, row)))


def is_text(value: object) -> bool:
    return isinstance(value, str)


async def test_the_request_log_is_pruned_and_the_sums_stay(database: Database) -> None:
    ingest = Ingest(database)
    for batch in batches(random.Random(8), 3, 20):
        await ingest.apply(reporter(), batch)
    kept_from = (START + 45 * 60) * 1_000_000
    await ingest.prune(kept_from)
    async with database.reading() as session:
        for table in (REQUEST_EVENTS, LLM_CALLS):
            assert (await session.execute(select(func.min(table.c.finished_us)))).scalar_one() >= kept_from
    assert await requests_of(database) == 60


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 30), max_size=80))
def test_the_ledger_knows_exactly_what_came(sequences: list[int]) -> None:
    """Against a plain set: what is applied, and through which number without a hole."""
    through, ranges, seen = 0, [], set()
    for sequence in sequences:
        assert module._is_applied(sequence, through, ranges) is (sequence in seen)
        through, ranges = module._advance(sequence, through, ranges)
        seen.add(sequence)
        expected = 0
        while expected + 1 in seen:
            expected += 1
        assert through == expected
        assert sorted(seen - set(range(1, through + 1))) == [
            number for first, last in ranges for number in range(first, last + 1)
        ]
