"""The egress tap: judges a sample of the tunnel packets that leave this host.

Theory of operation
-------------------
An open packet socket costs the sender about 1 us per packet of the device, even for packets that
the filter rejects, because the kernel clones each packet before it runs the filter
(net/core/dev.c: dev_queue_xmit_nit()). So a socket stays open only for one look: until SAMPLE
packets have come, or for LOOK seconds if the device is busy with other packets. Then it is closed
for the pause. With little traffic the tap sees every tunnel packet. At full rate it sees a few per
hundred thousand.

One thread does this for all devices, because closing a packet socket blocks (packet_release()
calls synchronize_net()). The rest of the program reads the result that the thread last published.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from csumfix.core import Inspection, Policy, inspect
from csumfix.evidence.departures import Departure, judge
from csumfix.evidence.tapsocket import Direction, Packet, TapSocket
from csumfix.host import underlays
from csumfix.protocols import Protocols

log = logging.getLogger("csumfix")

SAMPLE = 50
"""Packets per look at a device."""

LOOK = 0.1
"""Longest look at a busy device, in seconds."""

BUSY = 1000
"""A device with more packets per second, of any kind, is busy."""

REST = 1.0
"""Seconds between checks whether a quiet device has become busy, or a missing one is back."""

AWAY = {errno.ENODEV, errno.ENXIO, errno.ENETDOWN}
"""Errors of a device that is gone or down, and thus sends nothing."""

AFTER_ERROR = 60.0
"""Seconds without a look after an error that nobody foresaw."""

DEVICES = Path("/proc/thread-self/net/dev")
TX_PACKETS = 9  # column after the colon


@dataclass(frozen=True)
class PortTraffic:
    """The packets to one port that the tap has seen since it was created.

    departures: packets by state of their checksum.
    wrong_at: when the last wrong one left, in seconds of CLOCK_MONOTONIC.
    wrong: a description of that packet.
    """

    departures: Mapping[Departure, int] = field(default_factory=dict)
    wrong_at: float | None = None
    wrong: str = ""


@dataclass(frozen=True)
class Traffic:
    """The packets that the tap has seen, by port.

    fault: why it cannot see the packets of a device; None if it can, or is turned off.
    """

    ports: Mapping[int, PortTraffic] = field(default_factory=dict)
    fault: str | None = None


class _Look:
    """One open socket, and when to check it again."""

    def __init__(self, index: int, ports: Collection[int]) -> None:
        self.device = underlays.name(index)
        self.socket = TapSocket(index, ports, Direction.OUT)
        self.taken = 0
        self._began, self._sent = time.monotonic(), tx_packets(self.device)
        self.due = self._began + LOOK

    def is_too_costly(self, now: float) -> bool:
        """Tell whether the device is busy, so that the look should end; sets the next check."""
        sent = tx_packets(self.device)
        busy = sent - self._sent > BUSY * (now - self._began)
        self._began, self._sent, self.due = now, sent, now + REST
        return busy


class Tap:
    """Watches a set of devices in its own thread.

    pause: seconds between two looks at a device; 0 turns the tap off.
    on_wrong: called in the thread when a packet leaves wrong.
    """

    def __init__(self, pause: float, on_wrong: Callable[[], None]) -> None:
        self.pause = pause
        self._on_wrong = on_wrong
        self._traffic = Traffic()
        self._devices: frozenset[int] = frozenset()
        self._ports: Protocols = {}
        self._policy = Policy()
        self._looks: dict[int, _Look] = {}
        self._closed_until: dict[int, float] = {}
        self._faults: dict[int, str] = {}
        self._changed, self._stopping = True, False
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; does nothing if it has stopped."""
        self._stopping = True
        self._wake_up()
        if self._thread.ident:
            self._thread.join()
        self._wake.close()
        self._woken.close()

    def watch(self, devices: frozenset[int], ports: Protocols, pause: float) -> None:
        """Watch these devices, given by number, for packets to these ports from now on."""
        if (devices, ports, pause) == (self._devices, self._ports, self.pause):
            return
        self._devices, self._ports, self.pause = devices, dict(ports), pause
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
                try:
                    self._adjust()
                    self._wait()
                except Exception as error:  # pods choose what is read here
                    self._fail(error)
        finally:
            for index in list(self._looks):
                self._close(index)

    def _fail(self, error: Exception) -> None:
        """Note an error that nobody foresaw, and look again later: it must not end the tap."""
        fault = f"a bug in csumfix: {error!r}"
        log.error("%s: please report it", fault, exc_info=error, extra={"event": "bug"})
        later = time.monotonic() + AFTER_ERROR
        for index in list(self._looks):
            self._close(index)
        self._closed_until = dict.fromkeys(self._devices, later)
        self._faults = dict.fromkeys(self._devices, fault)
        self._tell_fault()

    def _adjust(self) -> None:
        """Open sockets that are due, and close all of them after a change."""
        if self._changed:
            self._changed = False
            self._policy = Policy.of(self._ports)
            for index in list(self._looks):
                self._close(index)
            self._closed_until = {}
            self._faults = {}
            self._tell_fault()
        if not self.pause or not self._ports:
            return
        now = time.monotonic()
        for index in self._devices - self._looks.keys():
            if self._closed_until.get(index, 0) <= now:
                self._open(index)

    def _open(self, index: int) -> None:
        try:
            self._looks[index] = _Look(index, self._ports.keys())
        except OSError as error:
            self._closed_until[index] = time.monotonic() + REST
            if error.errno not in AWAY:
                self._faults[index] = reason(error)
        else:
            self._faults.pop(index, None)
        self._tell_fault()

    def _tell_fault(self) -> None:
        fault = next(iter(self._faults.values()), None)
        if fault == self._traffic.fault:
            return
        self._traffic = replace(self._traffic, fault=fault)
        if fault:
            log.warning(
                "the egress tap cannot see what leaves, so the lanes stay as they are: %s",
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
        self._end_costly_looks()

    def _timeout(self) -> float | None:
        """Return the milliseconds until the next socket is due; None if none is."""
        if not self.pause or not self._ports:
            return None
        times = [look.due for look in self._looks.values()]
        times += [at for index, at in self._closed_until.items() if index not in self._looks]
        if not times:
            return None
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1

    def _take(self, index: int) -> None:
        """Judge the waiting packets, and end the look after SAMPLE of them."""
        look = self._looks[index]
        try:
            while look.taken < SAMPLE and (packet := look.socket.read()):
                look.taken += 1
                self._judge(packet, look.device)
        except OSError:  # the device went down, or away
            look.taken = SAMPLE
        if look.taken >= SAMPLE:
            self._pause(index)

    def _end_costly_looks(self) -> None:
        now = time.monotonic()
        for index, look in list(self._looks.items()):
            if look.due <= now and look.is_too_costly(now):
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


def reason(error: OSError) -> str:
    """Say why a packet socket cannot be opened."""
    if isinstance(error, PermissionError):
        return "no permission to open packet sockets (CAP_NET_RAW)"
    return f"cannot open packet sockets: {error.strerror}"


def describe(seen: Inspection, device: str) -> str:
    """Describe a packet that leaves wrong."""
    return (
        f"a packet from port {seen.source} to {seen.dest}, VNI {seen.vni}, left {device} "
        f"with its outer checksum off by {seen.difference}"
    )


def tx_packets(device: str) -> int:
    """Return the number of packets that a device has sent; 0 if it is gone."""
    try:
        lines = DEVICES.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, columns = line.rpartition(":")
        if name.strip() == device:
            return int(columns.split()[TX_PACKETS])
    return 0
