"""Reads the packets that arrive at devices, for a given time."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterator, Mapping

from csumfix.evidence.captures import Captured
from csumfix.evidence.tapsocket import LONGEST, Direction, TapSocket


class LiveSource:
    """Reads packet sockets until the time is over.

    frames: packets read so far.
    """

    def __init__(self, sockets: Mapping[str, TapSocket], seconds: float) -> None:
        self._sockets = {one.fileno(): one for one in sockets.values()}
        self._ends = time.monotonic() + seconds
        self.frames = 0

    def notes(self) -> list[str]:
        """Return what was missed. The sockets must still be open."""
        missed = sum(one.dropped() for one in self._sockets.values())
        return [f"{missed} more packets arrived faster than they could be read"] * bool(missed)

    def __iter__(self) -> Iterator[Captured]:
        poll = select.poll()
        for descriptor in self._sockets:
            poll.register(descriptor, select.POLLIN)
        while (left := self._ends - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                yield from self._waiting(self._sockets[descriptor])

    def _waiting(self, source: TapSocket) -> Iterator[Captured]:
        """Yield the packets that a socket holds, until the time is over."""
        with contextlib.suppress(OSError):  # the device went down; it may come back
            while time.monotonic() < self._ends and (packet := source.read()):
                self.frames += 1
                data = bytes(packet.data)
                # A packet that fills the buffer may have been longer.
                length = len(data) + (len(data) == LONGEST)
                yield Captured(self.frames, Direction.IN, data, length, packet.complete)
