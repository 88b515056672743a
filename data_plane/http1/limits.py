"""What a connection may cost: sizes in bytes, times in seconds. One frozen value per side, given at construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

HIGH_WATER = 64 * 1024
"""Bytes of a body that may wait for their reader before the sender is held back."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a client may ask of us. A size of 0 means no limit."""

    max_head_size: int = 32 * 1024
    """Request line and header fields together."""
    max_target_size: int = 16 * 1024
    max_headers: int = 256
    max_body_size: int = 0
    head_timeout: float = 60.0
    """From the first byte of a head (or the opening of the connection) to its last, however slowly bytes trickle."""
    body_timeout: float = 60.0
    """Between two pieces of a request's body."""
    write_timeout: float = 60.0
    """Without the client taking any byte of what waits for it."""
    keepalive_timeout: float = 65.0
    """Between an answer and the first byte of the next request."""
    linger_timeout: float = 2.0
    """How long a refused upload is still read and thrown away, so that its answer is not lost to a TCP reset."""
    drain_grace: float = 0.5
    """How long an idle connection stays open when the server drains: its client may be sending a request just then."""
    max_pipeline: int = 16
    """Requests that may wait on one connection while an earlier one is answered."""
    half_close_is_leaving: bool = True
    """Whether a client that closes its sending side while it waits for an answer counts as gone.

    TCP shows a client that gave up and one that half-closed alike. nginx takes both as gone, and so do we by default:
    it is what stops upstreams from working for nobody. With False, answers are still written, then we close.
    """


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What an upstream may ask of us, and how its connections are kept."""

    max_head_size: int = 64 * 1024
    max_headers: int = 512
    idle_timeout: float = 60.0
    max_idle_per_origin: int = 512
    max_requests_per_connection: int = 10_000
    whole_body_size: int = 64 * 1024
    """A response whose Content-Length is at most this is handed over whole, once it is all here."""


class Timeouts(NamedTuple):
    """Seconds. `connect` covers name resolution, TCP and TLS; `write` and `read` the time between two operations."""

    connect: float = 60.0
    write: float = 60.0
    read: float = 60.0
