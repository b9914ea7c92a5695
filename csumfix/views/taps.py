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


def become_nobody() -> None:
    """Give up root: the bytes of packets are a pod's."""
    with contextlib.suppress(OSError):  # not root, or root of a user namespace without others
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
