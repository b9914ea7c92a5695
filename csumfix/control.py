"""The running service's side door: one socket a network namespace, asked for its state.

The socket has an abstract name, which belongs to the network namespace as the rules do: there
can be one service in each, the name is gone the moment its owner dies, and no directory has to
be writable. Whoever connects is sent one JSON document and nothing else.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

from csumfix.errors import CsumfixError, Exit

ADDRESS = "\0csumfix"
TIMEOUT = 2.0
UCRED = struct.Struct("3i")  # pid, uid, gid: see unix(7)

Snapshot = dict[str, Any]


async def serve(snapshot: Callable[[], Snapshot]) -> asyncio.Server:
    """Answer each connection with ``snapshot()``; refuse if a service does so already."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(snapshot()).encode())
        writer.close()

    try:
        return await asyncio.start_unix_server(answer, ADDRESS)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise CsumfixError(
            f"csumfix runs already in this network namespace ({_owner()}): "
            "one service repairs all its tunnels: "
            "stop that one first, or look at it with 'csumfix status'",
            Exit.IN_USE,
        ) from None


def _owner() -> str:
    """Say who has the socket's name: an abstract name is anybody's to take."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(ADDRESS)
        except OSError:
            return "just gone"
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    pid, uid, _ = UCRED.unpack(credentials)
    return f"process {pid} of user {uid}"


def ask() -> Snapshot | None:
    """Return the state of the service in this network namespace; None if none runs."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(ADDRESS)
            with connection.makefile("rb") as stream:
                answer: Snapshot = json.load(stream)
        except (OSError, ValueError):
            return None
    return answer
