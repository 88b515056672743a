"""What a node is told of a fault of ours: that there was one. Without this gRPC would send it the exception's own text,
statements of the database included; that text is for our log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc

from control_plane.database import is_away

_log = logging.getLogger(__name__)

_AWAY = "the database of the control plane cannot be reached: it will be tried again"
_FAULT = "the control plane failed: its log says why"


@contextlib.asynccontextmanager
async def kept_here(context: Any, what: str) -> AsyncIterator[None]:
    """For the whole of a stream. `what` it is, for the log."""
    try:
        yield
    except grpc.aio.AbortError:
        raise  # it was ended with an answer of its own
    except Exception as error:
        if context.done():
            _log.info("%s ended while it was answered: %s", what, type(error).__name__)
            return
        if is_away(error):
            _log.error("%s ends: the database cannot be reached: %s", what, type(error).__name__)
            await context.abort(grpc.StatusCode.UNAVAILABLE, _AWAY)
        _log.error("%s failed", what, exc_info=error)
        await context.abort(grpc.StatusCode.INTERNAL, _FAULT)
