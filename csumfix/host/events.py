"""Netlink events: the kernel announces changes of devices, routes and rules."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from csumfix.host.changes import Changes

NETLINK_NETFILTER = 12  # linux/netlink.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h

# Groups of linux/rtnetlink.h and linux/nfnetlink.h, each as a bit.
LINKS = (socket.NETLINK_ROUTE, 1 << 0)
"""Network devices: RTNLGRP_LINK."""

ROUTES = (socket.NETLINK_ROUTE, 1 << 2 | 1 << 6 | 1 << 10)
"""Neighbours, FDB entries among them, and routes: RTNLGRP_NEIGH, _IPV4_ROUTE, _IPV6_ROUTE."""

NFTABLES = (NETLINK_NETFILTER, 1 << 6)
"""Rules of nftables, and with them of iptables-nft: NFNLGRP_NFTABLES."""

LARGEST = 1 << 16
"""Bytes of a datagram that are read. The kernel's are smaller (NLMSG_GOODSIZE in
include/linux/netlink.h)."""

AT_ONCE = 2000
"""Datagrams that one read() takes at most, so that a flood does not block the event loop."""

BUFFER = 4 << 20
"""Bytes that the kernel may buffer: 5,000 link events per second for a quarter of a second."""


class NetlinkEvents:
    """A socket that becomes readable when there is an event.

    changes: knows which events change something for us.
    """

    def __init__(self, what: tuple[int, int], changes: Changes) -> None:
        protocol, groups = what
        self._changes = changes
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.setblocking(False)
        with suppress(PermissionError):  # in a user namespace the buffer stays small
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._socket.fileno()

    def read(self) -> bool:
        """Read the events that have arrived; tell whether any changes something for us."""
        changed = False
        for _ in range(AT_ONCE):
            try:
                changed |= self._changes.concern_us(self._socket.recv(LARGEST))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                # Events were lost, and any of them may have changed something.
                self._changes.forget()
                changed = True
        return changed

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
