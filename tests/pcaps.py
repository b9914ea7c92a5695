"""Capture files, built byte by byte, so that the reader is not tested by what it may share."""

from __future__ import annotations

import struct
from collections.abc import Sequence

ETHERNET, RAW, COOKED, COOKED2, NULL = 1, 101, 113, 276, 0
INBOUND, OUTBOUND = 1, 2
MACS = bytes.fromhex("020000000002 020000000001")


def pcap(
    frames: Sequence[bytes], link: int = ETHERNET, order: str = "<", *, nanoseconds: bool = False
) -> bytes:
    """A pcap file; each frame whole."""
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 1 << 18, link)
    return head + b"".join(record(frame, order=order) for frame in frames)


def record(frame: bytes, length: int | None = None, order: str = "<") -> bytes:
    """A packet in a pcap file."""
    return struct.pack(f"{order}IIII", 1, 2, len(frame), length or len(frame)) + frame


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block of a pcapng file."""
    body += bytes(-len(body) % 4)
    size = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link: int, order: str = "<", snaplen: int = 0) -> bytes:
    return block(1, struct.pack(f"{order}HHI", link, 0, snaplen), order)


def enhanced(frame: bytes, number: int = 0, order: str = "<", direction: int = 0) -> bytes:
    """An enhanced packet block, with a comment in front of its flags."""
    head = struct.pack(f"{order}IIIII", number, 0, 0, len(frame), len(frame))
    options = struct.pack(f"{order}HH", 1, 5) + b"hello\0\0\0"
    options += struct.pack(f"{order}HHI", 2, 4, direction) + bytes(4)
    return block(6, head + frame + bytes(-len(frame) % 4) + options, order)


def old(frame: bytes, number: int = 0) -> bytes:
    """A packet block, which the enhanced one has replaced."""
    head = struct.pack("<HHIIII", number, 0, 0, 0, len(frame), len(frame))
    return block(2, head + frame)


def simple(frame: bytes, length: int) -> bytes:
    return block(3, struct.pack("<I", length) + frame)


def ethernet(ip: bytes, *tags: int) -> bytes:
    """A frame with VLAN tags of these EtherTypes."""
    kind = b"\x86\xdd" if ip[0] >> 4 == 6 else b"\x08\x00"
    return MACS + b"".join(struct.pack("!HH", tag, 7) for tag in tags) + kind + ip


def cooked(ip: bytes, packet_type: int) -> bytes:
    return struct.pack("!HHH8s", packet_type, 1, 6, bytes(8)) + ethernet(ip)[12:]


def cooked2(ip: bytes, packet_type: int) -> bytes:
    kind = ethernet(ip)[12:14]
    return kind + struct.pack("!HIHBB8s", 0, 1, 1, packet_type, 6, bytes(8)) + ip
