"""The running service's side door: one socket a network namespace, which answers requests.

The socket has an abstract name, which belongs to the network namespace as the rules do: there
can be one service in each, the name is gone the moment its owner dies, and no directory has to
be writable. Both sides speak in lines of JSON; the first is the request. Anybody in the namespace
can connect and ask for the state; whatever changes something is for root and the service's own
user.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from csumfix.errors import CsumfixError, Exit

ADDRESS = "\0csumfix"
TIMEOUT = 2.0
MAX_PEERS = 16  # strangers may not keep the operator out: more of those we trust are served
MAX_LINE = 1 << 20
UCRED = struct.Struct("3i")  # pid, uid, gid: see unix(7)

EXPECTED = {
    "status": {"version", "pid", "started", "config", "reload", "tunnels", "rules", "queues"},
    "restart": {"successor"},
}
"""What the answer to a request has at least."""

TUNNELS = 1000
"""Tunnels that an answer lists at most, which keeps it below MAX_LINE."""

Message = dict[str, Any]
Snapshot = dict[str, Any]


class Peer:
    """The other end of a connection, which sends and receives messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.pid, self.uid = credentials(writer.get_extra_info("socket"))

    @property
    def trusted(self) -> bool:
        """Whether it may change what the service does."""
        return self.uid in (0, os.geteuid())

    async def send(self, **message: Any) -> None:
        """Send a message."""
        self._writer.write(encode(message))
        await self._writer.drain()

    async def receive(self, timeout: float) -> Message | None:
        """Return its next message; None if it hung up, spoke nonsense, or kept silent so long."""
        try:
            async with asyncio.timeout(timeout):
                return decode(await self._reader.readline())
        except (TimeoutError, ConnectionError, ValueError):
            return None

    async def hangs_up(self, timeout: float) -> bool:
        """Wait for it to hang up; tell whether it did in so many seconds."""
        with contextlib.suppress(ConnectionError):
            try:
                async with asyncio.timeout(timeout):
                    await self._reader.read()
            except TimeoutError:
                return False
        return True

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def encode(message: Message) -> bytes:
    """Return the message as a line."""
    return json.dumps(message).encode() + b"\n"


def bounded(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with a list of tunnels that fits into an answer."""
    tunnels = snapshot["tunnels"]
    return {**snapshot, "tunnels": tunnels[:TUNNELS], "tunnel_count": len(tunnels)}


def decode(line: bytes) -> Message:
    """Return the message in a line; ValueError if there is none."""
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Return process id and user id of whoever is at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    pid, uid, _ = UCRED.unpack(raw)
    return pid, uid


@dataclass(frozen=True)
class Handler:
    """What is done on a request.

    harmless: for everybody.
    """

    answer: Callable[[Peer], Awaitable[None]]
    harmless: bool = False


async def serve(handlers: Mapping[str, Handler]) -> asyncio.Server:
    """Answer requests by these handlers; refuse if a service does so already."""
    peers = 0

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal peers
        peers += 1
        try:
            peer = Peer(reader, writer)
            if peers <= MAX_PEERS or peer.trusted:
                await _answer(peer, handlers)
        except OSError:
            pass  # it hung up: its own affair
        finally:
            peers -= 1
            writer.close()

    try:
        return await asyncio.start_unix_server(on_connection, ADDRESS)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise CsumfixError(
            f"csumfix runs already in this network namespace ({_owner()}): "
            "one service repairs all its tunnels: "
            "stop that one first, replace it with --take-over, or see 'csumfix status'",
            Exit.IN_USE,
        ) from None


async def _answer(peer: Peer, handlers: Mapping[str, Handler]) -> None:
    request = await peer.receive(TIMEOUT)
    if request is None:
        return
    handler = handlers.get(str(request.get("request")))
    if handler is None:
        await peer.send(error=f"no such request; known: {' '.join(handlers)}")
    elif not (handler.harmless or peer.trusted):
        await peer.send(error="permission denied: run as root", code=Exit.PERMISSION)
    else:
        await handler.answer(peer)


def _owner() -> str:
    """Say who has the socket's name: an abstract name is anybody's to take."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)
        try:
            connection.connect(ADDRESS)
        except BlockingIOError:  # too many wait already
            return "it does not answer"
        except OSError:
            return "just gone"
        pid, uid = credentials(connection)
    return f"process {pid} of user {uid}"


def ask(request: str = "status") -> Message | None:
    """Return the answer of the service in this network namespace; None if none runs.

    Raises CsumfixError if it runs and does not answer.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT)
        try:
            connection.connect(ADDRESS)
            connection.sendall(encode({"request": request}))
            with connection.makefile("rb") as stream:
                line = stream.readline(MAX_LINE)
            return _understood(line, request, connection) if line else None
        except TimeoutError:
            pid, uid = credentials(connection)
            raise CsumfixError(
                f"csumfix runs, but does not answer (process {pid} of user {uid}): "
                "it was stopped or hangs: wake it with 'kill -CONT', or end it with 'kill -9'",
                Exit.BROKEN,
            ) from None
        except OSError:
            return None


def _understood(line: bytes, request: str, connection: socket.socket) -> Message:
    """Return the answer in a line; raise unless it looks like one to this request."""
    try:
        answer = decode(line)
    except ValueError:
        answer = {}
    if answer.keys() >= EXPECTED[request] or answer.keys() >= {"error", "code"}:
        return answer
    pid, uid = credentials(connection)
    raise CsumfixError(
        f"process {pid} of user {uid} has the name of csumfix's socket, but does not speak like "
        "this version: an older or newer service, or a stranger: see what it is, and stop it",
        Exit.IN_USE,
    )


async def connect() -> Peer | None:
    """Return a connection to the service in this network namespace; None if none runs."""
    try:
        async with asyncio.timeout(TIMEOUT):  # one that hangs may have too many waiting already
            return Peer(*await asyncio.open_unix_connection(ADDRESS))
    except OSError:
        return None
