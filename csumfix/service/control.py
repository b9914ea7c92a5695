"""The running service's control socket: requests, answers, and who may ask for what.

Both sides speak in lines of JSON; the first line is the request. Anybody in the network namespace
may ask for the state. Only root and the service's own user may change something. Where the socket
is, and whose answers are believed, is explained in address.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from csumfix.errors import CsumfixError, Exit
from csumfix.service import address
from csumfix.service.listener import Listener, already_running
from csumfix.service.snapshot import Snapshot, from_json
from csumfix.text import printable_data

TIMEOUT = 2.0

MAX_STRANGERS = 16
"""Strangers that are served at the same time; there is no limit for the operator."""

STRANGERS_TIME = 4.0
"""Seconds in which a stranger must have asked and read the answer."""

MAX_LINE = 1 << 20
"""Bytes of an answer to a command."""

MAX_TAKE_OVER = 16 << 20
"""Bytes of an answer to a successor, which gets the lane of every port there can be."""

T = TypeVar("T")

Message = dict[str, Any]
"""A JSON object: what travels in one line."""


class Peer:
    """The other end of a connection, which sends and receives messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        owner = address.owner(writer.get_extra_info("socket"))
        self.pid, self.uid = owner.pid, owner.uid

    @property
    def trusted(self) -> bool:
        """Whether it may change what the service does."""
        return _may_command(self.uid)

    async def send(self, **message: Any) -> None:
        """Send a message."""
        self._writer.write(encode(message))
        await self._writer.drain()

    async def receive(self, timeout: float) -> Message | None:
        """Return its next message; None if it hung up, sent nonsense, or kept silent."""
        try:
            async with asyncio.timeout(timeout):
                return decode(await self._reader.readline())
        except (TimeoutError, ConnectionError, ValueError):
            return None

    async def hangs_up(self, timeout: float) -> bool:
        """Wait for the peer to hang up; tell whether it did within `timeout` seconds."""
        with contextlib.suppress(ConnectionError):
            try:
                async with asyncio.timeout(timeout):
                    await self._reader.read()
            except TimeoutError:
                return False
        return True

    def close(self) -> None:
        """Hang up, once everything has been sent."""
        self._writer.close()

    def abort(self) -> None:
        """Hang up at once: it does not read."""
        self._writer.transport.abort()


def _may_command(uid: int) -> bool:
    return uid in (0, os.geteuid())


def encode(message: Message) -> bytes:
    """Return the message as a line."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message in a line; ValueError if there is none."""
    try:
        message = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


@dataclass(frozen=True)
class Handler:
    """What answers a request.

    harmless: everybody may make it.
    """

    answer: Callable[[Peer], Awaitable[None]]
    harmless: bool = False


class ControlServer:
    """Answers requests by these handlers until it is closed."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._strangers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = Listener(self._on_connection)

    @property
    def trouble(self) -> str | None:
        """What the operator should know about the socket."""
        return self._listener.trouble

    def open(self) -> None:
        """Begin to listen; raise CsumfixError if another service does."""
        self._listener.open()

    def close(self) -> None:
        """Stop listening; requests that have been accepted are answered."""
        self._listener.close()

    def _on_connection(self, connection: socket.socket) -> None:
        trusted = _may_command(address.owner(connection).uid)
        if not trusted and self._strangers >= MAX_STRANGERS:
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection, trusted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, trusted: bool) -> None:
        self._strangers += not trusted
        peer = None
        try:
            peer = Peer(*await asyncio.open_unix_connection(sock=connection))
            async with asyncio.timeout(None if trusted else STRANGERS_TIME):
                await _answer(peer, self._handlers)
            peer.close()
        except OSError:  # it hung up, or does not read what it asked for
            if peer:
                peer.abort()
        finally:
            self._strangers -= not trusted


async def serve(handlers: Mapping[str, Handler]) -> ControlServer:
    """Answer requests by these handlers; refuse if a service does so already."""
    occupant = await asyncio.to_thread(_occupant)
    if occupant:
        raise already_running(occupant)
    server = ControlServer(handlers)
    server.open()
    return server


def _occupant() -> str | None:
    """Name the service that runs in this network namespace; None if none does."""
    connection = address.find(TIMEOUT).connection
    if not connection:
        return None
    with connection:
        who = str(address.owner(connection))
        try:
            return who if _exchange(connection, "status") else None
        except TimeoutError:
            return f"{who}, which does not answer"
        except OSError:  # it went while we asked
            return None


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


def status() -> Snapshot | None:
    """Return the state of the service in this network namespace; None if none runs.

    Raises CsumfixError if it runs and does not answer, or is not believed.
    """
    return _ask("status", from_json)


def restart() -> Message | None:
    """Have the running service start a successor; return its answer, None if none runs.

    The answer has the successor's process id as "successor", or "error" and "code".
    """
    return _ask("restart", _restart_answer)


def _restart_answer(answer: Message) -> Message:
    if "successor" in answer or answer.keys() >= {"error", "code"}:
        return answer
    raise ValueError("neither a successor nor an error")


def _ask(request: str, understand: Callable[[Message], T]) -> T | None:
    found = address.find(TIMEOUT)
    if not found.connection:
        _explain_absence(found)
        return None
    with found.connection as connection:
        try:
            line = _exchange(connection, request)
        except TimeoutError:
            raise CsumfixError(
                f"csumfix runs, but does not answer ({address.owner(connection)}): "
                "it was stopped or hangs: wake it with 'kill -CONT', or end it with 'kill -9'",
                Exit.BROKEN,
            ) from None
        except OSError:
            return None
        try:
            return understand(printable_data(decode(line))) if line else None
        except ValueError:
            raise _not_understood(address.owner(connection)) from None


def _exchange(connection: socket.socket, request: str) -> bytes:
    """Send a request; return the line that answers it, empty if the other end hung up."""
    connection.sendall(encode({"request": request}))
    with connection.makefile("rb") as stream:
        return stream.readline(MAX_LINE)


def _explain_absence(found: address.Occupant) -> None:
    """Raise if something other than the service is at its addresses."""
    if found.stranger:
        raise CsumfixError(
            f"{found.stranger} has the name of csumfix's socket, and is not believed: it is "
            "neither root nor csumfix's user: find out what it is and stop it, then start csumfix",
            Exit.IN_USE,
        )
    if found.busy:
        raise CsumfixError(
            "csumfix does not answer, because too many clients wait for it: try again, as root",
            Exit.BROKEN,
        )


def _not_understood(owner: address.Owner) -> CsumfixError:
    return CsumfixError(
        f"{owner} has the name of csumfix's socket, but does not speak like csumfix: "
        "find out what it is, and stop it",
        Exit.IN_USE,
    )


async def connect() -> Peer | None:
    """Return a connection to the service in this network namespace; None if none runs."""
    found = await asyncio.to_thread(address.find, TIMEOUT)
    if not found.connection:
        return None
    try:
        streams = await asyncio.open_unix_connection(sock=found.connection, limit=MAX_TAKE_OVER)
        return Peer(*streams)
    except OSError:
        return None
