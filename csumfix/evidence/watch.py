"""Watches, for a while, the tunnel packets that leave this host, whoever sends them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from typing import NamedTuple

from csumfix.core import Policy, inspect
from csumfix.evidence.captures import address_text, addresses
from csumfix.evidence.departures import Departure, judge
from csumfix.evidence.outcomes import KindOutcome
from csumfix.evidence.tapsocket import Direction, TapSocket
from csumfix.protocols import Protocols

ENOUGH = 20
"""Wrong packets after which watching can end."""

STEP = 0.05  # seconds
READ = 256  # packets of a device that are read in one step


class Stream(NamedTuple):
    """Packets from one outer address to another, to one port."""

    source: str
    dest: str
    port: int


class Watched:
    """The packets that were seen.

    streams: how the packets of each left.
    """

    def __init__(self) -> None:
        self.streams: dict[Stream, KindOutcome] = {}

    def wrong(self) -> dict[Stream, KindOutcome]:
        """Return the streams with packets that left wrong."""
        return {one: seen for one, seen in self.streams.items() if seen.left[Departure.WRONG]}

    @property
    def total(self) -> int:
        """How many packets were judged."""
        return sum(seen.left.total() for seen in self.streams.values())

    def add(self, data: bytes, complete: bool, policy: Policy) -> None:
        """Judge a packet."""
        seen = inspect(data, policy)
        departure = judge(seen, complete=complete)
        if departure is not Departure.NOT_JUDGED:
            source, dest = map(address_text, addresses(data))
            outcome = self.streams.setdefault(Stream(source, dest, seen.dest), KindOutcome())
            outcome.add_departed(seen, departure, (source, dest))


async def departures(devices: Collection[int], ports: Protocols, seconds: float) -> Watched:
    """Watch what leaves by these devices; raises OSError if that is not permitted."""
    found, policy = Watched(), Policy.of(ports)
    ends = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        taps = []
        for index in devices:
            tap = TapSocket(index, ports, Direction.OUT)
            stack.callback(tap.close)
            taps.append(tap)
        while time.monotonic() < ends:
            await asyncio.sleep(STEP)
            for tap in taps:
                _take(tap, found, policy)
            if sum(seen.left[Departure.WRONG] for seen in found.wrong().values()) >= ENOUGH:
                break
    return found


def _take(tap: TapSocket, found: Watched, policy: Policy) -> None:
    """Judge the waiting packets, or some of many."""
    with contextlib.suppress(OSError):  # the device went down; it may come back
        for _ in range(READ):
            packet = tap.read()
            if packet is None:
                break
            found.add(bytes(packet.data), packet.complete, policy)
