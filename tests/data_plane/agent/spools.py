"""Spools that are left behind, as by a killed agent, and closed when the test is over."""

from __future__ import annotations

from pathlib import Path

from data_plane.agent.spool import Spool

_open: list[Spool] = []


def opened(folder: Path, limit: int) -> Spool:
    spool = Spool(folder, limit)
    _open.append(spool)
    return spool


def close_all() -> None:
    while _open:
        _open.pop().close()
