"""Flat entities as a declarative file, as people write one: what `document.read_declaration` reads, the other way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway_schema.document import FORMAT_VERSION
from gateway_schema.partials import Filter, FilterChain
from gateway_schema.registry import ENTITY_TYPES, FILTER_CHAINS, EntityType, Listed, Parent, children_of


class Homeless(ValueError):
    """Entities that a file says only inside their parents, and those are not among what is to be written."""

    def __init__(self, entities: Iterable[tuple[str, str]]) -> None:
        self.entities = tuple(entities)
        """Kinds and ids."""
        super().__init__(", ".join(f"{name} {entity_id}" for name, entity_id in self.entities))


def write_declaration(
    entities: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    select_tags: Sequence[str] = (),
    control_plane_name: str | None = None,
) -> dict[str, Any]:
    """The inverse of reading: flat entities (with ids, references `{"id": …}`) as a nested declarative file.

    Sorted by name; ids and times are left out where a name says who is meant; a plugin of one scope stands inside its
    narrowest parent, one of several at top level with names as references. Of basic-auth there are only digests, made
    with the consumer's id: the file says both, or nobody could log in where it is restored. Raises Homeless.
    """
    return _Writer(entities).write(select_tags, control_plane_name)


_Place = tuple[str, str]
"""A kind and an id, which is unique among its kind only."""


class _Writer:
    def __init__(self, entities: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._entities = entities
        self._by_place: dict[_Place, Mapping[str, Any]] = {
            (name, str(entity["id"])): entity for name, rows in entities.items() for entity in rows
        }
        self._children: dict[_Place, list[tuple[EntityType, str, Mapping[str, Any]]]] = {}
        self._roots: list[tuple[EntityType, Mapping[str, Any]]] = []
        hashed = [name for name in entities if "skip_hash" in ENTITY_TYPES[name].model.shorthands]
        credentials = [entity for name in hashed for entity in entities[name]]
        self._hashed_with: set[_Place] = {("consumers", str(entity["consumer"]["id"])) for entity in credentials}
        """Consumers whose ids are part of a digest."""

    def write(self, select_tags: Sequence[str], control_plane_name: str | None) -> dict[str, Any]:
        for name, rows in self._entities.items():
            for entity in rows:
                self._place(ENTITY_TYPES[name], entity)
        if homeless := [(row.name, str(entity["id"])) for row, entity in self._roots if row.file_key is None]:
            raise Homeless(homeless)
        document: dict[str, Any] = {"_format_version": FORMAT_VERSION}
        if control_plane_name:
            document["_konnect"] = {"control_plane_name": control_plane_name}
        if info := self._info(select_tags):
            document["_info"] = info
        roots: dict[str, list[dict[str, Any]]] = {}
        for row, entity in self._roots:
            roots.setdefault(str(row.file_key), []).append(self._render(row, entity, None))
        for key in (row.file_key for row in ENTITY_TYPES.values()):
            if key in roots:
                document[key] = _sorted(roots[key])
        return document

    def _info(self, select_tags: Sequence[str]) -> dict[str, Any]:
        info: dict[str, Any] = {"select_tags": list(select_tags)} if select_tags else {}
        return {**info, "skip_hash_for_basic_auth": True} if self._hashed_with else info

    def _place(self, row: EntityType, entity: Mapping[str, Any]) -> None:
        scopes = [
            (name, (parent.type, ref["id"]))
            for name, parent in row.parents.items()
            if parent.nested_key and (ref := entity.get(name))
        ]
        known = [(name, place) for name, place in scopes if place in self._by_place]
        inside = [(name, place) for name, place in known if _may_stand_inside(row, name, entity)]
        if inside and (len(scopes) == 1 or row.is_link):
            name, place = inside[-1]
            self._children.setdefault(place, []).append((row, name, entity))
        else:
            self._roots.append((row, entity))

    def _render(self, row: EntityType, entity: Mapping[str, Any], inside: str | None) -> dict[str, Any]:
        if inside is not None and (link := row.parents[inside].link) is not None:
            return self._link(row.parents[link], entity[link]["id"])
        named = any(entity.get(key) for key in row.match) or row.match_together or not row.match
        place = (row.name, str(entity["id"]))
        keeps_id = row.keeps_id or not named or place in self._hashed_with
        hidden = {"created_at", "updated_at"} | row.computed | (set() if keeps_id else {"id"})
        body: dict[str, Any] = {}
        for key, value in (_spelt_out(entity) if row is FILTER_CHAINS else entity).items():
            if key in hidden or value is None or key == inside:
                continue
            if key in row.parents:
                value = self._reference(row.parents[key], value["id"])
            elif key in row.lists and row.lists[key].key is not None:
                value = [self._listed(row.lists[key], entry) for entry in value]
            body[key] = value
        for child, name, nested in self._children.get(place, []):
            body.setdefault(str(child.parents[name].nested_key), []).append(self._render(child, nested, name))
        for _, _, parent in children_of(row.name):
            if parent.nested_key in body and isinstance(body[parent.nested_key], list):
                body[parent.nested_key] = _sorted(body[parent.nested_key])
        return body

    def _name(self, kind: str, target_id: str) -> str | None:
        """What a file calls an entity that stands in it; None for one that only its id tells."""
        target = self._by_place.get((kind, target_id))
        if target is None:
            return None
        target_type = ENTITY_TYPES[kind]
        names = (target.get(key) for key in target_type.match if key not in target_type.computed)
        return next((str(name) for name in names if name), None)

    def _reference(self, parent: Parent, target_id: str) -> Any:
        name = self._name(parent.type, target_id)
        if parent.as_text:
            return name or target_id
        return {"name": name} if name else {"id": target_id}

    def _link(self, parent: Parent, target_id: str) -> dict[str, Any]:
        target = self._by_place.get((parent.type, target_id), {})
        keys = ("name", "username", "custom_id")
        return next(({key: target[key]} for key in keys if target.get(key)), {"id": target_id})

    def _listed(self, listed: Listed, entry: Mapping[str, Any]) -> dict[str, Any]:
        key = str(listed.key)
        name = self._name(listed.type, str(entry.get(key)))
        kept = {field: value for field, value in entry.items() if field not in {key, "name"}}
        return {"name": name, **kept} if name else dict(entry)


def _spelt_out(chain: Mapping[str, Any]) -> dict[str, Any]:
    """decK asks for no schema of filter chains: what a file leaves to a default always differs from what is shown."""
    filters = [{"enabled": Filter.model_fields["enabled"].default, **each} for each in chain["filters"]]
    return {"enabled": FilterChain.model_fields["enabled"].default, **chain, "filters": filters}


def _may_stand_inside(row: EntityType, parent_field: str, entity: Mapping[str, Any]) -> bool:
    allowed = row.parents[parent_field].nested_fields
    if allowed is None:
        return True
    said = {key for key, value in entity.items() if value is not None}
    return said <= allowed | {parent_field, "created_at", "updated_at"}


def _sorted(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def label(entry: dict[str, Any]) -> str:
        keys = ("prefix", "name", "username", "custom_id", "target", "group", "id", "key", "kid")
        name = next((entry[key] for key in keys if entry.get(key)), "")
        return f"{name}\0{entry.get('instance_name', '')}"

    return sorted(entries, key=label)
