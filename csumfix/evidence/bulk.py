"""Sends 1 MB over TCP, for NICs that ruin GSO packets only."""

from __future__ import annotations

import asyncio
import enum
import fcntl
import socket
import struct
import termios

SIZE = 1 << 20  # bytes
CONNECT, TRANSFER = 1.5, 4.0  # seconds
STEP = 0.05  # seconds

TCP_INFO_SIZE = 104
TOTAL_RETRANS = 100  # offset of tcpi_total_retrans in struct tcp_info, linux/tcp.h
MANY = 0.2
"""Part of the segments whose loss means that GSO packets are lost as a whole."""


class Bulk(enum.Enum):
    """How the transfer went."""

    NOT_TRIED = enum.auto()
    ARRIVED = enum.auto()
    STUCK = enum.auto()
    """Connected, but then most segments were lost."""
    NO_CONNECTION = enum.auto()
    CLOSED = enum.auto()
    """The other end closed the connection before it had it all."""


async def transfer(address: str, port: int) -> Bulk:
    """Send it to a port that reads, and wait until all is acknowledged."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT):
                await loop.sock_connect(sock, (address, port))
        except (OSError, TimeoutError):
            return Bulk.NO_CONNECTION
        try:
            async with asyncio.timeout(TRANSFER):
                await loop.sock_sendall(sock, bytes(SIZE))
                while _unacknowledged(sock):
                    await asyncio.sleep(STEP)
        except TimeoutError:
            return Bulk.STUCK
        except OSError:
            return Bulk.CLOSED
        return Bulk.STUCK if _is_lossy(sock) else Bulk.ARRIVED


def _unacknowledged(sock: socket.socket) -> int:
    """Return how many bytes were not acknowledged yet (SIOCOUTQ, tcp(7))."""
    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])


def _is_lossy(sock: socket.socket) -> bool:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    segment = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    (again,) = struct.unpack_from("I", info, TOTAL_RETRANS)
    return bool(again > MANY * SIZE / max(1, segment))
