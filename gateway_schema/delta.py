"""What changed from one document to another, and a document in the form in which a change is cheap.

A document's canonical bytes (`document.canonical`) are those of its entities with a few fixed words between them. A
`Catalogue` keeps each entity's bytes by kind and id: changing one entity means changing one entry; the bytes of its
kind are joined, not serialised, again; and what stands before that kind in the document is not hashed again. Nothing
here knows what an entity means, so a delta cannot make of a document anything that its hash would not tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

WHOLE_WANTED = "full snapshot wanted"
"""How the error of a NACK begins when the delta itself was of no use to the node, whatever it would have said."""

_OVERHEAD = 16
"""Bytes that a put or delete takes on the wire beside its texts, at most."""


@dataclass(frozen=True, slots=True)
class Change:
    """One entity's canonical bytes before and after; None where there is none."""

    before: bytes | None
    after: bytes | None


Changes = Mapping[tuple[str, str], Change]
"""By kind and id."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What makes one document of another. An entity that is put replaces the one with its id, if there is one."""

    puts: tuple[tuple[str, str, bytes], ...] = ()
    """Kind, id, canonical bytes."""
    deletes: tuple[tuple[str, str], ...] = ()
    """Kind, id."""

    @property
    def kinds(self) -> set[str]:
        return {name for name, _, _ in self.puts} | {name for name, _ in self.deletes}


class Section(dict[str, bytes]):
    """The entities of one kind by id, ids in order. What is in a catalogue must not be changed any more."""

    __slots__ = ("_joined",)

    def __init__(self, rows: Mapping[str, bytes] | Iterable[tuple[str, bytes]] = ()) -> None:
        super().__init__(rows)
        self._joined: bytes | None = None

    @property
    def joined(self) -> bytes:
        """Their bytes as they stand in a document; put together once."""
        if self._joined is None:
            self._joined = b",".join(self.values())
        return self._joined


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A document as its entities' canonical bytes. Never changes; a later one shares what stayed."""

    control_plane_id: str
    entities: Mapping[str, Section]
    """By kind, kinds in order."""
    _digests: dict[str, tuple[Section, Any]] = field(default_factory=dict, compare=False, repr=False)
    """By kind, once `hash` was asked for: its entities, and the digest of the document up to their end."""

    @classmethod
    def read(cls, payload: bytes) -> Catalogue:
        """Take canonical bytes apart. Raises ValueError for any others.

        Entity by entity, and by the standard library: other threads have their turn in between, which they would not
        have while orjson reads a large document.
        """
        try:
            catalogue = _Reader(payload.decode()).document()
            same = catalogue.payload() == payload
        except (RecursionError, orjson.JSONEncodeError):  # the latter for escapes that are half a character
            raise ValueError("not a document that can be taken apart") from None
        if not same:
            raise ValueError("not a document in canonical form")
        return catalogue

    def payload(self) -> bytes:
        """The document's canonical bytes."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The same, in pieces."""
        yield self._head()
        for number, (name, section) in enumerate(self.entities.items()):
            yield from _framed(number, name, section)
        yield _TAIL

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return sum(map(len, self.pieces()))

    def hash(self, former: Catalogue | None = None) -> str:
        """What `document.hash_of` says of the payload. It takes less time when one that has much in common, most of all
        at the beginning, was asked before."""
        digest = new_digest(self._head())
        same = former is not None and former.control_plane_id == self.control_plane_id
        known = list(former._digests.items()) if former is not None and same else []
        for number, (name, section) in enumerate(self.entities.items()):
            same = same and number < len(known) and known[number][0] == name and known[number][1][0] is section
            if same:
                digest = known[number][1][1]
            else:
                digest = digest.copy()
                for piece in _framed(number, name, section):
                    digest.update(piece)
            self._digests[name] = section, digest
        digest = digest.copy()
        digest.update(_TAIL)
        return shown(digest)

    def _head(self) -> bytes:
        return b'{"control_plane_id":' + orjson.dumps(self.control_plane_id) + b',"entities":{'

    def after(self, delta: Delta) -> Catalogue:
        """The document that a delta makes of this one. Raises ValueError when it is not about this one."""
        entities = dict(self.entities)
        changed: dict[str, dict[str, bytes]] = {}
        for name in delta.kinds:
            if name not in entities:
                raise ValueError(f"unknown kind of entity {name!r}")
            changed[name] = dict(entities[name])
        for name, entity_id in delta.deletes:
            if changed[name].pop(entity_id, None) is None:
                raise ValueError(f"there is no entity {entity_id!r} among {name}")
        for name, entity_id, entity in delta.puts:
            changed[name][entity_id] = entity
        for name in delta.kinds:
            entities[name] = in_order(changed[name])
        return Catalogue(self.control_plane_id, entities)


def in_order(rows: Mapping[str, bytes]) -> Section:
    """Entities of a kind in the order of a canonical document."""
    return Section((entity_id, rows[entity_id]) for entity_id in sorted(rows))


def new_digest(start: bytes) -> Any:
    """What documents are hashed with, one of hashlib's."""
    # Processors have instructions for SHA-256: of a large document it takes less time than any other of hashlib's.
    return hashlib.sha256(start)


def shown(digest: Any) -> str:
    """A document's hash: 32 hex digits."""
    return str(digest.hexdigest()[:32])


_TAIL = b"}}"


def _framed(number: int, name: str, section: Section) -> tuple[bytes, bytes, bytes]:
    """A kind as it stands in a document; `number`: how many stand before it."""
    return (b"," if number else b"") + orjson.dumps(name) + b":[", section.joined, b"]"


def changes_between(old: Catalogue, new: Catalogue) -> Changes | None:
    """Every entity that differs; None when more than entities does, which no delta can say."""
    if old.control_plane_id != new.control_plane_id or list(old.entities) != list(new.entities):
        return None
    changes: dict[tuple[str, str], Change] = {}
    for name, rows in new.entities.items():
        former = old.entities[name]
        if former is rows:
            continue
        for entity_id, entity in rows.items():
            if (before := former.get(entity_id)) != entity:
                changes[name, entity_id] = Change(before, entity)
        for entity_id in former.keys() - rows.keys():
            changes[name, entity_id] = Change(former[entity_id], None)
    return changes


def combined(steps: Iterable[Changes]) -> Changes:
    """Successive changes as one; what was changed and changed back is none."""
    total: dict[tuple[str, str], Change] = {}
    for step in steps:
        for key, change in step.items():
            first = total.get(key)
            total[key] = Change(first.before, change.after) if first is not None else change
    return {key: change for key, change in total.items() if change.before != change.after}


def delta_of(changes: Changes) -> Delta:
    """The delta that makes these changes."""
    puts = [(*key, change.after) for key, change in sorted(changes.items(), key=_key) if change.after is not None]
    return Delta(tuple(puts), tuple(key for key, change in sorted(changes.items(), key=_key) if change.after is None))


def size_of(changes: Changes) -> int:
    """Bytes that the delta takes on the wire, at most."""
    return sum(
        len(name) + len(change.after or entity_id.encode()) + _OVERHEAD for (name, entity_id), change in changes.items()
    )


def _key(item: tuple[tuple[str, str], Change]) -> tuple[str, str]:
    return item[0]


class _Reader:
    """A document's text, read from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode

    def document(self) -> Catalogue:
        self._take('{"control_plane_id":')
        control_plane_id = self._string()
        self._take(',"entities":{')
        entities: dict[str, Section] = {}
        while not self._finds("}"):
            if entities:
                self._take(",")
            name = self._string()
            self._take(":[")
            entities[name] = self._rows()
        self._take("}")
        return Catalogue(control_plane_id, entities)

    def _rows(self) -> Section:
        rows = Section()
        while not self._finds("]"):
            if rows:
                self._take(",")
            start = self._at
            entity, self._at = self._decode(self._text, start)
            rows[id_of(entity)] = self._text[start : self._at].encode()
        return rows

    def _string(self) -> str:
        value, self._at = self._decode(self._text, self._at)
        if not isinstance(value, str):
            raise ValueError("not a document: expected a text")
        return value

    def _take(self, word: str) -> None:
        if not self._finds(word):
            raise ValueError(f"not a document: expected {word!r} at {self._at}")

    def _finds(self, word: str) -> bool:
        found = self._text.startswith(word, self._at)
        self._at += len(word) if found else 0
        return found


def id_of(entity: object) -> str:
    """The id of an entity as it was read. Raises ValueError for what is none."""
    entity_id = entity.get("id") if isinstance(entity, dict) else None
    if not isinstance(entity_id, str):
        raise ValueError("an entity is an object with an id")
    return entity_id
