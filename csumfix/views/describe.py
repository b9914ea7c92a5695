"""What ``csumfix trace`` says about a packet: lines for people, a capture for Wireshark."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import scapy.layers.dns  # noqa: F401 - or DNS would not be decoded
from scapy.data import DLT_RAW
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter

from csumfix.core import Inspection, Outer, Policy, Repair, Status, inspect, repair
from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.captures import comparison, diagnose
from csumfix.host.tunnels import Tunnel

WIDTH = 98  # of a decoded packet: what terminals show, less the indentation
HEADERS = 8 + 8  # UDP and VXLAN, in front of the inner frame


@dataclass(frozen=True)
class Traced:
    """One packet: as it came, and what was done about it.

    seconds: since the epoch.
    """

    seconds: float
    before: bytes
    seen: Inspection
    repair: Repair

    def text(self, tunnels: Sequence[Tunnel]) -> str:
        """Return a block of lines for people; the last one is the inner packet."""
        seconds, fraction = divmod(self.seconds, 1)
        clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{int(fraction * 1e6):06}"
        head = f"{clock} {_where(self.seen, tunnels)}{diagnose(self.seen)}: {self.outcome()}"
        return "\n  ".join([head, *self._outer(), decoded(self.before, self.seen)]) + "\n"

    def outcome(self) -> str:
        """Say what became of the outer checksum."""
        if not self.repair.replaced:
            return f"left alone ({self.repair.reason})"
        after = inspect(self.repair.packet).found
        return f"repaired {self.seen.found:#06x} -> {after:#06x} ({self.repair.reason})"

    def _outer(self) -> list[str]:
        """Return the lines between the first and the last."""
        seen = self.seen
        if seen.status is not Status.OK:
            return []
        source, dest = (
            f"{a}:{p}" for a, p in zip(self._addresses(), (seen.source, seen.dest), strict=True)
        )
        check = comparison(seen) if seen.outer is Outer.WRONG else f"outer {seen.found:#06x}"
        inner = f"inner {seen.inner.name.lower()}"
        return [f"{source} > {dest}", f"{check} {inner}, {len(self.before)} bytes"]

    def _addresses(self) -> tuple[str, str]:
        """Return the outer addresses as they are written in front of a port."""
        if self.before[0] >> 4 == 4:  # noqa: PLR2004 - IP version
            return socket.inet_ntoa(self.before[12:16]), socket.inet_ntoa(self.before[16:20])
        source, dest = (
            socket.inet_ntop(socket.AF_INET6, self.before[at : at + 16]) for at in (8, 24)
        )
        return f"[{source}]", f"[{dest}]"


def examine(seconds: float, packet: bytes, policy: Policy) -> Traced:
    """Find out again what the core thought of a packet, which depends on nothing else."""
    return Traced(seconds, packet, inspect(packet, policy), repair(packet, policy))


def _where(seen: Inspection, tunnels: Sequence[Tunnel]) -> str:
    """Name the device and the VNI, or the port if no device shows it."""
    if seen.status is not Status.OK:
        return ""
    names = (t.name for t in tunnels if t.port == seen.dest and (t.metadata or t.vni == seen.vni))
    return f"{next(names, f'port {seen.dest}')} VNI {seen.vni} "


def decoded(packet: bytes, seen: Inspection) -> str:
    """Return scapy's line about the inner packet, or the outer one if there is none."""
    try:
        layer: Packet = _ip(packet)
        if seen.status is Status.OK:
            layer = Ether(layer[UDP].original[HEADERS:])
        line = _summary(layer)
    except Exception as error:  # pods choose these bytes: no dissector's bug may end the trace
        line = f"not decoded: {error!r}"
    # Nor may they steer the terminal.
    return re.sub("[^ -~]", "?", line)[:WIDTH]


def _summary(packet: Packet) -> str:
    """Return scapy's line, with the addresses that it leaves out if it knows what follows them."""
    line = packet.summary()
    for layer in filter(None, (packet.getlayer(UDP), packet.getlayer(TCP))):
        line = line.replace(f" {layer.name} /", f" {layer.mysummary()} /", 1)
    return line


def _ip(packet: bytes) -> Packet:
    return IPv6(packet) if packet[0] >> 4 == 6 else IP(packet)  # noqa: PLR2004 - IP version


class Capture:
    """A pcapng file: each packet as it came, then, if it was repaired, as it went on."""

    def __init__(self, path: Path) -> None:
        try:
            self._writer = PcapNgWriter(str(path))
            self._writer.linktype = DLT_RAW
            self._writer.write_header(None)
            self.flush()
        except OSError as error:
            raise CsumfixError(
                f"{path} can not be written: {error.strerror}: name another file with --pcap",
                Exit.USAGE,
            ) from None

    def add(self, traced: Traced) -> None:
        """Write one packet."""
        words = diagnose(traced.seen)
        if traced.seen.outer is Outer.WRONG:
            words += f", {comparison(traced.seen)}"
        self._write(traced.seconds, traced.before, f"before: {words}: {traced.outcome()}")
        if traced.repair.replaced:
            self._write(traced.seconds, traced.repair.packet, f"after: {traced.repair.reason}")
        self.flush()

    def _write(self, seconds: float, data: bytes, comment: str) -> None:
        packet = Raw(data)
        packet.time = seconds
        packet.comments = [comment.encode()]
        self._writer.write_packet(packet)

    def flush(self) -> None:
        """Make what was written visible to others."""
        self._writer.flush()
