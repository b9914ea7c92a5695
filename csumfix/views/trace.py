"""``csumfix trace``: shows the tunnel packets that leave this host.

It sees what the egress tap sees: copies of packets at the device, after all NAT. It runs with or
without the service. Only opening the packet sockets takes privileges. The code that decodes
packets runs without them, because pods choose the bytes. If the output is slow, packets are not
shown, but never delayed or lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import click

from csumfix.core import Policy, inspect
from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.departures import Departure, judge
from csumfix.evidence.tapsocket import Direction, Packet, TapSocket
from csumfix.host import sockets, tunnels, underlays
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import Protocols, named
from csumfix.text import listing
from csumfix.views import taps
from csumfix.views.describe import CaptureWriter, Traced

BAD = frozenset({Departure.WRONG, Departure.CORRUPT})
NOBODY_READS = {errno.EPIPE, errno.EIO}  # a pipe, a terminal
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class TraceOptions:
    """What ``csumfix trace`` was asked to do.

    count: number of packets to show; 0 for no limit.
    """

    bad_only: bool = False
    count: int = 0
    pcap: Path | None = None
    ports: Protocols = field(default_factory=dict)


def run(options: TraceOptions) -> None:
    """Trace the tunnels of the current network namespace in the foreground."""
    for number in ENDS:
        signal.signal(number, signal.default_int_handler)
    found = asyncio.run(tunnels.discover())
    by_number = {**named(sockets.hidden_ports(found)), **options.ports}
    ports = tunnels.protocols(found, by_number)
    devices = asyncio.run(underlays.find(found, named=bool(by_number)))
    if not ports or not devices:
        raise CsumfixError(
            "nothing to trace: this network namespace has no vxlan or geneve device with a "
            "route; name the tunnel's port with --port or --geneve-port, or enter another "
            "namespace with nsenter",
            Exit.NEGATIVE,
        )
    with taps.opened(devices, ports.keys(), Direction.OUT) as watched:
        capture = CaptureWriter(options.pcap) if options.pcap else None
        taps.become_nobody()
        logging.getLogger("scapy").setLevel(logging.CRITICAL)  # it warns about odd packets
        trace = Trace(options, ports, found, capture)
        _say(f"tracing port {listing(sorted(ports))} on {listing(watched)}; stop with Ctrl-C")
        with contextlib.suppress(KeyboardInterrupt):
            trace.follow(watched, sys.stdout)
        missed = sum(one.dropped() for one in watched.values())
    _say(trace.summary(missed))


class Trace:
    """Judges packets and shows the selected ones."""

    def __init__(
        self,
        options: TraceOptions,
        ports: Protocols,
        found: Sequence[Tunnel],
        capture: CaptureWriter | None,
    ) -> None:
        self.shown = 0
        self.seen: Counter[Departure] = Counter()
        self._options = options
        self._ports, self._policy = ports, Policy.of(ports)
        self._tunnels = found
        self._capture = capture

    def follow(self, sockets: dict[str, TapSocket], out: TextIO | None) -> None:
        """Show packets until the count is reached, or the reader of the output has gone."""
        if out is None:  # closed from the start
            return
        poll = select.poll()
        poll.register(out, 0)  # reports only that its reader has gone
        devices = {one.fileno(): name for name, one in sockets.items()}
        for descriptor in devices:
            poll.register(descriptor, select.POLLIN)
        while not self._is_complete:
            for descriptor, _ in poll.poll():
                if descriptor == out.fileno():
                    return
                name = devices[descriptor]
                if not self._read(sockets[name], name, out):
                    return

    def _read(self, source: TapSocket, device: str, out: TextIO) -> bool:
        """Show the waiting packets of one device; tell whether to go on."""
        with contextlib.suppress(OSError):  # the device went down; it may come back
            while not self._is_complete and (packet := source.read()):
                if not self._take(packet, device, out):
                    return False
        return True

    def _take(self, packet: Packet, device: str, out: TextIO) -> bool:
        data = bytes(packet.data)
        seen = inspect(data, self._policy)
        departure = judge(seen, complete=packet.complete)
        self.seen[departure] += 1
        if self._options.bad_only and departure not in BAD:
            return True
        protocol = self._ports.get(seen.dest, "vxlan")
        return self._show(Traced(time.time(), device, data, seen, departure, protocol), out)

    def _show(self, traced: Traced, out: TextIO) -> bool:
        """Show one packet; return False if the reader of the output has gone."""
        self.shown += 1
        try:
            if self._capture:
                self._capture.add(traced)
            out.write(traced.text(self._tunnels))
            out.flush()
        except OSError as error:
            if error.errno in NOBODY_READS:
                _discard(out)
                return False
            raise CsumfixError(
                f"cannot show more packets: {error.strerror}; "
                "check the output and the file of --pcap",
                Exit.BROKEN,
            ) from None
        return True

    @property
    def _is_complete(self) -> bool:
        return 0 < self._options.count <= self.shown

    def summary(self, missed: int) -> str:
        """Return a summary of the packets; missed: those not seen because the output was slow."""
        parts = [f"{number} {name}" for name, number in self.seen.most_common()]
        text = f"{self.seen.total()} packets left ({', '.join(parts) or 'none'})"
        text += f", {self.shown} shown"
        return f"{text}; {missed} more were missed because the output was slow" if missed else text


def _discard(out: TextIO) -> None:
    """Keep Python from writing to the closed output at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def _say(line: str) -> None:
    """Print a message for the operator, who may have closed the terminal."""
    with contextlib.suppress(OSError):
        click.echo(f"csumfix: {line}", err=True)
