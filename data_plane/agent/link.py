"""The node's one connection to its control plane, and how long to wait before the next attempt."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]

from data_plane.settings import Settings, SettingsError, where

_OPTIONS = (
    # A peer that vanished without a word (half-open TCP) is noticed by pings, and by data that nobody acknowledges.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # The pauses between attempts are ours (`Backoff`); gRPC's own must not come on top of them.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


class Disconnected(Exception):
    """A stream is over; the message says why, for the log."""

    def __init__(self, reason: str, code: grpc.StatusCode | None = None) -> None:
        """`code`: with which the control plane ended it."""
        super().__init__(reason)
        self.code = code


STREAM_ERRORS = (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, Disconnected)
"""What ends a stream. InvalidStateError is gRPC's word for writing to a call that has just ended."""


def reason_of(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)


def code_of(error: Exception) -> grpc.StatusCode | None:
    """With which the control plane ended the stream, where that is known."""
    code: grpc.StatusCode | None = error.code() if isinstance(error, grpc.aio.AioRpcError) else None
    return error.code if isinstance(error, Disconnected) else code


async def greet(call: Any, hello: Any, timeout: float) -> Any:
    """Open a stream with a message and return the first answer. Raises one of STREAM_ERRORS."""
    try:
        async with asyncio.timeout(timeout):
            await call.write(hello)
            return await read(call)
    except TimeoutError:
        raise Disconnected(f"the control plane did not answer within {timeout:g} seconds") from None


async def read(call: Any) -> Any:
    """The next message of a stream. Raises one of STREAM_ERRORS when it ended."""
    message = await call.read()
    if message is EOF:
        code = await call.code()
        if code is grpc.StatusCode.OK:
            raise Disconnected("the control plane ended the stream")
        raise Disconnected(f"{code.name}: {await call.details()}", code)
    return message


async def first_to_end(**works: Coroutine[Any, Any, Any]) -> None:
    """Run named works side by side until one ends; raises what that one raised. The others are cancelled."""
    tasks = [asyncio.create_task(work, name=f"stream: {name}") for name, work in works.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.cancelled():  # gRPC's way to say that the call is no more; it is nobody's wish to end us
                raise Disconnected("the stream was cancelled")
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Backoff:
    """Seconds between attempts: at random 0.2 to 2, growing to 5 to 10, so that nodes do not come back all at once."""

    def __init__(self) -> None:
        self._attempts = 0

    def reset(self) -> None:
        self._attempts = 0

    def next(self) -> float:
        low, high = _SPANS[min(self._attempts, len(_SPANS) - 1)]
        self._attempts += 1
        return random.uniform(low, high)  # noqa: S311 (spreads load, hides nothing)


_SPANS = ((0.2, 2.0), (0.5, 2.0), (1.0, 4.0), (2.0, 6.0), (5.0, 10.0))


def open_channel(settings: Settings) -> Any:
    """A gRPC channel with mutual TLS; it connects when it is used. Raises SettingsError."""
    certificate = _read(settings.certificate, "certificate")
    key = _read(settings.certificate_key, "certificate_key")
    authority = _read(settings.control_plane_ca, "control_plane_ca")
    _check(settings)
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    name = (("grpc.ssl_target_name_override", settings.control_plane_server_name),)
    return grpc.aio.secure_channel(settings.control_plane, credentials, options=_OPTIONS + name)


def _read(path: Path | None, name: str) -> bytes:
    if path is None:
        raise SettingsError(f"{where(name)} is needed to reach the control plane: give a PEM file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{where(name)}: cannot read {path}: {error.strerror}") from None


def _check(settings: Settings) -> None:
    """gRPC tells a bad certificate only as a connection that never comes up, so they are tried here first."""
    assert settings.certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_cert_chain(settings.certificate, settings.certificate_key)
    except (ssl.SSLError, OSError) as error:
        both = f"{where('certificate')} and {where('certificate_key')}"
        raise SettingsError(f"{both}: not a certificate and its key: {_reason(error)}") from None
    try:
        context.load_verify_locations(settings.control_plane_ca)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(f"{where('control_plane_ca')}: not a certificate: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", "") or error.strerror or "unreadable")
