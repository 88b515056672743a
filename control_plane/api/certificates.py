"""Certificates: `snis` in their bodies, the names of the SNIs that they are for.

The names are entities of their own; the list only writes them. Without the key in a body they stay as they are; a
list, also an empty one, or null replaces them, in the transaction that writes the certificate. Both faces take the
list; `admin_certificates` also shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from control_plane.api.entities import Collection
from control_plane.errors import SchemaFault
from control_plane.holdings import Row
from control_plane.repository import Repository, Scope
from gateway_schema.registry import CERTIFICATES, SNIS
from gateway_schema.violations import Violation

_KEEP = object()


class Certificates(Collection):
    """The handlers of certificates."""

    def __init__(self) -> None:
        super().__init__(CERTIFICATES)

    async def _create(self, repository: Repository, body: dict[str, Any], scope: Scope | None) -> Row:
        names, rest = _take_names(body)
        return await _with_names(repository, await super()._create(repository, rest, scope), names)

    async def _replace(self, repository: Repository, key: str, body: dict[str, Any], scope: Scope | None) -> Row:
        names, rest = _take_names(body)
        return await _with_names(repository, await super()._replace(repository, key, rest, scope), names)

    async def _merge(self, repository: Repository, key: str, body: dict[str, Any], scope: Scope | None) -> Row:
        names, rest = _take_names(body)
        return await _with_names(repository, await super()._merge(repository, key, rest, scope), names)


def _take_names(body: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The names and the rest of a body. Raises SchemaFault."""
    rest = {key: value for key, value in body.items() if key != "snis"}
    if "snis" not in body:
        return _KEEP, rest
    names = [] if body["snis"] is None else body["snis"]
    if not isinstance(names, list):
        raise _fault([Violation(("snis",), "expected a set")])
    if not all(isinstance(name, str) for name in names):
        raise _fault([Violation(("snis",), "expected a set of strings")])
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _fault([Violation(("snis",), f"{name} is duplicated")])
        seen.add(name)
    return names, rest


async def _with_names(repository: Repository, certificate: Row, names: Any) -> Row:
    """Make the SNIs of a certificate the ones that are named. Raises SchemaFault."""
    if names is _KEEP:
        return certificate
    held = {row.written["name"]: row for row in await repository.referring(SNIS, "certificate", [certificate.id])}
    for name in names:
        if name not in held:
            await _add(repository, certificate, name)
    for name in held.keys() - set(names):
        await repository.delete(SNIS, held[name].id)
    return certificate


async def _add(repository: Repository, certificate: Row, name: str) -> None:
    taken = await repository.find(SNIS, name)
    if taken is not None:
        owner = taken.reference("certificate")
        raise _fault([Violation(("snis",), f"{name} already associated with existing certificate '{owner}'")])
    try:
        await repository.create(SNIS, {"name": name, "certificate": {"id": certificate.id}})
    except SchemaFault as error:
        raise _fault(Violation(("snis",), violation.message) for violation in error.violations) from None


def _fault(violations: Iterable[Violation]) -> SchemaFault:
    return SchemaFault(list(violations))
