"""A packet socket that sees the tunnel packets that leave or reach one device.

The kernel passes a copy of each packet that leaves to the socket, after all NAT and after it has
computed in software the checksums that the device does not offload (net/core/dev.c:
validate_xmit_skb() runs before dev_queue_xmit_nit()). The packet itself is not touched.
"""

from __future__ import annotations

import ctypes
import enum
import os
import socket
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass

SOL_PACKET = 263  # linux/socket.h
PACKET_STATISTICS, PACKET_AUXDATA = 6, 8  # linux/if_packet.h
STATISTICS = struct.Struct("II")  # struct tpacket_stats: packets seen, packets dropped
AUXDATA = struct.Struct("IIIHHHH")  # struct tpacket_auxdata; the first member is the status
LINK_ADDRESS = struct.Struct("HHiHBB8x")  # struct sockaddr_ll: family, protocol, device
CHECKSUM_NOT_READY = 1 << 3  # TP_STATUS_CSUMNOTREADY
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33  # asm-generic/socket.h
ETH_P_ALL = 0x0003

LIBC = ctypes.CDLL(None, use_errno=True)

LONGEST = 1 << 16
"""Bytes read of a packet. Longer ones (BIG TCP) are truncated."""

PORTS_IN_FILTER = 200
"""A jump in a classic BPF program skips at most 255 instructions (linux/filter.h)."""


class Direction(enum.Enum):
    """The packets of a device to see."""

    OUT = enum.auto()
    IN = enum.auto()


@dataclass(frozen=True)
class Packet:
    """A packet from its IP header on.

    data: its bytes; valid until the next packet is read.
    complete: whether the kernel considers its checksums computed. If not, the device or the
        software that segments a GSO packet computes them.
    """

    data: memoryview
    complete: bool


class TapSocket:
    """A packet socket on one device, with a filter for tunnel ports. Needs CAP_NET_RAW."""

    def __init__(
        self,
        device: int,
        ports: Collection[int],
        direction: Direction,
        numbers: range | None = None,
    ) -> None:
        """Open it on the device with this number; raises OSError if that fails.

        numbers: see only packets of probes with these numbers; None for all packets.
        """
        self._buffer = memoryview(bytearray(LONGEST))
        # With protocol 0 it receives nothing until the filter is in place.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            attach(self._socket, program(ports, direction, numbers))
            bind(self._socket, device)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, which becomes readable when there is a packet."""
        return self._socket.fileno()

    def read(self) -> Packet | None:
        """Return the next packet or None; raises OSError if the device went down."""
        try:
            length, ancillary, _, _ = self._socket.recvmsg_into(
                [self._buffer], socket.CMSG_SPACE(AUXDATA.size)
            )
        except BlockingIOError:
            return None
        return Packet(self._buffer[:length], not _is_not_ready(ancillary))

    def enlarge(self, size: int) -> None:
        """Set the receive buffer to this many bytes, or to the limit without CAP_NET_ADMIN."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def dropped(self) -> int:
        """Return the number of packets lost for a full buffer since the last call."""
        raw = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size)
        return int(STATISTICS.unpack(raw)[1])

    def close(self) -> None:
        """Close it. This can take milliseconds: the kernel calls synchronize_net()."""
        self._socket.close()


def bind(sock: socket.socket, device: int) -> None:
    """Bind to a device by its number; socket.bind() accepts only names, and only in UTF-8."""
    address = LINK_ADDRESS.pack(socket.AF_PACKET, socket.htons(ETH_P_ALL), device, 0, 0, 0)
    if LIBC.bind(sock.fileno(), address, len(address)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _is_not_ready(ancillary: list[tuple[int, int, bytes]]) -> bool:
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_PACKET, PACKET_AUXDATA) and len(data) >= AUXDATA.size:
            return bool(AUXDATA.unpack_from(data)[0] & CHECKSUM_NOT_READY)
    return False


# ------------------------------------------------------------------------------ the filter

INSTRUCTION = struct.Struct("HBBI")  # struct sock_filter: code, jump if true, if false, k
LOAD_BYTE, LOAD_HALF, LOAD_HALF_X = 0x30, 0x28, 0x48  # linux/bpf_common.h: LD|B|ABS and so on
LOAD_X, LOAD_X_HEADER_LENGTH = 0x01, 0xB1  # LDX|IMM; LDX|B|MSH: 4 * (packet[k] & 0xf)
SHIFT_RIGHT, JUMP, JUMP_EQUAL, JUMP_SET, RETURN = 0x74, 0x05, 0x15, 0x45, 0x06
JUMP_GREATER, JUMP_GREATER_EQUAL = 0x25, 0x35
PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
PACKET_OUTGOING = 4
UDP = 17
IPV4_FRAGMENT = 0x3FFF  # more fragments follow, or it is not the first

Instruction = tuple[int, int, int, int]

ACCEPT: Instruction = (RETURN, 0, 0, 0xFFFFFFFF)

INNERS = tuple(8 + 8 + options + 14 for options in (0, 8))
"""Bytes of the headers between the outer IP header and the inner one. OVN has 8 bytes of options
in each Geneve packet."""

INNER_NUMBERS = (20, 22, 24, 40, 42, 44)
"""Where in an inner packet the number of a probe may be: a TCP port or an ICMP identifier, behind
an IPv4 header without options, which comes first because it may be the shorter packet, or IPv6."""


def program(
    ports: Collection[int], direction: Direction, numbers: range | None = None
) -> list[Instruction]:
    """Return a filter for UDP packets to these ports, in one direction; any port if none.

    numbers: let only packets pass whose inner packet may be of a probe with such a number.
    """
    wanted = sorted(ports) if len(ports) <= PORTS_IN_FILTER else []
    outgoing = (1, 0) if direction is Direction.OUT else (0, 1)
    return [
        (LOAD_BYTE, 0, 0, PACKET_TYPE),
        (JUMP_EQUAL, *outgoing, PACKET_OUTGOING),
        (RETURN, 0, 0, 0),
        (LOAD_BYTE, 0, 0, 0),
        (SHIFT_RIGHT, 0, 0, 4),
        (JUMP_EQUAL, 0, 7, 4),
        (LOAD_BYTE, 0, 0, 9),
        (JUMP_EQUAL, 0, 4, UDP),
        (LOAD_HALF, 0, 0, 6),
        (JUMP_SET, 2, 0, IPV4_FRAGMENT),
        (LOAD_X_HEADER_LENGTH, 0, 0, 0),
        (JUMP, 0, 0, 6),
        (RETURN, 0, 0, 0),
        (JUMP_EQUAL, 0, 3, 6),
        (LOAD_BYTE, 0, 0, 6),
        (JUMP_EQUAL, 0, 1, UDP),
        (JUMP, 0, 0, 3),
        (RETURN, 0, 0, 0),
        (LOAD_HALF_X, 0, 0, 2),  # IPv4: destination port behind the header
        (JUMP, 0, 0, 2),
        (LOAD_X, 0, 0, 40),  # IPv6
        (LOAD_HALF_X, 0, 0, 2),
        *_any_of(wanted),
        *(
            number_in(numbers, [inner + at for inner in INNERS for at in INNER_NUMBERS])
            if numbers
            else [ACCEPT]
        ),
    ]


def _any_of(ports: list[int]) -> list[Instruction]:
    """Go on behind these instructions if the port is one of these, or if there are none."""
    tests = [(JUMP_EQUAL, len(ports) - at, 0, port) for at, port in enumerate(ports)]
    return [*tests, (RETURN, 0, 0, 0)] if ports else []


def number_in(numbers: range, offsets: Sequence[int]) -> list[Instruction]:
    """Accept a packet with such a number at one of these offsets behind what register X says."""
    size = 3 * len(offsets)
    tests = []
    for at, offset in enumerate(offsets):
        left = size - 3 * at - 3
        tests += [
            (LOAD_HALF_X, 0, 0, offset),
            (JUMP_GREATER_EQUAL, 0, 1, numbers.start),
            (JUMP_GREATER, 0, left + 1, numbers.stop - 1),
        ]
    return [*tests, (RETURN, 0, 0, 0), ACCEPT]


def answers_in(numbers: range) -> list[Instruction]:
    """Return a filter for inner packets that may answer a probe, from their IP header on."""
    return [
        (LOAD_BYTE, 0, 0, 0),
        (SHIFT_RIGHT, 0, 0, 4),
        (JUMP_EQUAL, 0, 2, 4),
        (LOAD_X_HEADER_LENGTH, 0, 0, 0),
        (JUMP, 0, 0, 1),
        (LOAD_X, 0, 0, 40),
        *number_in(numbers, (0, 4)),
    ]


def attach(sock: socket.socket, instructions: list[Instruction]) -> None:
    """Give a socket a filter."""
    code = b"".join(INSTRUCTION.pack(*one) for one in instructions)
    memory = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: number of instructions, pointer to them.
    pointer = struct.pack("HP", len(instructions), ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
