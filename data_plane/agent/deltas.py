"""Deltas as they travel, from the control plane to the agent and from there to its workers."""

from __future__ import annotations

import orjson

from gateway_schema.delta import Delta, id_of
from gateway_schema.wire import config_pb2 as pb


def delta_from(message: pb.Delta) -> Delta:
    """Raises ValueError for a put that is no entity."""
    puts = [(put.type, id_of(orjson.loads(put.entity)), put.entity) for put in message.puts]
    return Delta(tuple(puts), tuple((delete.type, delete.id) for delete in message.deletes))
