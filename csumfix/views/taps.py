"""Opens the packet sockets of a command that watches devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.tapsocket import Direction, TapSocket
from csumfix.host import underlays

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


def become_nobody() -> None:
    """Give up root, because pods choose the bytes of the packets."""
    with contextlib.suppress(OSError):  # not root, or a user namespace with root only
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
