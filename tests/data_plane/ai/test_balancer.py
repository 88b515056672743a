"""Candidates by alias, fair turns, breakers and the failover rule."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.ai.balancer import Balancer, Breaker, FailoverRule, Failure
from data_plane.errors import InvalidResponse, LlmError, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from gateway_schema.plugins.ai_proxy_advanced import Balancer as BalancerConfig


@dataclass(eq=False)
class Model:
    alias: str | None = None
    weight: int = 100
    breaker: Breaker = field(default_factory=lambda: Breaker(0, 10))


def test_an_alias_names_its_targets_and_nobody_elses() -> None:
    fast, also_fast, smart, plain = Model("fast"), Model("fast"), Model("smart"), Model()
    balancer = Balancer([fast, smart, also_fast, plain])

    assert balancer.candidates("fast")[0].targets == (fast, also_fast)
    assert balancer.candidates("fast")[1] is True
    assert balancer.candidates("smart")[0].targets == (smart,)
    assert balancer.candidates("Fast")[0].targets == (plain,)
    assert balancer.candidates("gpt-4o") == (balancer.candidates("other")[0], False)
    assert balancer.candidates(None)[0].targets == (fast, smart, also_fast, plain)


def test_an_unknown_name_is_refused_when_every_target_has_an_alias() -> None:
    balancer = Balancer([Model("fast"), Model("smart")])

    with pytest.raises(LlmError, match="model not configured") as caught:
        balancer.candidates("gpt-4o")

    assert caught.value.status == 400
    assert len(balancer.candidates("")[0].targets) == 2


@given(weights=st.lists(st.integers(min_value=1, max_value=12), min_size=1, max_size=6), seed=st.integers())
def test_a_turn_of_the_wheel_gives_each_target_its_weight(weights: list[int], seed: int) -> None:
    models = [Model(weight=weight * 7) for weight in weights]
    group = Balancer(models, random.Random(seed)).everybody

    turns = Counter(group.pick((), 0.0) for _ in range(sum(weights)))

    assert [turns[model] for model in models] == weights


def test_huge_weights_keep_their_proportions_in_a_wheel_of_bounded_size() -> None:
    models = [Model(weight=65_535), Model(weight=65_534), Model(weight=1)]
    group = Balancer(models, random.Random(1)).everybody

    turns = Counter(group.pick((), 0.0) for _ in range(66_000))

    assert turns[models[0]] / turns[models[1]] == pytest.approx(1, abs=0.02)
    assert turns[models[2]] >= 1


def test_targets_that_were_tried_or_are_out_are_passed() -> None:
    out = Model(breaker=Breaker(1, 10))
    out.breaker.failed(100.0)
    tried, free = Model(), Model()
    group = Balancer([out, tried, free]).everybody

    assert {group.pick([tried], 101.0) for _ in range(9)} == {free}
    assert group.pick([tried, free], 101.0) is None
    assert Balancer([out]).everybody.pick((), 101.0) is None
    assert Balancer([out]).everybody.pick((), 110.0) is out


def test_failures_add_up_although_successes_lie_between() -> None:
    breaker = Breaker(3, 10)
    breaker.failed(0)
    breaker.failed(1)
    breaker.succeeded(2)
    assert breaker.state(2) == "closed"
    breaker.failed(3)

    assert breaker.state(3) == "open"
    assert not breaker.allows(12.9)


def test_after_the_window_one_success_clears_and_one_failure_keeps_out() -> None:
    breaker = Breaker(2, 10)
    breaker.failed(0)
    breaker.failed(0)
    assert breaker.state(10) == "probing"
    breaker.failed(10)
    assert not breaker.allows(19)
    assert breaker.allows(20)
    breaker.succeeded(20)

    assert breaker.state(20) == "closed"
    breaker.failed(21)
    assert breaker.allows(21)


def test_without_a_limit_of_failures_nobody_is_ever_out() -> None:
    breaker = Breaker(0, 10)
    for _ in range(100):
        breaker.failed(0)

    assert breaker.allows(0)
    assert breaker.state(0) == "off"


@pytest.mark.parametrize(
    ("criteria", "failure", "allowed"),
    [
        (["error", "timeout"], Failure("error", sent=False), True),
        (["error", "timeout"], Failure("error", sent=True), False),
        (["error", "non_idempotent"], Failure("error", sent=True), True),
        (["timeout"], Failure("error", sent=False), False),
        (["http_429"], Failure("http_429", sent=True), False),
        (["http_429", "non_idempotent"], Failure("http_429", sent=True), True),
        (["http_429", "non_idempotent"], Failure("http_500", sent=True), False),
        (["invalid_header", "non_idempotent"], Failure("invalid_header", sent=True), True),
    ],
)
def test_chats_are_repeated_as_nginx_repeats_posts(criteria: list[str], failure: Failure, allowed: bool) -> None:
    assert FailoverRule(BalancerConfig.model_validate({"failover_criteria": criteria})).allows(failure) is allowed


@pytest.mark.parametrize(
    ("criterion", "counted"),
    [
        ("error", True),
        ("timeout", True),
        ("invalid_header", True),
        ("http_429", True),
        ("http_500", False),
        ("http_403", False),
        ("http_400", False),
    ],
)
def test_the_breaker_counts_faults_of_the_wire_and_the_statuses_that_are_listed(criterion: str, counted: bool) -> None:
    rule = FailoverRule(BalancerConfig.model_validate({"failover_criteria": ["http_429", "http_403"]}))

    assert rule.trips(Failure(criterion, sent=True)) is counted


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (InvalidResponse("refused"), Failure("error", False)),
        (InvalidResponse("reset", sent=True), Failure("error", True)),
        (InvalidResponse("protocol", sent=True), Failure("invalid_header", True)),
        (UpstreamTimeout("timeout_connect"), Failure("timeout", False)),
        (UpstreamTimeout("timeout_read", sent=True), Failure("timeout", True)),
        (UpstreamUnavailable("dns"), Failure("error", False)),
    ],
)
def test_failures_are_told_in_the_words_of_the_criteria(error: UpstreamError, failure: Failure) -> None:
    assert Failure.of(error) == failure
