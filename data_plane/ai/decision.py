"""The record of a decision: what was asked for, who could have answered, who was tried, and why not the others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from data_plane.ai.calls import Attempt
    from data_plane.ai.targets import Target

HEADER: Final = "X-Tandem-Decision"

_random: Final = random.Random()  # noqa: S311 (an id is a name, not a secret; workers are started, never forked)


class Decision:
    """Made with every request that reaches a group of models; rendered only when somebody reads it."""

    __slots__ = ("asked_for", "attempts", "by_alias", "candidates", "id", "last", "passed_over", "targets")

    def __init__(self, targets: Sequence[Target] = ()) -> None:
        self.id = f"{_random.getrandbits(96):024x}"
        self.targets = targets
        self.asked_for = ""
        """The model, or alias, that the request named."""
        self.by_alias = False
        self.candidates: Sequence[Target] = ()
        self.attempts: list[tuple[Target, str]] = []
        """Targets that were asked, each with `answered` or why it did not."""
        self.passed_over: list[tuple[Target, str]] = []
        """Candidates that were not asked, with the reason."""
        self.last: Attempt | None = None
        """The attempt whose answer, or failure, the client got."""

    def describe(self) -> dict[str, Any]:
        """As a plain record. Secrets of targets are no part of it."""
        return {
            "id": self.id,
            "asked_for": self.asked_for,
            "by_alias": self.by_alias,
            "candidates": [{**target.describe(), "verdict": self._verdict(target)} for target in self.targets],
            "attempts": [{**target.describe(), "outcome": outcome} for target, outcome in self.attempts],
        }

    def _verdict(self, target: Target) -> str:
        for other, outcome in (*reversed(self.attempts), *self.passed_over):
            if other is target:
                return outcome
        if target not in self.candidates:
            return "has another alias" if target.alias is not None else "has no alias"
        return "not needed"
