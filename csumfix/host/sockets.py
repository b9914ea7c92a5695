"""Tunnels of this network namespace whose device is in another one.

Docker Swarm makes its vxlan device here and moves it to a hidden namespace. The device's UDP
socket stays here (drivers/net/vxlan/vxlan_core.c: vxlan_sock_add() takes vxlan->net, the namespace
that it was made in), and so do its outer packets. Nothing announces the device here, but
/proc/net/udp lists the socket.

Such a line does not tell what the socket is for: the kernel's own sockets have an inode and a user
like any other (measured on Linux 6.18), and the kind of encapsulation is shown nowhere. WireGuard,
L2TP and others look the same. So only the ports that are a tunnel's by custom are found. If any
other program has such a port, no harm is done: the kernel lane completes the checksums of any UDP
packet, and the queue lane leaves alone what is not in the tunnel's format.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from csumfix.errors import CsumfixError, Exit
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import WELL_KNOWN

TABLES = (Path("/proc/net/udp"), Path("/proc/net/udp6"))

UNCONNECTED = "07"
"""State of a UDP socket without a peer, as a tunnel's is: TCP_CLOSE of net/tcp_states.h."""


def hidden_ports(found: Iterable[Tunnel]) -> frozenset[int]:
    """Return the ports of tunnels that no device of this namespace shows.

    found: the devices that are here. Raises CsumfixError if the kernel does not list its sockets.
    """
    return socket_ports() - {tunnel.port for tunnel in found}


def socket_ports() -> frozenset[int]:
    """Return those well-known ports on which this namespace has an unconnected UDP socket."""
    found: set[int] = set()
    for table in TABLES:
        try:
            found |= parse(table.read_text())
        except FileNotFoundError:  # the kernel has no IPv6
            continue
        except OSError as error:
            raise CsumfixError(
                f"cannot read {table}: {error.strerror}: look whether /proc is mounted whole",
                Exit.KERNEL,
            ) from None
    return frozenset(found)


def parse(text: str) -> set[int]:
    """Return well-known ports among the unconnected sockets of a table like /proc/net/udp."""
    found = set()
    for line in text.splitlines()[1:]:
        # Slot, local address and port, remote ones, state: a host can have thousands of lines.
        _, local, _, state, _ = line.split(maxsplit=4)
        if state == UNCONNECTED:
            found.add(int(local.rpartition(":")[2], 16))
    return found & WELL_KNOWN.keys()
