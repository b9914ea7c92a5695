"""A doorbell that the kernel rings when something of one kind has changed."""

from __future__ import annotations

import errno
import socket

NETLINK_NETFILTER = 12  # linux/netlink.h

LINKS = (socket.NETLINK_ROUTE, 1 << 0)
"""Network devices: RTMGRP_LINK in linux/rtnetlink.h."""

NFTABLES = (NETLINK_NETFILTER, 1 << 6)
"""Rules of nftables, and with them of iptables-nft: NFNLGRP_NFTABLES in linux/nfnetlink.h."""


class Doorbell:
    """Becomes readable when a device, or a rule, has appeared, changed or vanished.

    It does not say which: whoever hears it looks at everything anew, so that a lost event
    costs nothing as long as one gets through.
    """

    def __init__(self, what: tuple[int, int]) -> None:
        protocol, groups = what
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.setblocking(False)
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._socket.fileno()

    def clear(self) -> None:
        """Silence the bell until the next event."""
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                # Events were lost, which is an event too.
                if error.errno != errno.ENOBUFS:
                    raise

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
