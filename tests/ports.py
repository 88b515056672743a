"""Ports for servers that tests start."""

from __future__ import annotations

import contextlib
import random
import socket

_RANGE = range(10_000, 30_000)
"""Below those that systems give to outgoing connections: a port that is free when it is chosen would else be taken, now
and then, by somebody's connection before its server listens."""
_chance = random.SystemRandom()
"""Not the shared generator: property tests set it to the same state in every process."""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nobody listens."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = _chance.choice(_RANGE)
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found
