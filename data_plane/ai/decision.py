"""The record of a decision: what was asked for, who could have answered, who was tried, and why not the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from data_plane.ai.calls import Attempt
    from data_plane.ai.targets import Target

HEADER: Final = "X-Tandem-Decision"

_random: Final = random.Random()  # noqa: S311 (an id is a name, not a secret; workers are started, never forked)


@dataclass(slots=True)
class Attempted:
    """One attempt: the target, and `answered`, or why it did not."""

    target: Target
    outcome: str


@dataclass(slots=True)
class Decision:
    """Made with every request that reaches a group of models; rendered only when somebody reads it."""

    asked_for: str = ""
    """The model, or alias, that the request named."""
    by_alias: bool = False
    targets: Sequence[Target] = ()
    candidates: Sequence[Target] = ()
    attempts: list[Attempted] = field(default_factory=list)
    passed_over: list[Attempted] = field(default_factory=list)
    """Candidates that were not asked, with the reason."""
    last: Attempt | None = None
    """The attempt whose answer, or failure, the client got."""
    id: str = field(default_factory=lambda: f"{_random.getrandbits(96):024x}")

    def note(self, target: Target, outcome: str) -> None:
        self.attempts.append(Attempted(target, outcome))

    def pass_over(self, target: Target, reason: str) -> None:
        self.passed_over.append(Attempted(target, reason))

    def describe(self) -> dict[str, Any]:
        """As a plain record. Secrets of targets are no part of it."""
        return {
            "id": self.id,
            "asked_for": self.asked_for,
            "by_alias": self.by_alias,
            "candidates": [{**target.describe(), "verdict": self._verdict(target)} for target in self.targets],
            "attempts": [{**attempt.target.describe(), "outcome": attempt.outcome} for attempt in self.attempts],
        }

    def _verdict(self, target: Target) -> str:
        for attempt in reversed(self.attempts):
            if attempt.target is target:
                return attempt.outcome
        for passed in self.passed_over:
            if passed.target is target:
                return passed.outcome
        if target not in self.candidates:
            return "has another alias" if target.alias is not None else "has no alias"
        return "not needed"
