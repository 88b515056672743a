"""The declarative document: the file people write, the payload of a snapshot, what a data plane boots from.

Two shapes of one thing. A *declaration* is what a person wrote in decK's format: nested, named, incomplete; reading it
gives a flat list of items that remember where they stood (`dump` writes one). A *document* is what a control plane
holds: flat, every entity with its id, references by id; its canonical bytes have a hash, and equal hashes mean equal
configurations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import orjson

from gateway_schema.delta import Delta, new_digest, shown
from gateway_schema.entities import Entity, check_tags
from gateway_schema.registry import ENTITY_TYPES, ROUTES, SERVICES, TARGETS, UPSTREAMS, EntityType, children_of
from gateway_schema.violations import Path, SchemaViolation, Violation, nearest, parse, unknown_field

FORMAT_VERSION = "3.0"

_INFO_KEYS = frozenset(
    {
        "select_tags",
        "default_lookup_tags",
        "defaults",
        "consumer_group_policy_overrides",
        "skip_hash_for_basic_auth",
        "include_plugin_definitions",
    }
)
_LOOKED_UP = frozenset({"services", "routes", "consumers", "consumer_groups", "partials"})
"""Kinds of which a file may say, in `default_lookup_tags`, which ones of others it refers to."""
_TOP_KEYS = frozenset({"_format_version", "_info", "_konnect", "_workspace", "_plugin_configs", "_transform"})
_LATER = frozenset(
    {
        "licenses",
        "rbac_roles",
        "service_packages",
        "custom_entities",
        "cloned_plugins",
        "custom_plugins",
    }
)
"""decK's keys for entities that this version does not keep."""
_DEFAULTED = (SERVICES, ROUTES, UPSTREAMS, TARGETS)
"""Kinds of which `_info.defaults` may say defaults."""
_TEXT = frozenset({str})


@dataclass(slots=True, eq=False)
class Item:
    """One entity as it was declared: its own fields, what it refers to, and where in the file it stood."""

    type: EntityType
    body: dict[str, Any]
    path: Path
    references: dict[str, Item | str] = field(default_factory=dict)
    """Foreign key → the item that encloses it, or the id or natural key that was written."""

    @property
    def label(self) -> str:
        """The name by which a person knows it."""
        for key in ("prefix", "name", "username", "custom_id", "target", "group", "kid", "id"):
            if self.body.get(key):
                return str(self.body[key])
        return self.type.kind


@dataclass(slots=True)
class Declaration:
    """A declarative file, read: its items in order of appearance and what its `_info` says."""

    items: list[Item]
    select_tags: tuple[str, ...] = ()
    control_plane_name: str | None = None
    format_version: str = FORMAT_VERSION
    lookup_tags: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By kind: what carries all of these is there to be referred to, and goes on being what it is."""


def read_declaration(data: Any, select_tags: Sequence[str] = ()) -> Declaration:
    """Flatten a declarative document (decK format 3.0).

    Every item gets the select tags (those given, else the file's own; both must agree when both are there).
    Raises SchemaViolation naming each fault by its path in the document. Fields of entities are not checked here,
    only the nesting; `gateway_schema.violations.parse` with the entity's class does that.
    """
    reader = _Reader(data)
    return reader.read(tuple(select_tags))


class _Reader:
    def __init__(self, data: Any) -> None:
        self._violations: list[Violation] = []
        self._items: list[Item] = []
        self._defaults: dict[str, dict[str, Any]] = {}
        self._plugin_configs: Mapping[str, Any] = {}
        self._skip_hash = False
        self._select_tags: tuple[str, ...] = ()
        if not isinstance(data, Mapping):
            raise SchemaViolation([Violation((), "expected a declarative document: a map with _format_version")])
        self._data = data

    def read(self, select_tags: tuple[str, ...]) -> Declaration:
        info = self._info()
        self._check_top_level()
        tags = self._select_tags = self._tags(info, select_tags)
        lookup_tags = self._lookup_tags(info)
        for row in ENTITY_TYPES.values():
            if row.file_key is not None:
                self._entities(row, self._data.get(row.file_key), (row.file_key,), None)
        if self._violations:
            raise SchemaViolation(self._violations)
        for item in self._items if tags else ():
            own = item.body.get("tags")
            item.body["tags"] = list(dict.fromkeys([*own, *tags])) if own else list(tags)
        konnect = self._data.get("_konnect") or {}
        name = konnect.get("control_plane_name") or konnect.get("runtime_group_name")
        return Declaration(self._items, tags, name, lookup_tags=lookup_tags)

    def _fault(self, path: Path, message: str) -> None:
        self._violations.append(Violation(path, message))

    def _check_top_level(self) -> None:
        known = _TOP_KEYS | {row.file_key for row in ENTITY_TYPES.values() if row.file_key}
        for key in self._data:
            if key in _LATER:
                self._fault((key,), "this kind of entity is not supported yet")
            elif key not in known:
                self._fault((str(key),), unknown_field(str(key), known))
        version = self._data.get("_format_version")
        if version is None:
            self._fault(("_format_version",), f'required field missing: write _format_version: "{FORMAT_VERSION}"')
        elif not isinstance(version, str):
            self._fault(("_format_version",), f'expected a string: quote it, _format_version: "{version}"')
        elif version != FORMAT_VERSION:
            self._fault(("_format_version",), f'unsupported version "{version}": write "{FORMAT_VERSION}"')
        if self._data.get("_workspace") not in (None, "default"):
            text = "there are no workspaces here: remove it, or name a control plane in _konnect.control_plane_name"
            self._fault(("_workspace",), text)
        konnect = self._data.get("_konnect")
        if konnect is not None:
            self._record(konnect, ("_konnect",), {"control_plane_name", "runtime_group_name"})
        configs = self._data.get("_plugin_configs")
        if isinstance(configs, Mapping):
            self._plugin_configs = configs
        elif configs is not None:
            self._fault(("_plugin_configs",), "expected a map")

    def _record(self, value: Any, path: Path, known: Iterable[str]) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._fault(path, "expected a record")
            return {}
        names = set(known)
        for key in value:
            if key not in names:
                self._fault((*path, str(key)), unknown_field(str(key), names))
        return value

    def _info(self) -> Mapping[str, Any]:
        info = self._data.get("_info")
        if info is None:
            return {}
        info = self._record(info, ("_info",), _INFO_KEYS)
        skip_hash = info.get("skip_hash_for_basic_auth")
        if not isinstance(skip_hash, bool | None):
            self._fault(("_info", "skip_hash_for_basic_auth"), "expected a boolean")
        self._skip_hash = skip_hash is True
        if info.get("defaults") is not None:
            self._read_defaults(info["defaults"], ("_info", "defaults"))
        return info

    def _read_defaults(self, defaults: Any, path: Path) -> None:
        written = self._record(defaults, path, {row.kind for row in _DEFAULTED})
        for row in _DEFAULTED:
            fields = written.get(row.kind)
            if isinstance(fields, Mapping) and _TEXT.issuperset(map(type, fields)):
                self._defaults[row.kind] = _expand(row, dict(fields))
            elif fields is not None:
                self._fault((*path, row.kind), "expected a record with names as keys")

    def _tags(self, info: Mapping[str, Any], given: tuple[str, ...]) -> tuple[str, ...]:
        written = info.get("select_tags") or []
        if not isinstance(written, list) or not all(isinstance(tag, str) for tag in written):
            self._fault(("_info", "select_tags"), "expected an array of strings")
            return given
        if given and written and set(given) != set(written):
            self._fault(
                ("_info", "select_tags"),
                f"the file says {', '.join(written)}, the command says {', '.join(given)}: they must be the same",
            )
        try:
            return tuple(check_tags(list(given or written)))
        except ValueError as error:
            self._fault(("_info", "select_tags"), str(error))
            return given

    def _lookup_tags(self, info: Mapping[str, Any]) -> Mapping[str, frozenset[str]]:
        path: Path = ("_info", "default_lookup_tags")
        said = info.get("default_lookup_tags")
        found = {}
        for name, tags in self._record(said, path, _LOOKED_UP).items() if said is not None else ():
            if not (self._are_texts(tags) and tags):
                self._fault((*path, str(name)), "expected an array of tags, one at least")
                continue
            try:
                found[name] = frozenset(check_tags(tags))
            except ValueError as error:
                self._fault((*path, str(name)), str(error))
        return found

    def _entities(self, row: EntityType, value: Any, path: Path, parent: tuple[str, Item] | None) -> None:
        if value is None:
            return
        if not isinstance(value, list):
            self._fault(path, "expected an array")
            return
        shape = _shape_of(row.name)
        for index, entry in enumerate(value):
            if isinstance(entry, (dict, Mapping)):  # the first is the rule, and cheap
                self._entity(shape, dict(entry), (*path, index), parent)
            else:
                self._fault((*path, index), "expected a record")

    def _entity(self, shape: _Shape, body: dict[str, Any], path: Path, parent: tuple[str, Item] | None) -> None:
        """One of ten thousand, maybe: whatever few of them have is asked for in one look."""
        familiar = shape.keys.issuperset(body)
        if not (familiar or _TEXT.issuperset(map(type, body))):
            self._fault(path, "expected a record with names as keys")
            return
        nested = shape.nested
        children = {}
        if nested and not nested.keys().isdisjoint(body):
            children = {key: body.pop(key) for key in list(body) if key in nested}
        if shape.expands:
            _expand(shape.row, body)
        if self._defaults:
            self._fill_defaults(shape.row, body, parent)
        item = Item(shape.row, body, path, {})
        if parent is not None and shape.parents.isdisjoint(body):
            item.references[parent[0]] = parent[1]
        elif shape.parents:
            self._refer(item, parent)
        if shape.row.name == "plugins":
            self._merge_shared_config(item)
        if not familiar or self._defaults:
            self._suggest_nested(item, shape.fields)
        if self._skip_hash and "skip_hash" in shape.row.model.shorthands:
            body["skip_hash"] = True
        if body.get("tags") is not None and not self._are_texts(body["tags"]):
            self._fault((*path, "tags"), "expected a set of strings")
        self._items.append(item)
        for key, value in children.items():
            child, name = nested[key]
            if (link := child.parents[name].link) is not None:
                self._links(child, value, (*path, key), name, item, link)
            else:
                self._entities(child, value, (*path, key), (name, item))

    @staticmethod
    def _are_texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)

    def _links(self, row: EntityType, value: Any, path: Path, name: str, holder: Item, link: str) -> None:
        """What only joins two others: an entry names the other one, and says nothing of itself."""
        if value is None:
            return
        if not isinstance(value, list):
            self._fault(path, "expected an array")
            return
        for index, entry in enumerate(value):
            keys = ("id", "name", "username", "custom_id")
            known = (
                [entry[key] for key in keys if isinstance(entry.get(key), str)] if isinstance(entry, Mapping) else []
            )
            if not known:
                self._fault((*path, index), "expected a reference: {name: …}, {username: …} or {id: …}")
                continue
            self._items.append(Item(row, {}, (*path, index), {name: holder, link: known[0]}))

    def _refer(self, item: Item, parent: tuple[str, Item] | None) -> None:
        for name in item.type.parents:
            value = item.body.pop(name, None)
            if parent is not None and parent[0] == name:
                if value is not None:
                    self._fault((*item.path, name), f"stands inside its {name} already: leave this field out")
                item.references[name] = parent[1]
            elif value is None:
                continue
            elif isinstance(value, str):
                item.references[name] = value
            elif isinstance(value, Mapping):
                key = next((value[k] for k in ("id", "name", "username") if isinstance(value.get(k), str)), None)
                if key is None:
                    self._fault((*item.path, name), "expected a reference: a name, or {id: …} or {name: …}")
                else:
                    item.references[name] = key
            else:
                self._fault((*item.path, name), "expected a reference: a name, or {id: …} or {name: …}")

    def _merge_shared_config(self, item: Item) -> None:
        shared_name = item.body.pop("_config", None)
        if shared_name is None:
            return
        shared = self._plugin_configs.get(shared_name) if isinstance(shared_name, str) else None
        if not isinstance(shared, Mapping):
            suggestion = nearest(str(shared_name), self._plugin_configs)
            hint = f" (did you mean '{suggestion}'?)" if suggestion else ""
            self._fault((*item.path, "_config"), f"no entry '{shared_name}' in _plugin_configs{hint}")
            return
        own = item.body.get("config") or {}
        if not isinstance(own, Mapping):
            self._fault((*item.path, "config"), "expected a record")
            return
        item.body["config"] = _deep_merge(shared, own)

    def _fill_defaults(self, row: EntityType, body: dict[str, Any], parent: tuple[str, Item] | None) -> None:
        """As decK does: where it stands is said, and so are its tags where there are select tags."""
        said = {parent[0]} if parent is not None else set()
        if self._select_tags:
            said.add("tags")
        _fill(body, {key: value for key, value in self._defaults.get(row.kind, {}).items() if key not in said}, row)

    def _suggest_nested(self, item: Item, fields: frozenset[str]) -> None:
        """Unknown keys are refused with the entity's other fields, but only here are nested keys known too."""
        for key in [key for key in item.body if key not in fields]:
            self._fault((*item.path, key), unknown_field(key, fields))
            item.body.pop(key)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What entities of a kind look like in a file."""

    row: EntityType
    nested: Mapping[str, tuple[EntityType, str]]
    """Keys under which children stand inside it: the child's kind, and its field that refers back."""
    fields: frozenset[str]
    """Every key that it may have."""
    keys: frozenset[str]
    """The same, with those that only files know."""
    parents: frozenset[str]
    expands: bool


@cache
def _shape_of(name: str) -> _Shape:
    row = ENTITY_TYPES[name]
    nested = {p.nested_key: (child, field_name) for child, field_name, p in children_of(name) if p.nested_key}
    fields = frozenset(row.model.model_fields) | row.model.shorthands | frozenset(nested)
    keys = fields | {"_config"} if name == "plugins" else fields
    return _Shape(row, nested, fields, keys, frozenset(row.parents), row.model.overrides("expand"))


def _expand(row: EntityType, body: dict[str, Any]) -> dict[str, Any]:
    """Put real fields in the place of shorthands; one of the wrong type is left for the schema to refuse.

    What is written beside a shorthand counts, as in decK. The API takes the shorthand's word for all of it.
    """
    shorthands = [key for key in row.model.shorthands if key in body and isinstance(body[key], str | None)]
    if shorthands:
        for key, value in row.model.expand({key: body.pop(key) for key in shorthands}).items():
            if value == "" or (value is not None and body.get(key) is None):  # empty: it says nothing that can be read
                body[key] = value
    if (expanded := row.model.expand(body)) is not body:
        body.update(expanded)
    return body


def _fill(body: dict[str, Any], defaults: Mapping[str, Any], row: EntityType | None = None) -> None:
    """Records and maps are filled entry by entry, what is null or empty as a whole; a reference says all by itself."""
    for key, value in defaults.items():
        known = body.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping) and (row is None or key not in row.parents):
            body[key] = dict(known)
            _fill(body[key], value)
        elif known is None or known == []:
            body[key] = value


def _deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        merged[key] = _deep_merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return merged


@dataclass(frozen=True, slots=True)
class Document:
    """A whole configuration: entities by kind, complete (defaults filled), each with its id, references by id."""

    control_plane_id: str
    entities: Mapping[str, tuple[Entity, ...]]

    @classmethod
    def load(cls, payload: bytes) -> Document:
        """Read canonical bytes. Raises SchemaViolation with paths such as `services[0].port`."""
        try:
            data = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise SchemaViolation([Violation((), f"not a document: {error}")]) from None
        if not isinstance(data, dict) or not isinstance(data.get("entities"), dict):
            raise SchemaViolation([Violation((), "not a document: expected control_plane_id and entities")])
        entities: dict[str, tuple[Entity, ...]] = {}
        violations: list[Violation] = []
        for name, rows in data["entities"].items():
            row = ENTITY_TYPES.get(name)
            if row is None or not isinstance(rows, list):
                violations.append(Violation(("entities", name), "unknown kind of entity"))
                continue
            models = []
            for index, body in enumerate(rows):
                try:
                    models.append(parse(row.model, body))
                except SchemaViolation as error:
                    violations.extend(v.under(name, index) for v in error.violations)
            entities[name] = tuple(models)
        if violations:
            raise SchemaViolation(violations)
        return cls(str(data.get("control_plane_id", "")), entities)

    def after(self, delta: Delta) -> Document:
        """What a delta makes of this document. Entities and kinds that it does not concern are the same objects.

        Raises SchemaViolation with paths such as `services.<id>.port`, and ValueError when it is not about this one.
        """
        entities = dict(self.entities)
        violations: list[Violation] = []
        for name in delta.kinds:
            if name not in ENTITY_TYPES:
                raise ValueError(f"unknown kind of entity {name!r}")
            rows = {str(entity.id): entity for entity in self.of(name)}
            for entity_id in [entity_id for kind, entity_id in delta.deletes if kind == name]:
                if rows.pop(entity_id, None) is None:
                    raise ValueError(f"there is no entity {entity_id!r} among {name}")
            for entity_id, body in [(entity_id, body) for kind, entity_id, body in delta.puts if kind == name]:
                try:
                    rows[entity_id] = parse(ENTITY_TYPES[name].model, orjson.loads(body))
                except SchemaViolation as error:
                    violations.extend(v.under(name, entity_id) for v in error.violations)
            entities[name] = tuple(rows[entity_id] for entity_id in sorted(rows))
        if violations:
            raise SchemaViolation(violations)
        return Document(self.control_plane_id, entities)

    def of(self, name: str) -> tuple[Any, ...]:
        """The entities of a kind, empty when there are none."""
        return self.entities.get(name, ())


def canonical(control_plane_id: str, entities: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """The bytes of a document: keys sorted, entities by id, kinds in registry order, so that equal means equal."""
    ordered = {name: sorted(entities.get(name, ()), key=lambda entity: str(entity["id"])) for name in ENTITY_TYPES}
    return orjson.dumps({"control_plane_id": control_plane_id, "entities": ordered}, option=orjson.OPT_SORT_KEYS)


def hash_of(payload: bytes) -> str:
    """32 hex digits over a document's canonical bytes; 32 zeros for no bytes at all (Kong's empty hash)."""
    return shown(new_digest(payload)) if payload else "0" * 32
