"""The output of ``csumfix trace``: lines for people, and a capture file for Wireshark."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import scapy.layers.dns  # noqa: F401 - decodes DNS
from scapy.config import conf
from scapy.data import DLT_RAW
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter

from csumfix.core import Inspection, Status
from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.captures import address_text, addresses
from csumfix.evidence.departures import Departure
from csumfix.evidence.segments import payload_offset
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import Protocol

WIDTH = 78  # columns of a decoded packet, which is indented by two

MEANINGS = {
    Departure.RIGHT: "right",
    Departure.ZERO: "not computed (0)",
    Departure.PARTIAL: "partial, the device computes it",
    Departure.WRONG: "WRONG",
    Departure.CORRUPT: "WRONG, and the inner packet is damaged",
    Departure.NOT_JUDGED: "not judged",
}

conf.l2types.register_layer2num(DLT_RAW, Raw)  # scapy before 2.8 asks for it as it writes


@dataclass(frozen=True)
class Traced:
    """One packet that left.

    seconds: since the epoch.
    device: by which it left.
    data: from its outer IP header on.
    """

    seconds: float
    device: str
    data: bytes
    seen: Inspection
    departure: Departure
    protocol: Protocol = "vxlan"

    def text(self, tunnels: Sequence[Tunnel]) -> str:
        """Return a block of lines; the last one is about the inner packet."""
        seconds, fraction = divmod(self.seconds, 1)
        clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{int(fraction * 1e6):06}"
        head = f"{clock} {_where(self.seen, tunnels)}{self.verdict()}"
        return (
            "\n  ".join([head, *self._outer(), decoded(self.data, self.seen, self.protocol)])
            + "\n"
        )

    def verdict(self) -> str:
        """Describe its outer checksum; the difference is decimal."""
        words = MEANINGS[self.departure]
        if self.departure is Departure.NOT_JUDGED:
            return f"{words} ({self.seen.status.name.lower()})"
        if self.departure in (Departure.WRONG, Departure.CORRUPT):
            return f"{words}: off by {self.seen.difference}"
        return words

    def _outer(self) -> list[str]:
        """Return the lines between the first and the last."""
        seen = self.seen
        if seen.status is not Status.OK:
            return []
        source, dest = (
            f"{a}:{p}" for a, p in zip(self._addresses(), (seen.source, seen.dest), strict=True)
        )
        check = f"outer {seen.found:#06x}"
        if seen.found and self.departure is not Departure.RIGHT:
            check += f", complete {seen.expected:#06x}"
        size = f"{len(self.data)} bytes by {self.device}"
        return [f"{source} > {dest}", f"{check}, inner {seen.inner.name.lower()}, {size}"]

    def _addresses(self) -> tuple[str, str]:
        """Return the outer addresses; those of IPv6 in brackets, as in front of a port."""
        source, dest = map(address_text, addresses(self.data))
        return (f"[{source}]", f"[{dest}]") if ":" in source else (source, dest)


def _where(seen: Inspection, tunnels: Sequence[Tunnel]) -> str:
    """Name the device and the VNI, or the port if no device has it."""
    if seen.status is not Status.OK:
        return ""
    names = (t.name for t in tunnels if t.port == seen.dest and (t.metadata or t.vni == seen.vni))
    return f"{next(names, f'port {seen.dest}')} VNI {seen.vni} "


def decoded(packet: bytes, seen: Inspection, protocol: Protocol) -> str:
    """Return scapy's summary of the inner packet, or of the outer one if there is none."""
    try:
        layer: Packet = _ip(packet)
        if seen.status is Status.OK:
            udp = layer[UDP].original
            layer = Ether(udp[payload_offset(udp, 0, protocol) :])
        line = _summary(layer)
    except Exception as error:  # pods choose these bytes; a dissector's bug must not end the trace
        line = f"not decoded: {error!r}"
    # They must not control the terminal either.
    return re.sub("[^ -~]", "?", line)[:WIDTH]


def _summary(packet: Packet) -> str:
    """Return scapy's summary; add the addresses, which it omits before layers that it knows."""
    line = packet.summary()
    for layer in filter(None, (packet.getlayer(UDP), packet.getlayer(TCP))):
        line = line.replace(f" {layer.name} /", f" {layer.mysummary()} /", 1)
    return line


def _ip(packet: bytes) -> Packet:
    return IPv6(packet) if packet[0] >> 4 == 6 else IP(packet)  # noqa: PLR2004 - IP version


class CaptureWriter:
    """A pcapng file of the packets that left, each with its verdict as a comment."""

    def __init__(self, path: Path) -> None:
        try:
            self._writer = PcapNgWriter(str(path))
            self._writer.linktype = DLT_RAW
            self._writer.write_header(None)
            self._writer.flush()
        except OSError as error:
            raise CsumfixError(
                f"{path} cannot be written: {error.strerror}; name another file with --pcap",
                Exit.USAGE,
            ) from None

    def add(self, traced: Traced) -> None:
        """Write one packet, and flush, so that readers see it at once."""
        packet = Raw(traced.data)
        packet.time = traced.seconds
        packet.comment = traced.verdict().encode()
        self._writer.write_packet(packet)
        self._writer.flush()
