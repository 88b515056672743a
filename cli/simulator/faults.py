"""Faults on demand: the next calls of a provider are slow, fail, or break off.

`status` answers with that status in the provider's error format; `delay` waits that many seconds before the answer;
`chunk_delay` waits that long before each piece of a stream; `cut_after` breaks a stream off after that many pieces (0:
a plain answer's connection is dropped before its body); `error_after` sends the provider's error event in a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Fault:
    provider: str = "*"
    times: int = 1
    status: int = 0
    delay: float = 0.0
    chunk_delay: float = 0.0
    cut_after: int = -1
    error_after: int = -1

    @classmethod
    def read(cls, data: Any) -> Fault:
        """Raises ValueError that names the field at fault."""
        if not isinstance(data, Mapping):
            raise ValueError("expected an object")
        known = set(cls.__dataclass_fields__)
        for key, value in data.items():
            if key not in known:
                raise ValueError(f"{key}: unknown field (known fields: {', '.join(sorted(known))})")
            expected: type | tuple[type, ...] = str if key == "provider" else (int, float)
            if not isinstance(value, expected) or isinstance(value, bool):
                raise ValueError(f"{key}: expected a {'string' if key == 'provider' else 'number'}")
        return cls(**data)


class Faults:
    """A queue of faults; each call of a provider takes the first that applies to it."""

    def __init__(self) -> None:
        self._pending: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._pending.append(fault)

    def clear(self) -> None:
        self._pending.clear()

    def take(self, provider: str) -> Fault:
        """The fault for this call, or one that does nothing."""
        for fault in self._pending:
            if fault.provider in {"*", provider}:
                fault.times -= 1
                if fault.times <= 0:
                    self._pending.remove(fault)
                return fault
        return Fault()
