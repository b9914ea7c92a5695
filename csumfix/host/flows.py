"""The flows that are still in the queue lane while their port leaves it: an ipset.

Its members are outer source ports. The rules add them. The kernel removes an entry that no packet
has refreshed for IDLE seconds (see "leaving" in csumfix-rules).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from csumfix.errors import CsumfixError, Exit
from csumfix.host.rtnetlink import NetlinkError
from csumfix.lean import parts_of

NAME = "csumfix-flows"

IDLE = 5
"""Seconds after which a flow is idle: none of its packets can be in a queue any more."""


@contextmanager
def _ipset() -> Iterator[Any]:
    """Open a socket to ipset. It is imported late, because few nodes ever need it."""
    with parts_of("pyroute2"):
        from pyroute2.ipset import IPSet
    with IPSet() as ipset:
        yield ipset


def create() -> None:
    """Make an empty set, or use the one that rules still refer to.

    Raises CsumfixError if the kernel cannot make it.
    """
    destroy()
    try:
        with _ipset() as ipset:
            ipset.create(
                NAME,
                stype="bitmap:port",
                exclusive=False,
                timeout=IDLE,
                bitmap_ports_range=(0, 65535),
            )
    except (NetlinkError, OSError) as error:
        raise CsumfixError(
            f"cannot create the ipset {NAME}: {error}: "
            "the kernel may lack ip_set and ip_set_bitmap_port: try modprobe",
            Exit.KERNEL,
        ) from None


def destroy() -> None:
    """Remove the set if it exists and no rule uses it."""
    with suppress(NetlinkError, OSError), _ipset() as ipset:
        ipset.destroy(NAME)


def are_left() -> bool:
    """Tell whether any flow is still in the set."""
    try:
        with _ipset() as ipset:
            return any(
                message.get_attr("IPSET_ATTR_ADT") and message.get_attr("IPSET_ATTR_ADT")["attrs"]
                for message in ipset.list(NAME)
            )
    except (NetlinkError, OSError):  # another program has destroyed it
        return False
