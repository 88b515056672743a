from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.agent.fold import OTHER, Fold
from gateway_schema.wire import analytics_pb2 as pb
from tests.data_plane.agent.events import calls, event, events, totals


def folded(fold: Fold) -> pb.Batch:
    return pb.Batch(deltas=fold.deltas())


@given(st.lists(events, max_size=30), st.integers(1, 5), st.booleans())
def test_counts_tokens_cost_and_latencies_are_the_same_folded_as_whole(
    some: list[pb.RequestEvent], max_keys: int, consumers: bool
) -> None:
    fold = Fold(max_keys=max_keys, consumers=consumers)
    for each in some:
        fold.add(each)
    assert totals([folded(fold)]) == totals([pb.Batch(events=some)])
    assert fold.requests == len(some)


@settings(max_examples=50)
@given(st.lists(st.lists(events, max_size=8), max_size=5), st.sampled_from([60, 900, 3600]))
def test_folding_what_was_folded_changes_no_sum(groups: list[list[pb.RequestEvent]], step: int) -> None:
    again = Fold(step=step)
    for group in groups:
        first = Fold()
        for each in group:
            assert first.add_serialised(each.SerializeToString())
        again.merge_batch(folded(first))
    everything = pb.Batch(events=[each for group in groups for each in group])
    assert totals([folded(again)]) == totals([everything])
    assert all(delta.minute % step == 0 for delta in again.deltas())


def test_a_delta_stands_in_the_minute_in_which_its_events_ended() -> None:
    fold = Fold()
    fold.add(event(1, minute=7))
    fold.add(event(2, minute=7))
    fold.add(event(3, minute=8))
    assert [(delta.minute, delta.requests) for delta in fold.deltas()] == [(420, 2), (480, 1)]


def test_keys_beyond_the_limit_lose_the_consumer_first() -> None:
    fold = Fold(max_keys=2)
    for consumer in ("a", "b", "c", "d"):
        each = event()
        each.consumer_id = consumer
        fold.add(each)
    kept = {delta.consumer_id: (delta.service_id, delta.requests) for delta in fold.deltas()}
    assert kept == {"a": ("s", 1), "b": ("s", 1), OTHER: (OTHER, 2)}


@settings(max_examples=20)
@given(st.lists(calls, min_size=1, max_size=3))
def test_invented_model_names_cannot_grow_a_key_without_bound(some: list[pb.LlmCall]) -> None:
    fold = Fold()
    for number in range(300):
        each = event(number)
        each.llm_calls.add(provider="openai", request_model=f"model-{number}", prompt_tokens=3)
        each.llm_calls.extend(some)
        fold.add(each)
    (delta,) = fold.deltas()
    assert len(delta.llm) < 250
    assert sum(llm.calls for llm in delta.llm) == 300 * (1 + len(some))


def test_bytes_that_are_no_event_are_not_folded() -> None:
    fold = Fold()
    assert not fold.add_serialised(b"\xff\xff")
    assert not fold


def test_a_delta_with_a_damaged_sketch_is_refused_whole() -> None:
    fold = Fold()
    delta = pb.UsageDelta(minute=60, requests=5, total=pb.Distribution(count=5, sketch=b"\x80"))
    with pytest.raises(ValueError, match="sketch"):
        fold.merge(delta)
    assert fold.merge_batch(pb.Batch(deltas=[delta])) == 5
    assert not fold
