"""The egress tap: looks at some of the tunnel packets that leave, and judges them.

Theory of operation
-------------------
A packet socket that is open costs the sender about 1 us for each packet of the device, whether or
not the filter lets it through, because the kernel clones the packet before it asks the filter
(net/core/dev.c: dev_queue_xmit_nit()). So a socket is open for a look only: until SAMPLE packets
have come or, if the device is busy with other packets, for LOOK seconds. Then it is closed for the
length of the pause. While there is little traffic the tap sees every tunnel packet; at full rate
it sees a few in a hundred thousand.

One thread does this for all devices, because closing a packet socket waits for the kernel. The
rest of the program reads what the thread last published.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from csumfix.core import Inspection, Policy, inspect
from csumfix.evidence.departures import Departure, judge
from csumfix.evidence.tapsocket import Direction, Packet, TapSocket
from csumfix.host import underlays

log = logging.getLogger("csumfix")

SAMPLE = 50
"""Packets of one look at a device."""

LOOK = 0.1
"""Seconds of a look at a busy device, however few tunnel packets it sends."""

BUSY = 1000
"""Packets per second of all kinds that make a device busy."""

REST = 1.0
"""Seconds between two checks whether a quiet device has become busy, or has come back."""

DEVICES = Path("/proc/thread-self/net/dev")
TX_PACKETS = 9  # column behind the colon


@dataclass(frozen=True)
class PortTraffic:
    """What the tap has seen of one port since it was made.

    departures: packets by what they were.
    wrong_at: when the last wrong one left, in seconds of CLOCK_MONOTONIC.
    wrong: that packet, in words.
    """

    departures: Mapping[Departure, int] = field(default_factory=dict)
    wrong_at: float | None = None
    wrong: str = ""


@dataclass(frozen=True)
class Traffic:
    """What the tap has seen, by port.

    fault: why it cannot see anything; None if it can.
    """

    ports: Mapping[int, PortTraffic] = field(default_factory=dict)
    fault: str | None = None


class _Look:
    """One open socket, and when it must be looked after again."""

    def __init__(self, index: int, ports: frozenset[int]) -> None:
        self.device = underlays.name(index)
        self.socket = TapSocket(index, ports, Direction.OUT)
        self.taken = 0
        self._began, self._sent = time.monotonic(), tx_packets(self.device)
        self.due = self._began + LOOK

    def is_too_dear(self, now: float) -> bool:
        """Tell whether the device sends so much that the look should end; sets the next due."""
        sent = tx_packets(self.device)
        busy = sent - self._sent > BUSY * (now - self._began)
        self._began, self._sent, self.due = now, sent, now + REST
        return busy


class Tap:
    """Watches the devices it is told to, in a thread of its own.

    pause: seconds between two looks at a device; 0 turns the tap off.
    on_wrong: called in the thread when a packet leaves wrong.
    """

    def __init__(self, pause: float, on_wrong: Callable[[], None]) -> None:
        self.pause = pause
        self._on_wrong = on_wrong
        self._traffic = Traffic()
        self._devices: frozenset[int] = frozenset()
        self._ports: frozenset[int] = frozenset()
        self._policy = Policy()
        self._looks: dict[int, _Look] = {}
        self._closed_until: dict[int, float] = {}
        self._changed, self._stopping = True, False
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; nothing happens if that has been done."""
        self._stopping = True
        self._wake_up()
        if self._thread.ident:
            self._thread.join()
        self._wake.close()
        self._woken.close()

    def watch(self, devices: frozenset[int], ports: frozenset[int], pause: float) -> None:
        """Watch these devices, by their numbers, for packets to these ports from now on."""
        if (devices, ports, pause) == (self._devices, self._ports, self.pause):
            return
        self._devices, self._ports, self.pause = devices, ports, pause
        self._changed = True
        self._wake_up()

    def traffic(self) -> Traffic:
        """Return what has been seen so far."""
        return self._traffic

    def _wake_up(self) -> None:
        with suppress(OSError):
            self._wake.send(b"x")

    # In the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._adjust()
                self._wait()
        finally:
            for index in list(self._looks):
                self._close(index)

    def _adjust(self) -> None:
        """Open what is due, and close what is not wanted any more."""
        if self._changed:
            self._changed = False
            self._policy = Policy(tuple(sorted(self._ports)))
            for index in list(self._looks):
                self._close(index)
            self._closed_until = {}
        if not self.pause or not self._ports:
            return
        now = time.monotonic()
        for index in self._devices - self._looks.keys():
            if self._closed_until.get(index, 0) <= now:
                self._open(index)

    def _open(self, index: int) -> None:
        try:
            self._looks[index] = _Look(index, self._ports)
        except OSError as error:
            self._closed_until[index] = time.monotonic() + REST
            if isinstance(error, PermissionError):
                self._set_fault("no permission to open packet sockets (CAP_NET_RAW)")
        else:
            self._set_fault(None)

    def _set_fault(self, fault: str | None) -> None:
        if fault == self._traffic.fault:
            return
        self._traffic = replace(self._traffic, fault=fault)
        if fault:
            log.warning(
                "the egress tap sees nothing, so the lanes stay as they are: %s",
                fault,
                extra={"event": "tap_blind"},
            )

    def _close(self, index: int) -> None:
        self._looks.pop(index).socket.close()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        by_descriptor = {look.socket.fileno(): index for index, look in self._looks.items()}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(self._timeout()):
            if descriptor in by_descriptor:
                self._take(by_descriptor[descriptor])
            else:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
        self._end_dear_looks()

    def _timeout(self) -> float | None:
        """Return the milliseconds until something is due; None if nothing is."""
        if not self.pause or not self._ports:
            return None
        times = [look.due for look in self._looks.values()]
        times += [at for index, at in self._closed_until.items() if index not in self._looks]
        if not times:
            return None
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1

    def _take(self, index: int) -> None:
        """Judge the packets that are there, and end the look if they are enough."""
        look = self._looks[index]
        try:
            while look.taken < SAMPLE and (packet := look.socket.read()):
                look.taken += 1
                self._judge(packet, look.device)
        except OSError:  # the device went down, or away
            look.taken = SAMPLE
        if look.taken >= SAMPLE:
            self._pause(index)

    def _end_dear_looks(self) -> None:
        now = time.monotonic()
        for index, look in list(self._looks.items()):
            if look.due <= now and look.is_too_dear(now):
                self._pause(index)
            elif look.due <= now:
                look.taken = 0

    def _pause(self, index: int) -> None:
        self._close(index)
        self._closed_until[index] = time.monotonic() + self.pause

    def _judge(self, packet: Packet, device: str) -> None:
        seen = inspect(bytes(packet.data), self._policy)
        departure = judge(seen, complete=packet.complete)
        port = seen.dest if seen.dest in self._ports else 0
        before = self._traffic.ports.get(port, PortTraffic())
        counts = Counter(before.departures)
        counts[departure] += 1
        after = replace(before, departures=dict(counts))
        if departure is Departure.WRONG:
            after = replace(after, wrong_at=time.monotonic(), wrong=describe(seen, device))
        self._traffic = replace(self._traffic, ports={**self._traffic.ports, port: after})
        if departure is Departure.WRONG:
            self._on_wrong()


def describe(seen: Inspection, device: str) -> str:
    """Say what is wrong with a packet that leaves wrong."""
    return (
        f"a packet from port {seen.source} to {seen.dest}, VNI {seen.vni}, left {device} "
        f"with its outer checksum off by {seen.difference}"
    )


def tx_packets(device: str) -> int:
    """Return how many packets a device has sent; 0 if it has gone."""
    try:
        lines = DEVICES.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, columns = line.rpartition(":")
        if name.strip() == device:
            return int(columns.split()[TX_PACKETS])
    return 0
