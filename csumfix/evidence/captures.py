"""``csumfix check``: reads a capture and tells which checksums are wrong, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from scapy.error import Scapy_Exception
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.utils import PcapReader

from csumfix.core import Inner, Inspection, Outer, Policy, Status, inspect
from csumfix.errors import CsumfixError, Exit

MEANINGS: dict[str, str] = {
    "right": "outer checksum right",
    "zero": "outer checksum 0: not computed, legal over IPv4",
    "partial": "not computed yet: captured on the sender before its NIC did; harmless",
    "rewritten": "WRONG over an intact inner packet: changed by NAT; csumfix repairs this",
    "wrong": "WRONG over an inner packet that has no checksum; csumfix repairs this",
    "corrupt": "WRONG, and so is the inner checksum: damaged, or an offload that never came",
    "unjudged": "not judged: fragments, cut short by the capture, or not VXLAN",
}
"""Every diagnosis, and what it means for an operator."""

WRONG = frozenset({"rewritten", "wrong", "corrupt"})

_HARMLESS = {
    Outer.RIGHT: "right",
    Outer.ZERO: "zero",
    Outer.PARTIAL: "partial",
    Outer.LCO: "partial",
}


@dataclass(frozen=True)
class Finding:
    """What is to be said about one packet of a capture; numbered from 1 as Wireshark does."""

    number: int
    diagnosis: str
    inspection: Inspection

    def line(self) -> str:
        """Return the finding for people; checksums in hexadecimal."""
        seen = self.inspection
        text = f"packet {self.number}: {self.diagnosis}"
        if seen.status is not Status.OK:
            return f"{text} ({seen.status.name.lower()})"
        text += f" port {seen.source} > {seen.dest} VNI {seen.vni}"
        if seen.outer is Outer.WRONG:
            text += f" {comparison(seen)}"
        return f"{text} inner {seen.inner.name.lower()}"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data; enumerations by name."""
        plain = self.inspection._asdict()
        plain |= {key: v.name.lower() for key, v in plain.items() if isinstance(v, Enum)}
        return {"number": self.number, "diagnosis": self.diagnosis, **plain}


def comparison(seen: Inspection) -> str:
    """Say what a wrong outer checksum is and what it should be; in hexadecimal."""
    return f"outer {seen.found:#06x} should be {seen.expected:#06x} (difference {seen.difference})"


def diagnose(seen: Inspection) -> str:
    """Name what is the matter with a packet; see MEANINGS."""
    if seen.status is not Status.OK:
        return "unjudged"
    if seen.outer is not Outer.WRONG:
        return _HARMLESS[seen.outer]
    return {Inner.RIGHT: "rewritten", Inner.UNPROVEN: "wrong"}.get(seen.inner, "corrupt")


def read(path: Path, ports: tuple[int, ...]) -> Iterator[Finding]:
    """Yield a finding for each UDP packet to one of these ports in a pcap or pcapng file."""
    try:
        with PcapReader(str(path)) as reader:
            for number, packet in enumerate(reader, start=1):
                seen = _inspect(packet, ports)
                if seen:
                    yield Finding(number, diagnose(seen), seen)
    except FileNotFoundError:
        raise CsumfixError(f"{path}: no such file", Exit.USAGE) from None
    except (OSError, EOFError, Scapy_Exception) as error:
        reason = getattr(error, "strerror", None) or error
        raise CsumfixError(
            f"{path} can not be read: {reason}: give a file written by 'tcpdump -w'", Exit.USAGE
        ) from None


def _inspect(packet: Any, ports: tuple[int, ...]) -> Inspection | None:
    """Judge a packet; None if it has nothing to do with these ports."""
    layer = packet.getlayer(IP) or packet.getlayer(IPv6)
    if layer is None:
        return None
    seen = inspect(bytes(layer.original), Policy(ports))
    to_us = layer.haslayer(UDP) and layer[UDP].dport in ports
    return seen if seen.status is Status.OK or to_us else None


def summary(findings: list[Finding]) -> Counter[str]:
    """Count the diagnoses."""
    return Counter(finding.diagnosis for finding in findings)
