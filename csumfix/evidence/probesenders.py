"""Sends single probes: as frames by the tunnel's device, and as tunnel datagrams of our own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from ipaddress import ip_address

from csumfix.evidence import probepackets
from csumfix.evidence.outcomes import OFFLOADED, Kind
from csumfix.evidence.probepackets import Ends
from csumfix.host.remotes import Remote

PING_DATA = 56  # bytes, as ping(8) has it

ELSEWHERE = {4: "192.88.99.1", 6: "100::1"}
"""Addresses that no host has (RFC 7526, RFC 6666): only their routes are looked up."""


class Frames:
    """Makes and sends the frames for one remote end."""

    def __init__(self, remote: Remote, sender: socket.socket) -> None:
        self._remote, self._sender = remote, sender
        self._ends = ends(remote)

    def of(self, kind: Kind) -> Callable[[int, int], None]:
        """Return what sends a frame of this kind, given its flow and its token."""
        is_complete = kind not in OFFLOADED
        if kind in (Kind.SYN, Kind.SYN_OFFLOADED):
            return lambda flow, token: self._send(
                probepackets.syn(self._ends, (flow, int(kind)), token, complete=is_complete)
            )
        if kind in (Kind.DATA, Kind.GSO):
            return lambda flow, token: self._send(
                probepackets.data(self._ends, (flow, int(kind)), token, gso=kind is Kind.GSO)
            )
        if kind is Kind.PING_OUTER:
            return lambda _, token: self._send(
                probepackets.echo_outer(self._ends, int(kind), token, PING_DATA)
            )
        length = PING_DATA
        if kind is Kind.PING_LARGE:
            length = probepackets.echo_data(self._remote.version, self._remote.mtu)
        return lambda _, token: self._send(
            probepackets.echo(self._ends, int(kind), token, length, complete=is_complete)
        )

    def _send(self, frame: bytes) -> None:
        self._sender.send(frame)


def ends(remote: Remote) -> Ends:
    """Return the inner ends of probes to a remote end."""
    source, dest = ip_address(remote.source).packed, ip_address(remote.address).packed
    return Ends(remote.source_mac, remote.dest_mac, source, dest)


def wrapped(
    remote: Remote, kind: Kind, sock: socket.socket, *, raw: bool
) -> Callable[[int, int], None]:
    """Return what sends a tunnel datagram of our own to the VTEP."""
    here = ip_address(sock.getsockname()[0]).packed
    there = ip_address(remote.vtep).packed
    inside = ends(remote)

    def send(flow: int, token: int) -> None:
        frame = probepackets.echo(inside, int(kind), token, PING_DATA, complete=True)
        payload = probepackets.encapsulated(remote.tunnel.protocol, remote.tunnel.vni, frame)
        if raw:
            payload = probepackets.datagram(here, there, (flow, remote.tunnel.port), payload)
        sock.send(payload)

    return send


def host_address(version: int) -> str:
    """Return the address by which this host speaks to the world; empty if it has none."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET  # noqa: PLR2004
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((ELSEWHERE[version], 9))  # sends nothing
        return str(sock.getsockname()[0])
    return ""
