"""The flows that are still in the queue lane while their port leaves it: an ipset.

Its members are outer source ports. The rules add them; an entry that no packet refreshes for
IDLE seconds goes by itself (see "leaving" in csumfix-rules).
"""

from __future__ import annotations

from contextlib import suppress

from pyroute2 import IPSet
from pyroute2.netlink.exceptions import IPSetError, NetlinkError

from csumfix.errors import CsumfixError, Exit

NAME = "csumfix-flows"

IDLE = 5
"""Seconds after which a flow is idle: none of its packets can be in a queue any more."""


def create() -> None:
    """Make an empty set, or take the one that rules still use.

    Raises CsumfixError if the kernel cannot make it.
    """
    destroy()
    try:
        with IPSet() as ipset:
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
    """Remove the set, if it is there and no rule uses it."""
    with suppress(NetlinkError, IPSetError, OSError), IPSet() as ipset:
        ipset.destroy(NAME)


def are_left() -> bool:
    """Tell whether any flow is still in the set."""
    try:
        with IPSet() as ipset:
            return any(
                message.get_attr("IPSET_ATTR_ADT") and message.get_attr("IPSET_ATTR_ADT")["attrs"]
                for message in ipset.list(NAME)
            )
    except (NetlinkError, IPSetError, OSError):  # somebody has destroyed it
        return False
