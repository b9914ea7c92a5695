"""Opens the packet sockets of a command that watches devices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Collection, Iterator

from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.tapsocket import Direction, TapSocket
from csumfix.host import underlays
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import GENEVE_PORT

NOBODY = 65534

BUFFER = 16 << 20
"""Receive buffer of a packet socket, in bytes."""


@contextlib.contextmanager
def opened(
    devices: Collection[int], ports: Collection[int], direction: Direction
) -> Iterator[dict[str, TapSocket]]:
    """Open a socket on each device; yield them by the device's name."""
    with contextlib.ExitStack() as stack:
        sockets = {}
        for index in sorted(devices):
            one = _open(index, ports, direction)
            stack.callback(one.close)
            sockets[underlays.name(index)] = one
        yield sockets


def _open(index: int, ports: Collection[int], direction: Direction) -> TapSocket:
    try:
        one = TapSocket(index, ports, direction)
    except PermissionError:
        raise CsumfixError(
            "cannot see packets: CAP_NET_RAW is missing; run as root", Exit.PERMISSION
        ) from None
    except OSError as error:
        raise CsumfixError(
            f"cannot watch {underlays.name(index)}: {error.strerror}; "
            "check that the device exists and is up",
            Exit.KERNEL,
        ) from None
    one.enlarge(BUFFER)
    return one


@contextlib.contextmanager
def arrivals(
    device: str | None, ports: Collection[int], found: Collection[Tunnel]
) -> Iterator[dict[str, TapSocket]]:
    """Watch what arrives for these ports and for Geneve, and give up root.

    device: None for those that carry the tunnels that were found.
    """
    devices = _receiving(device, found)
    with opened(devices, {*ports, GENEVE_PORT}, Direction.IN) as sockets:
        become_nobody()
        yield sockets


def _receiving(device: str | None, found: Collection[Tunnel]) -> frozenset[int]:
    if device is None:
        devices = asyncio.run(underlays.find(found, named=not found))
        if devices:
            return devices
        raise CsumfixError(
            "this network namespace has no tunnel and no default route; name a device, or enter "
            "another namespace with nsenter",
            Exit.NEGATIVE,
        )
    try:
        return frozenset({socket.if_nametoindex(device)})
    except OSError:
        raise CsumfixError(
            f"--live: there is no device {device}; see 'ip link'", Exit.USAGE
        ) from None


def become_nobody() -> None:
    """Give up root, because pods choose the bytes of the packets."""
    with contextlib.suppress(OSError):  # not root, or a user namespace with root only
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
