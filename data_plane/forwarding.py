"""What a proxy in front of us says about the client, believed only from addresses that the operator trusts."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from data_plane.exchange import Exchange
from data_plane.router import split_host


class TrustedPeers:
    """Addresses and networks whose X-Forwarded-* and X-Real-IP headers count. Raises ValueError for a bad one."""

    def __init__(self, addresses: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(address, strict=False) for address in addresses)
        self._includes = lru_cache(maxsize=1024)(self._look_up)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def introduce(self, exchange: Exchange) -> None:
        """Note on the exchange what a trusted peer says: client address and scheme."""
        request = exchange.request
        if not self._networks or not self._includes(request.peer[0]):
            return
        exchange.trusted = True
        if real_ip := request.headers.get("x-real-ip"):
            exchange.client_ip = real_ip.strip()
        if proto := request.headers.get("x-forwarded-proto"):
            exchange.scheme = proto.strip().lower()

    def _look_up(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:  # a Unix socket's peer has no address
            return False
        return any(address in network for network in self._networks)


def forwarded_host(exchange: Exchange) -> str:
    """The host that the client asked for, without port."""
    headers = exchange.request.headers
    given = headers.get("x-forwarded-host") if exchange.trusted else None
    return given or split_host(headers.get("host") or "")[0]
