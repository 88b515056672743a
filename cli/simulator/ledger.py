"""What the simulator was asked and what it answered. Totals are exact for ever; details are kept for the last calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

KEPT = 5_000
"""Calls whose details are kept."""


@dataclass(slots=True)
class Call:
    """One request to a simulated provider. `outcome`: `answered`, `refused` (an error status) or `cut`."""

    provider: str
    model: str = ""
    stream: bool = False
    status: int = 0
    outcome: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


@dataclass(slots=True)
class Totals:
    requests: int = 0
    errors: int = 0
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, call: Call) -> None:
        self.requests += 1
        self.errors += call.status >= 400
        self.cut += call.outcome == "cut"
        self.prompt_tokens += call.prompt_tokens
        self.completion_tokens += call.completion_tokens


class Ledger:
    def __init__(self) -> None:
        self._totals: dict[str, Totals] = {}
        self._models: dict[str, Totals] = {}
        self._calls: deque[Call] = deque(maxlen=KEPT)
        self.open_calls = 0

    def record(self, call: Call) -> None:
        """Enter a call whose answer is over, whichever way it ended."""
        self._totals.setdefault(call.provider, Totals()).add(call)
        self._models.setdefault(f"{call.provider}/{call.model}", Totals()).add(call)
        self._calls.append(call)

    def clear(self) -> None:
        self._totals.clear()
        self._models.clear()
        self._calls.clear()

    def summary(self, *, details: bool) -> Mapping[str, Any]:
        """`providers` and `models`: totals by name; with `details` also `calls`, oldest first, as they arrived."""
        report: dict[str, Any] = {
            "open": self.open_calls,
            "providers": {name: asdict(totals) for name, totals in sorted(self._totals.items())},
            "models": {name: asdict(totals) for name, totals in sorted(self._models.items())},
        }
        if details:
            report["calls"] = [asdict(call) for call in self._calls]
        return report
