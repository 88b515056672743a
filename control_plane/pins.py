"""Which client certificates nodes may present, and of which control plane each makes them a node (pinned mode).

A pin is one certificate, not its issuer: self-signed ones are the rule. Certificates that were deleted are remembered,
so that a node which still presents one is told, and the log says, that it was revoked and not that it is a stranger.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sqlalchemy import select

from control_plane.database import Database
from control_plane.models import REVOKED_CERTIFICATES, ControlPlane, DataPlaneCertificate

_log = logging.getLogger(__name__)

_KEPT = 1 << 14
"""Certificates that are not read anew at each refresh: OpenSSL takes half a millisecond for one."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One certificate that was registered with a control plane, now or once."""

    control_plane_id: str
    control_plane_name: str
    fingerprint: str
    """SHA-256 of the DER form, in hex."""
    title: str
    pem: str
    not_before: datetime
    not_after: datetime
    revoked: bool = False

    def refusal(self, now: datetime) -> tuple[str, str] | None:
        """Why a node that presents it may not be served: a code and a sentence; None when it may."""
        name = _name(self.fingerprint, self.title, self.control_plane_name or self.control_plane_id)
        if self.revoked:
            return "revoked_certificate", f"{name} was revoked"
        if now > self.not_after:
            return "expired_certificate", f"{name} expired at {self.not_after:%Y-%m-%dT%H:%M:%SZ}"
        if now < self.not_before:
            return "certificate_not_yet_valid", f"{name} is valid from {self.not_before:%Y-%m-%dT%H:%M:%SZ} only"
        return None


class Pins:
    """The pins of the database, in memory: the TLS handshake cannot wait for a query."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pins: dict[str, Pin] = {}
        self._faults: dict[str, str] = {}
        """Of the last read, by fingerprint: each is told once."""
        self._on_change: list[Callable[[], None]] = []
        self._one_at_a_time = asyncio.Lock()
        """What was read first must not replace what was read later."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back after each refresh that found another set of certificates."""
        self._on_change.append(callback)

    async def refresh(self) -> None:
        """Read the certificates again. A certificate that is registered anywhere is not revoked."""
        async with self._one_at_a_time:
            pins = await self._read()
            if pins != self._pins:
                self._pins = pins
                for callback in self._on_change:
                    callback()

    async def _read(self) -> dict[str, Pin]:
        async with self._database.reading() as session:
            revoked = (await session.execute(select(REVOKED_CERTIFICATES))).all()
            names = {row.id: row.name for row in await session.execute(select(ControlPlane.id, ControlPlane.name))}
            live = (await session.execute(select(DataPlaneCertificate).order_by("created_at", "id"))).scalars().all()
        rows: list[tuple[Any, bool]] = [(row, True) for row in revoked] + [(row, False) for row in reversed(live)]
        pins: dict[str, Pin] = {}
        faults: dict[str, str] = {}
        for row, is_revoked in rows:
            try:
                pins[row.fingerprint] = _pin(row, names, is_revoked)
            except ValueError as error:
                # Stored when less was checked. Without it one node is a stranger; failing here, every new one would be.
                owner = names.get(row.control_plane_id) or row.control_plane_id
                faults[row.fingerprint] = f"{_name(row.fingerprint, row.title, owner)} cannot be used: {error}"
        faults |= _ambiguous(live, names)
        self._tell(faults)
        return pins

    def _tell(self, faults: dict[str, str]) -> None:
        for fingerprint in faults.keys() - self._faults.keys():
            _log.error("%s", faults[fingerprint])
        self._faults = faults

    def of(self, fingerprint: str) -> Pin | None:
        return self._pins.get(fingerprint)

    @property
    def bundle(self) -> str:
        """All of them in PEM, revoked and expired ones too: their refusal is ours to word."""
        return "\n".join(pin.pem for pin in self._pins.values())


@functools.lru_cache(_KEPT)
def read_certificate(pem: str) -> tuple[x509.Certificate, str, str]:
    """The first certificate of a PEM text, with its own text and fingerprint. Raises ValueError that says why not."""
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except (ValueError, x509.InvalidVersion):
        raise ValueError("not a certificate in PEM form (-----BEGIN CERTIFICATE----- …)") from None
    text = certificate.public_bytes(serialization.Encoding.PEM).decode()
    try:
        # In a bundle, one that it cannot read would take along all others.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
    except ssl.SSLError as error:
        raise ValueError(f"OpenSSL cannot read this certificate: {error.reason or error}") from None
    return certificate, text, fingerprint_of(certificate)


def fingerprint_of(certificate: x509.Certificate | bytes) -> str:
    """SHA-256 of the DER form, in hex."""
    der = certificate if isinstance(certificate, bytes) else certificate.public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def _name(fingerprint: str, title: str | None, owner: str) -> str:
    return f"client certificate {fingerprint[:16]}… ({title or 'untitled'}) of control plane {owner}"


def _ambiguous(live: Iterable[Any], names: dict[str, str]) -> dict[str, str]:
    """Nobody can register one twice now; replicas of an earlier version could. The first registration counts."""
    first: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for row in live:
        owner = first.setdefault(row.fingerprint, row)
        if owner is not row:
            name = _name(row.fingerprint, row.title, names.get(row.control_plane_id) or row.control_plane_id)
            counts = names.get(owner.control_plane_id) or owner.control_plane_id
            faults[row.fingerprint] = f"{name} is registered with control plane {counts} too, which its nodes are of"
    return faults


def _pin(row: Any, names: dict[str, str], revoked: bool) -> Pin:
    """Raises ValueError for a certificate that cannot be read."""
    certificate, text, fingerprint = read_certificate(row.cert)
    return Pin(
        control_plane_id=row.control_plane_id,
        control_plane_name=names.get(row.control_plane_id, ""),
        fingerprint=fingerprint,
        title=row.title or "",
        pem=text,
        not_before=certificate.not_valid_before_utc.astimezone(UTC),
        not_after=certificate.not_valid_after_utc.astimezone(UTC),
        revoked=revoked,
    )
