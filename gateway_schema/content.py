"""Two forms of one entity: what was written, and what it means.

*Written* is what a person said: no defaults, no nulls that say nothing, no id and no times, references as `{"id": …}`.
It is what the database keeps. *Complete* is every field of the entity and of its plugin's configuration, defaults
filled, null where unset: what the API shows and a snapshot carries. A later version's new default changes the second
form only, so it is never a difference.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from gateway_schema.base import MASK, NEW_MASK, Record
from gateway_schema.plugins import PLUGINS
from gateway_schema.plugins.base import PluginConfig
from gateway_schema.registry import ENTITY_TYPES, EntityType
from gateway_schema.shapes import find_secrets, map_secrets, merged, normal, shape_of
from gateway_schema.violations import Path, SchemaViolation, Violation, nearest, parse

OWN_FIELDS = frozenset({"id", "created_at", "updated_at"})
"""Fields that clients may send back but that the control plane keeps apart."""

UNORDERED: Mapping[str, frozenset[str]] = {"plugins": frozenset({"protocols"})}
"""Lists in which order says nothing, beside `tags` and `ca_certificates`. A route's `protocols` is not among them."""

GENERATED: Mapping[str, frozenset[str]] = {row.name: row.generated for row in ENTITY_TYPES.values()}
"""Secrets that are made up when a POST or PUT leaves them out. A declarative file must write them."""

_MAX_DEPTH = 64
_TOO_DEEP = f"must not be nested deeper than {_MAX_DEPTH} levels"

MAX_KEY_LENGTH = 512
"""Characters of a unique text or a tag: what fits into an index of every database."""


def written_form(row: EntityType, body: Mapping[str, Any]) -> dict[str, Any]:
    """What `body` says, in the written form; nothing is checked, and what is wrong stays for the check to find."""
    data = row.model.expand({key: value for key, value in body.items() if key not in OWN_FIELDS})
    shorthands = row.model.shorthands
    data = {key: value for key, value in data.items() if not (key in shorthands and isinstance(value, str | None))}
    config = config_class(row, data)
    if config is not None and isinstance(data.get("config"), Mapping):
        said = normal(shape_of(config), _expanded(config, data["config"]))
        data["config"] = {**data["config"], **said} if row.sparse_config else said
    written: dict[str, Any] = normal(shape_of(row.model), data)
    for field in row.parents:
        reference = written.get(field)
        if isinstance(reference, Mapping) and isinstance(reference.get("id"), str):
            written[field] = {"id": reference["id"].lower()}  # clients may add names; they say nothing new
    for field, listed in row.lists.items():
        if listed.key is None and isinstance(written.get(field), list):
            written[field] = [entry.lower() if isinstance(entry, str) else entry for entry in written[field]]
    tags = written.get("tags")
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        written["tags"] = list(dict.fromkeys(tags))
    if row.configs and written.get("config") == {}:
        del written["config"]
    return written


def admitted(row: EntityType, written: dict[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is kept of what a person wrote just now: passwords hashed, expired certificates refused.

    `before` is the written form that is replaced. Called once per write, references by id. Raises SchemaViolation.
    """
    if not row.model.overrides("admit"):
        return written
    if violations := _unfit(written) or list(_masks(row, written)):
        raise SchemaViolation(violations)  # before a password is hashed, which a mask would end as
    return row.model.admit(written, before)


def plugin_class(row: EntityType, body: Mapping[str, Any]) -> type[PluginConfig] | None:
    """The configuration class of a plugin entity; None for other kinds and for plugins that nobody knows."""
    name = body.get("name")
    return PLUGINS.get(name) if row.name == "plugins" and isinstance(name, str) else None


def config_class(row: EntityType, body: Mapping[str, Any]) -> type[Record] | None:
    """The class of an entity's `config`, where another field decides; None where that one says nothing known."""
    name = body.get(row.config_key) if row.config_key is not None else None
    return row.configs.get(name) if isinstance(name, str) else None


def _expanded(config: type[Record], written: Mapping[str, Any]) -> dict[str, Any]:
    return config.expand(dict(written)) if issubclass(config, PluginConfig) else dict(written)


def complete(row: EntityType, written: Mapping[str, Any]) -> dict[str, Any]:
    """Check the written form and fill it. Without `id` and times. Raises SchemaViolation with every fault."""
    violations = _limits(row, written)
    if any(violation.message == _TOO_DEEP for violation in violations):
        raise SchemaViolation(violations)  # whatever looks into it would never come back
    violations += _masks(row, written)
    full: dict[str, Any] = {}
    config: dict[str, Any] | None = None
    try:
        full = parse(row.model, written).model_dump(mode="json", by_alias=True)
    except SchemaViolation as error:
        violations.extend(error.violations)
    if row.name == "plugins":
        config = _plugin_config(row, written, violations)
    elif row.configs:
        config = _checked_config(config_class(row, written), row, written, violations)
    if violations:
        raise SchemaViolation(violations)
    if config is not None:
        full["config"] = config
    if row.name == "plugins":
        full["protocols"] = full["protocols"] or list(PLUGINS[full["name"]].protocols)
    for field in OWN_FIELDS:
        full.pop(field, None)
    for field, value in full.items():
        if isinstance(value, dict) and field in row.parents:
            full[field] = {"id": value["id"]}
    return full


def _masks(row: EntityType, written: Mapping[str, Any]) -> Iterable[Violation]:
    """A mask that comes back is refused, not taken for "keep what you have": which of several secrets in a list it
    once stood for cannot be told, and a secret that lands beside another address is given away."""
    for path, text in secrets_of(row, written):
        if text in (MASK, NEW_MASK):
            yield Violation(path, "holds the mask of a secret: write the secret itself, or leave it out of a PATCH")


def generate(row: EntityType, written: dict[str, Any]) -> dict[str, Any]:
    """Fill in the secrets that the gateway may make up: 32 random characters each."""
    missing = {field: secrets.token_hex(16) for field in GENERATED.get(row.name, ()) if written.get(field) is None}
    return {**written, **missing}


def unsaid(row: EntityType, complete: Mapping[str, Any]) -> list[Violation]:
    """The secrets that a declarative file does not say, and would have to."""
    missing = (field for field in sorted(GENERATED.get(row.name, ())) if complete.get(field) is None)
    return [Violation((field,), "required field missing") for field in missing]


def _plugin_config(row: EntityType, written: Mapping[str, Any], violations: list[Violation]) -> dict[str, Any] | None:
    name = written.get("name")
    if not isinstance(name, str):
        return None
    config_class = plugin_class(row, written)
    if config_class is None:
        suggestion = nearest(name, PLUGINS)
        hint = f" (did you mean '{suggestion}'?)" if suggestion else f" (known plugins: {', '.join(sorted(PLUGINS))})"
        text = f"plugin '{name}' not enabled; add it to the 'plugins' configuration property{hint}"
        violations.append(Violation(("name",), text))
        return None
    for scope in sorted(config_class.forbidden_scopes):
        if written.get(scope) is not None:
            violations.append(Violation((scope,), "value must be null"))
    _check_protocols(written, config_class, violations)
    return _checked_config(config_class, row, written, violations)


def _checked_config(
    config: type[Record] | None, row: EntityType, written: Mapping[str, Any], violations: list[Violation]
) -> dict[str, Any] | None:
    if config is None or (row.sparse_config and "config" not in written):
        return None
    try:
        checked = parse(config, written.get("config") or {})
    except SchemaViolation as error:
        violations.extend(violation.under("config") for violation in error.violations)
        return None
    return checked.model_dump(mode="json", by_alias=True, exclude_unset=row.sparse_config)


def _check_protocols(written: Mapping[str, Any], config_class: type[PluginConfig], violations: list[Violation]) -> None:
    protocols = written.get("protocols")
    for index, protocol in enumerate(protocols if isinstance(protocols, list) else ()):
        if isinstance(protocol, str) and protocol not in config_class.protocols:
            text = f"expected one of: {', '.join(config_class.protocols)}"
            violations.append(Violation(("protocols", index), text))


def _limits(row: EntityType, written: Mapping[str, Any]) -> list[Violation]:
    """What the store asks beyond the schema: short keys, for its indexes; no NUL; references that it can follow."""
    found = []
    for fields in row.unique:
        for name in fields:
            value = written.get(name)
            if isinstance(value, str) and len(value) > MAX_KEY_LENGTH:
                found.append(Violation((name,), f"length must be at most {MAX_KEY_LENGTH}"))
    tags = written.get("tags")
    for index, tag in enumerate(tags if isinstance(tags, list) else ()):
        if isinstance(tag, str) and len(tag) > MAX_KEY_LENGTH:
            found.append(Violation(("tags", index), f"length must be at most {MAX_KEY_LENGTH}"))
    return found + _unfit(written)


def _unfit(written: Mapping[str, Any]) -> list[Violation]:
    """Fields that cannot be stored. Nearly always there are none, which the text of them all tells at once."""
    text = _dumped(written)
    if text and b"\\u0000" not in text and text.count(b"{") + text.count(b"[") <= _MAX_DEPTH:
        return []
    found = []
    for key, value in written.items():
        if _is_too_deep(value):
            found.append(Violation((key,), _TOO_DEEP))
        elif (text := _dumped(value)) is None:
            found.append(Violation((key,), "must not contain integers beyond 64 bits or half a surrogate pair"))
        elif b"\\u0000" in text:
            found.append(Violation((key,), "must not contain NUL characters"))
    return found


def _dumped(value: Any) -> bytes | None:
    """None for what is nested deeper than the writer goes, or holds what JSON's writer refuses."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return None


def _is_too_deep(value: Any) -> bool:
    """Whether nesting would overrun the walks that recurse: ours, pydantic's, the JSON writer's."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [item for each in level if isinstance(each, dict | list) for item in _items(each)]
        if not level:
            return False
    return True


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def merge(row: EntityType, written: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """PATCH: the written form after `changes`; null clears a field, records merge, lists and maps are replaced."""
    result = merged(shape_of(row.model), written, row.model.settle(dict(changes)))
    result |= {field: changes[field] for field in row.parents if changes.get(field) is not None}  # one or the other
    config = config_class(row, result)
    before, after = written.get("config"), changes.get("config")
    if config is not None and isinstance(before, Mapping) and isinstance(after, Mapping):
        result["config"] = merged(shape_of(config), before, _expanded(config, after))
    return written_form(row, result)


def change_secrets(row: EntityType, body: Mapping[str, Any], change: Any) -> dict[str, Any]:
    """A copy of either form with `change` applied to every secret in it, a plugin's configuration included."""
    result: dict[str, Any] = map_secrets(shape_of(row.model), body, change)
    config = config_class(row, body)
    if config is not None and result.get("config"):
        result = {**result, "config": map_secrets(shape_of(config), result["config"], change)}
    return result


def secrets_of(row: EntityType, body: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Every secret in either form, with where it stands: what `change_secrets` would change."""
    found = list(find_secrets(shape_of(row.model), body))
    config = config_class(row, body)
    if config is not None:
        found += find_secrets(shape_of(config), body.get("config"), ("config",))
    return found


def same(row: EntityType, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two complete forms mean the same."""
    if old == new:
        return True
    unordered = UNORDERED.get(row.name, frozenset()) | {"tags", "ca_certificates"}
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if key in unordered:
            before, after = sorted(before or ()), sorted(after or ())
        if before != after:
            return False
    return True


def unique_key(row: EntityType, written: Mapping[str, Any], fields: Sequence[str]) -> tuple[Any, ...] | None:
    """The values of fields that are unique together; None when one of a single field is not set."""
    if len(fields) == 1:
        value = written.get(fields[0])
        if isinstance(value, dict) and fields[0] in row.parents:
            value = value.get("id")
        return None if value is None else (value,)
    values = [written.get(field) for field in fields]
    return tuple([value.get("id") if isinstance(value, dict) else value for value in values])


def unrecognisable(row: EntityType, body: Mapping[str, Any]) -> Violation | None:
    """The fault of what says no id, and nothing else by which a document would find it again."""
    if any(unique_key(row, body, fields) is not None for fields in row.recognised_by):
        return None
    keys = " or ".join(dict.fromkeys(name for fields in row.recognised_by for name in fields))
    return Violation((), f"give it a {keys} or an id: nothing else tells it from a new one")
