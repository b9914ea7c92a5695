"""The display of ``csumfix trace``: a process of its own, which may be as slow as it likes.

Decoding a packet takes scapy about a millisecond, and whoever reads the output may stop reading
it. Neither may hold up a packet. So whoever answers the packets only puts copies of them into a
socket; if that is full, a packet is not shown, and counted. A thread would not do: Python lets it
keep the interpreter for 5 ms at a time, while packets wait.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from typing import TextIO

from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.host.tunnels import Tunnel
from csumfix.views.describe import Capture, examine

NOBODY = 65534

TIME = struct.Struct("d")  # in front of each packet, in seconds since the epoch
MESSAGE_BYTES = 1 << 16
PATIENCE = 5.0
"""Seconds that the display may take to show what it was given before the end."""

NOBODY_READS = {errno.EPIPE, errno.EIO}  # a pipe, a terminal


class Screen:
    """What happens in the display's process: packets are decoded, printed and saved."""

    def __init__(self, policy: Policy, tunnels: Sequence[Tunnel], capture: Capture | None) -> None:
        self._policy = policy
        self._tunnels = tunnels
        self._capture = capture

    def run(self, source: socket.socket, out: TextIO) -> None:
        """Show packets until there are no more, or nobody reads what is printed."""
        poll = select.poll()
        poll.register(source, select.POLLIN)
        poll.register(out, 0)  # wakes only when its reader has gone
        while out.fileno() not in dict(poll.poll()):
            message = source.recv(MESSAGE_BYTES)
            if not message or not self._show(message, out):
                return

    def _show(self, message: bytes, out: TextIO) -> bool:
        """Show one packet; tell whether anybody reads it."""
        (seconds,) = TIME.unpack_from(message)
        traced = examine(seconds, message[TIME.size :], self._policy)
        if self._capture:
            self._capture.add(traced)
        try:
            out.write(traced.text(self._tunnels))
            out.flush()
        except OSError as error:
            if error.errno not in NOBODY_READS:
                raise
            return False
        return True


class Display:
    """The packets' end of it.

    missed: packets that were not shown because the display was too slow.
    """

    def __init__(self, screen: Screen, foreign: Sequence[socket.socket]) -> None:
        """Start the process; foreign: sockets that must not live on in it."""
        self.missed = 0
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        arguments = (screen, theirs, (self._socket, *foreign))
        self._process = get_context("fork").Process(target=_main, args=arguments)
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        """Whether somebody reads."""
        return self._process.is_alive()

    def show(self, packet: bytes) -> bool:
        """Hand over a packet to be shown; never waits. Tell whether there was room."""
        try:
            self._socket.send(TIME.pack(time.time()) + packet)
        except OSError:  # no room, or no reader
            self.missed += 1
            return False
        return True

    def close(self) -> None:
        """Wait for what is still to be shown; raise if the display could not go on."""
        self._socket.close()
        self._process.join(PATIENCE)
        if self._process.is_alive():  # nobody reads, and nobody will
            self._process.kill()
            self._process.join()
        elif self._process.exitcode:
            raise CsumfixError(
                f"packets can not be shown any more: {_cause(self._process.exitcode)}: "
                "see to the output and to the file of --pcap",
                Exit.BROKEN,
            )


def _become_nobody() -> None:
    """Give up root: the bytes that scapy is about to decode are a pod's."""
    with contextlib.suppress(OSError):  # not root, or root of a user namespace without others
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _cause(exit_code: int) -> str:
    return os.strerror(exit_code) if exit_code > 0 else f"killed by signal {-exit_code}"


def _main(screen: Screen, source: socket.socket, foreign: Sequence[socket.socket]) -> None:
    """Be the display's process; its exit code is 0 or an errno."""
    for each in foreign:
        each.close()
    _become_nobody()
    logging.getLogger("scapy").setLevel(logging.CRITICAL)  # what it thinks of odd packets
    code = 0
    try:
        if sys.stdout:  # None if it was closed from the start
            screen.run(source, sys.stdout)
    except OSError as error:
        code = error.errno or errno.EIO
    # Not the usual way out, on which Python would once more write to an output without reader.
    os._exit(code)
