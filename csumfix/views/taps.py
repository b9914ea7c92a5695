"""Opens the packet sockets of a command that watches devices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Collection, Iterator

from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.captures import GENEVE_PORT
from csumfix.evidence.tapsocket import Direction, TapSocket
from csumfix.host import underlays
from csumfix.host.tunnels import Tunnel

NOBODY = 65534

BUFFER = 16 << 20
"""Bytes that a packet socket may hold for us while we work."""


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
            "no permission to see packets: CAP_NET_RAW is missing: run as root", Exit.PERMISSION
        ) from None
    except OSError as error:
        raise CsumfixError(
            f"cannot watch {underlays.name(index)}: {error.strerror}: is the device there and up?",
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
            "there is no tunnel and no default route in this network namespace: name a device, "
            "or enter the namespace with nsenter",
            Exit.NEGATIVE,
        )
    try:
        return frozenset({socket.if_nametoindex(device)})
    except OSError:
        raise CsumfixError(
            f"--live: there is no device {device}: see 'ip link'", Exit.USAGE
        ) from None


def become_nobody() -> None:
    """Give up root: the bytes of packets are a pod's."""
    with contextlib.suppress(OSError):  # not root, or root of a user namespace without others
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
