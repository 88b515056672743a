"""Partials in plugins: where one can stand, which links are right, and a plugin's configuration with them in it.

The places follow from the classes that check configurations: wherever a plugin's class has a record of a partial's
class, a partial of that type can stand. They are `supported_partials` of the plugin's schema, and every way in that
writes a link checks it by them: decK refuses to read a plugin with a link that its schema does not know.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from control_plane.fields import fields_of
from control_plane.holdings import Row
from gateway_schema import content
from gateway_schema.plugins.base import PluginConfig
from gateway_schema.registry import PARTIALS, PLUGINS, EntityType
from gateway_schema.violations import SchemaViolation, Violation

Places = Mapping[str, Sequence[str]]
"""Of each type of partial, the paths that it can stand at. `[]` at the end: in a list, as one more element."""
TypeOf = Callable[[str], str | None]
"""The type of a partial, by its id; None where it is not known."""


@cache
def places_of(config_class: type[PluginConfig]) -> Places:
    places: dict[str, list[str]] = {}
    for kind, place in _places(config_class, "config"):
        places.setdefault(kind, []).append(place)
    return {kind: tuple(found) for kind, found in places.items()}


def _places(model: type[BaseModel], path: str) -> Iterator[tuple[str, str]]:
    """Every record of a partial's class, the outermost of them."""
    kinds = {config: kind for kind, config in PARTIALS.configs.items()}
    for item in fields_of(model):
        value, place = item.value, f"{path}.{item.name}"
        if value.kind == "array" and value.element is not None:
            value, place = value.element, f"{place}[]"
        for record in value.records:
            if record in kinds:
                yield kinds[record], place
            elif value.kind == "record":
                yield from _places(record, place)


# -- the check of links


def check_links(row: EntityType, written: Mapping[str, Any], type_of: TypeOf) -> None:
    """Whether a plugin takes the partials that it lists where it lists them. For what `content.complete` has passed;
    other kinds list none. Raises SchemaViolation with every fault."""
    faults = link_faults(written, type_of) if row is PLUGINS else ()
    if faults:
        raise SchemaViolation(faults)


def link_faults(plugin: Mapping[str, Any], type_of: TypeOf) -> list[Violation]:
    """The same for the written form of a plugin, as a list."""
    links = plugin.get("partials")
    return faults_at(_places_in(plugin), plugin["name"], links, type_of) if links else []


def faults_at(places: Places, plugin: str, links: Sequence[Mapping[str, Any]], type_of: TypeOf) -> list[Violation]:
    if not places:
        return [Violation(("partials",), f"plugin '{plugin}' takes no partials: leave the field out")]
    faults = []
    for index, link in enumerate(links):
        kind = type_of(str(link.get("id")).lower())
        if kind is not None and kind not in places:
            text = f"expected a partial of one of these types: {', '.join(sorted(places))}; this one is of type {kind}"
            faults.append(Violation(("partials", index), text))
        elif (message := _path_fault(link, kind, places)) is not None:
            faults.append(Violation(("partials", index, "path"), message))
    return faults


def displaced(plugins: Iterable[Row], partial: Row) -> list[Violation]:
    """Why a partial cannot be of the type that it now has: the plugins that list it would be wrong."""
    types = {partial.id: str(partial.written["type"])}
    return [
        Violation(("type",), f"plugin '{plugin.written['name']}' (id {plugin.id}) lists this partial: {fault}")
        for plugin in plugins
        for fault in link_faults(plugin.written, types.get)
    ]


def _places_in(plugin: Mapping[str, Any]) -> Places:
    config_class = content.plugin_class(PLUGINS, plugin)
    return places_of(config_class) if config_class is not None else {}


def _path_fault(link: Mapping[str, Any], kind: str | None, places: Places) -> str | None:
    known = places.get(kind or "") or sorted(place for found in places.values() for place in found)
    path = link.get("path")
    if path is None and kind in places and len(known) > 1:
        return f"required field missing, expected one of: {', '.join(known)}"
    return f"expected one of: {', '.join(known)}" if path is not None and path not in known else None


# -- a plugin with its partials in it


def inlined(plugin: Row, partials: Mapping[str, Row]) -> Row:
    """The plugin as its partials (by id) make it: what one says replaces what the plugin itself says there. A link
    from before links were checked may lead nowhere, and changes nothing."""
    config = copy.deepcopy(plugin.complete["config"])
    for link in plugin.written.get("partials") or ():
        partial = partials.get(str(link["id"]).lower())
        places = _places_in(plugin.written).get(partial.written["type"], ()) if partial is not None else ()
        place = link.get("path") or next(iter(places), None)
        if partial is not None and place in places:
            _put(config, str(place).split(".")[1:], partial.complete["config"])
    complete = {**plugin.complete, "config": config}
    return Row(plugin.type, plugin.id, plugin.written, plugin.created_at, plugin.updated_at, complete)


def _put(node: dict[str, Any], path: Sequence[str], value: Mapping[str, Any]) -> None:
    """Records on the way are made where there are none; a list on the way has the value in each of its elements."""
    name, is_list, rest = path[0].removesuffix("[]"), path[0].endswith("[]"), path[1:]
    known = node.get(name)
    if rest and is_list:
        for element in known or ():
            _put(element, rest, value)
    elif rest:
        node[name] = known if known is not None else {}
        _put(node[name], rest, value)
    else:
        node[name] = [*(known or ()), value] if is_list else value
