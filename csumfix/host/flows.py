"""The flows that are still in the queue lane while their port leaves it: an ipset or a set of nft.

Its members are outer source ports. The rules add them. The kernel removes an entry that no packet
has refreshed for IDLE seconds (see "leaving" in csumfix-rules). The set of nft is part of the
table that csumfix-rules makes, so it is neither made nor removed here.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from csumfix.errors import CsumfixError, Exit
from csumfix.host.changes import ATTRIBUTE, HEADER, attributes, messages
from csumfix.host.rtnetlink import NetlinkError
from csumfix.lean import parts_of

NAME = "csumfix-flows"

IDLE = 5
"""Seconds after which a flow is idle: none of its packets can be in a queue any more."""


NETLINK_NETFILTER = 12  # linux/netlink.h
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

# linux/netfilter/nfnetlink.h and nf_tables.h
NFT_MSG_GETSETELEM = 10 << 8 | 13
"""With NFNL_SUBSYS_NFTABLES."""
NFGENMSG = struct.Struct("=BBH")
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFPROTO_IPV4, NFPROTO_IPV6 = 2, 10

TIMEOUT = 5
"""Seconds in which the kernel must answer."""


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
    """Tell whether any flow is still in the set; raise CsumfixError if nobody can say.

    A set that is not there has none: another program has destroyed it.
    """
    try:
        with _ipset() as ipset:
            return any(
                message.get_attr("IPSET_ATTR_ADT") and message.get_attr("IPSET_ATTR_ADT")["attrs"]
                for message in ipset.list(NAME)
            )
    except (NetlinkError, OSError) as error:
        if _errno(error) == errno.ENOENT:
            return False
        raise CsumfixError(
            f"cannot list the ipset {NAME}: {error}: "
            "too many open files on this host, or the kernel does not answer",
            Exit.KERNEL,
        ) from None


def _errno(error: NetlinkError | OSError) -> int | None:
    code: int | None = error.errno if isinstance(error, OSError) else error.code
    return code


def are_left_in_nft() -> bool:
    """Tell whether any flow is still in the set of nft, of either family."""
    return any(map(_has_elements, (NFPROTO_IPV4, NFPROTO_IPV6)))


def _has_elements(family: int) -> bool:
    names = {NFTA_SET_ELEM_LIST_TABLE: b"csumfix\0", NFTA_SET_ELEM_LIST_SET: b"flows\0"}
    body = NFGENMSG.pack(family, 0, 0)
    for kind, name in names.items():
        body += ATTRIBUTE.pack(ATTRIBUTE.size + len(name), kind) + name + bytes(-len(name) % 4)
    flags = NLM_F_REQUEST | NLM_F_DUMP
    request = HEADER.pack(HEADER.size + len(body), NFT_MSG_GETSETELEM, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.settimeout(TIMEOUT)
        try:
            kernel.send(request)
            return _any_element(kernel)
        except OSError as error:
            if error.errno == errno.ENOENT:  # no table of this family, or another program took it
                return False
            raise


def _any_element(kernel: socket.socket) -> bool:
    found = False
    while True:
        for message in messages(kernel.recv(1 << 16)):
            kind = HEADER.unpack_from(message)[1]
            body = message[HEADER.size :]
            if kind == NLMSG_DONE:
                return found
            if kind == NLMSG_ERROR:
                raise OSError(-struct.unpack_from("=i", body)[0], "cannot list a set of nft")
            parts = dict(attributes(body[NFGENMSG.size :]))
            found |= bool(parts.get(NFTA_SET_ELEM_LIST_ELEMENTS))
