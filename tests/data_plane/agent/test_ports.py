"""Whether a port counts as free, by the sockets that really stand in the way."""

from __future__ import annotations

import socket

import pytest

from cli.ports import is_free as is_free_for_the_cli
from data_plane.agent import ports

HOST = "127.0.0.1"


def served(holder: socket.socket, port: int) -> None:
    """One connection, which the server ends first: the system remembers it for a minute (TIME_WAIT)."""
    with socket.create_connection((HOST, port)) as client:
        connection, _ = holder.accept()
        connection.close()
        assert client.recv(1) == b""


@pytest.mark.parametrize("listening", [True, False])
def test_connections_that_linger_after_a_node_stopped_are_nobody(listening: bool) -> None:
    holder, port = ports.reserve(HOST, 0, listening=listening)
    assert holder is not None
    with holder:
        holder.listen()  # as the first worker does that accepts from it
        served(holder, port)
    assert ports.is_free(HOST, port)
    assert is_free_for_the_cli(port)
    again, same = ports.reserve(HOST, port, listening=True)
    assert again is not None
    with again:
        assert same == port
        served(again, port)


def test_a_port_that_a_node_holds_is_taken() -> None:
    holder, port = ports.reserve(HOST, 0, listening=True)
    assert holder is not None
    with holder:
        assert not ports.is_free(HOST, port)
        assert not is_free_for_the_cli(port)
