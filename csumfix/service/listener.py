"""The listening end of the control socket: two addresses, and a limit to what strangers cost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from csumfix.errors import CsumfixError, Exit
from csumfix.service import address
from csumfix.service.pace import Pace

log = logging.getLogger("csumfix")

BACKLOG = 64

AT_ONCE = 32
"""Connections that are accepted in a row, before anything else has its turn."""

RETRY = 5.0
"""Seconds between two attempts to get an address that is missing."""

GLANCE = 0.2
"""Seconds to find out who has the name; the event loop waits meanwhile."""

RATE, BURST = 50, 25
"""Connections per second that are accepted at the abstract name, where anybody may connect."""

OUT_OF_DESCRIPTORS = 1.0
"""Seconds to wait when no connection can be accepted."""

OnConnection = Callable[[socket.socket], None]


class Acceptor:
    """Accepts the connections of one listening socket, at a bounded rate if it has a pace."""

    def __init__(
        self, listening: socket.socket, on_connection: OnConnection, pace: Pace | None = None
    ) -> None:
        self._socket = listening
        self._on_connection = on_connection
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(0, int)
        self._socket.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Stop listening; accepted connections stay."""
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _listen(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection = self._socket.accept()[0]
            except (BlockingIOError, ConnectionError):  # there is none, or it has gone
                return
            except OSError:  # too many open files
                self._rest(OUT_OF_DESCRIPTORS)
                return
            self._on_connection(connection)
            if self._pace and (pause := self._pace.take()):
                self._rest(pause)
                return

    def _rest(self, seconds: float) -> None:
        """Accept nothing for a while. New connections wait in the kernel and cost nothing."""
        self._loop.remove_reader(self._socket)
        self._timer = self._loop.call_later(seconds, self._listen)


class Listener:
    """Listens at the path and at the abstract name; gets either later if it cannot now.

    trouble: says in a line what is missing; None if nothing is.
    """

    def __init__(self, on_connection: OnConnection) -> None:
        self.trouble: str | None = None
        self._on_connection = on_connection
        self._public: Acceptor | None = None
        self._private: Acceptor | None = None
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(0, int)

    def open(self) -> None:
        """Take both addresses; raise CsumfixError if a service that is believed has the name."""
        if not self._take_name():
            found = address.find(GLANCE)
            if found.connection:
                with found.connection:
                    raise already_running(str(address.owner(found.connection)))
            who = found.stranger or "a process that does not answer"
            self.trouble = f"{who} has the name @csumfix, which is for csumfix"
            log.warning(
                "%s: continuing without it, and trying again",
                self.trouble,
                extra={"event": "name_taken"},
            )
        self._take_path()
        self._timer = self._loop.call_later(RETRY, self._look)

    def close(self) -> None:
        """Stop listening, and remove the file if it is still ours."""
        self._timer.cancel()
        for acceptor in filter(None, (self._public, self._private)):
            acceptor.close()
        self._public = self._private = None
        if self._path and self._holds_path():
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _look(self) -> None:
        """Get what is missing, and what somebody has removed."""
        self._timer = self._loop.call_later(RETRY, self._look)
        with contextlib.suppress(OSError):  # no descriptor to be had
            if not self._public and self._take_name():
                log.info("has the name @csumfix again", extra={"event": "name_free"})
                self.trouble = None
        if not self._holds_path():
            self._take_path()

    def _take_name(self) -> bool:
        try:
            listening = _bound(address.ABSTRACT)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        self._public = Acceptor(listening, self._on_connection, Pace(RATE, BURST))
        return True

    def _take_path(self) -> None:
        """Replace whatever is at the path: a socket of the dead, or of a predecessor."""
        if not address.prepare_directory():
            return
        self._path = address.path()
        temporary = self._path.with_suffix(f".{os.urandom(4).hex()}")
        try:
            listening = _bound(str(temporary))
            temporary.chmod(0o600)
            self._file = _identity(temporary)
            temporary.rename(self._path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            log.warning(
                "cannot listen at %s: %s", self._path, error, extra={"event": "no_control_socket"}
            )
            return
        if self._private:
            self._private.close()
        self._private = Acceptor(listening, self._on_connection)

    def _holds_path(self) -> bool:
        try:
            return self._path is not None and _identity(self._path) == self._file
        except OSError:
            return False


def already_running(who: str) -> CsumfixError:
    """Return the refusal of a second service."""
    return CsumfixError(
        f"csumfix already runs in this network namespace ({who}): "
        "one service repairs all its tunnels: "
        "stop that one first, replace it with --take-over, or see 'csumfix status'",
        Exit.IN_USE,
    )


def _bound(where: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(where)
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _identity(file: Path) -> tuple[int, int]:
    seen = os.lstat(file)
    return seen.st_dev, seen.st_ino
