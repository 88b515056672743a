"""Which of the rows that exist a document means.

What says its id is the row with that id. The others are told by their keys, the strongest key first and for all of them
before the next: a weak key (`custom_id`) that moved from one entity to another is the other's from now on, and its
former holder is still told by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from control_plane.holdings import Holdings, Row
from gateway_schema.content import unique_key
from gateway_schema.registry import EntityType


def recognise(
    row: EntityType, given: Sequence[str | None], bodies: Sequence[Mapping[str, Any]], holdings: Holdings
) -> list[Row | None]:
    """For each body the row that it means, or None; `given` are the ids that they say. Two with the same key mean the
    same row."""
    held = holdings.of(row.name)
    found = [None if entity_id is None else held.get(entity_id) for entity_id in given]
    taken = {entity_id for entity_id in given if entity_id is not None}
    open_places = [place for place, entity_id in enumerate(given) if entity_id is None]
    for fields in row.recognised_by:
        index = holdings.by(row, fields)
        for place in open_places:
            key = unique_key(row, bodies[place], fields)
            try:
                met = index.get(key) if key is not None else None
            except TypeError:
                continue  # a list or a map where a text belongs: recognised by nothing, refused by the schema
            if met is not None and met.id not in taken:
                found[place] = met
        open_places = [place for place in open_places if found[place] is None]
        taken.update(met.id for met in found if met is not None)
    return found
