"""TLS towards upstreams: one context per kind of trust, made once."""

from __future__ import annotations

import asyncio
import ssl


class Contexts:
    """Makes and keeps contexts. `bundle` is the PEM file that certificates are checked against; empty: the system's."""

    def __init__(self, bundle: str = "") -> None:
        self._bundle = bundle
        self._made: dict[tuple[bool, str | None], ssl.SSLContext] = {}

    async def get(self, verify: bool, ca: str | None) -> ssl.SSLContext:
        """`ca` is a PEM file or PEM text that replaces the bundle. Raises OSError (ssl.SSLError is one)."""
        context = self._made.get((verify, ca))
        if context is None:  # Reading a bundle takes milliseconds, which the event loop does not have.
            context = self._made[(verify, ca)] = await asyncio.to_thread(self._make, verify, ca)
        return context

    def _make(self, verify: bool, ca: str | None) -> ssl.SSLContext:
        if ca is not None and "-----BEGIN" in ca:
            context = ssl.create_default_context(cadata=ca)
        else:
            context = ssl.create_default_context(cafile=ca or self._bundle or None)
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context
