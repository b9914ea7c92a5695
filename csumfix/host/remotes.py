"""The other ends of this host's tunnels: inner addresses there, and how a packet gets to them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from csumfix.errors import CsumfixError, Exit
from csumfix.host import rtnetlink
from csumfix.host.rtnetlink import NetlinkDumpInterrupted, NetlinkError
from csumfix.host.tunnels import Tunnel
from csumfix.text import printable
from csumfix.threads import in_thread

ENOUGH = 3
"""Remote ends of one tunnel and inner family."""

UNUSABLE = 0x01 | 0x20 | 0x40  # linux/neighbour.h: NUD_INCOMPLETE, NUD_FAILED, NUD_NOARP
PERMANENT = 0x80  # NUD_PERMANENT
ANY_MAC = "00:00:00:00:00:00"
"""Where a forwarding table keeps the default remote end."""

ATTEMPTS = 5


@dataclass(frozen=True)
class Remote:
    """An inner address at the other end of a tunnel.

    device, name: number and name of the device that the route leads by: the tunnel's own, or a
        bridge above it.
    address, source: inner addresses, there and here; of the same family.
    source_mac, dest_mac: six bytes each; dest_mac is empty if nobody knows it yet.
    vtep: outer address of the other end; empty if it is not known.
    mtu: of the device, bytes.
    """

    tunnel: Tunnel
    device: int
    name: str
    address: str
    source: str
    source_mac: bytes
    dest_mac: bytes
    vtep: str
    mtu: int

    @property
    def version(self) -> int:
        """Version of the inner IP: 4 or 6."""
        return 6 if ":" in self.address else 4

    @property
    def has_outer_checksum(self) -> bool:
        """Whether the tunnel computes outer checksums of packets to it."""
        return self.tunnel.checksum6 if ":" in self.vtep else self.tunnel.checksum

    def __str__(self) -> str:
        vtep = f" (VTEP {self.vtep})" if self.vtep else ""
        return f"{self.address}{vtep}"


@dataclass
class _Tables:
    """What the kernel knows of devices, neighbours and forwarding."""

    neighbours: list[Any] = field(default_factory=list)
    vteps: dict[tuple[int, str], str] = field(default_factory=dict)
    _devices: dict[int, Any] = field(default_factory=dict)

    def device(self, index: int | None) -> Any:
        """Return the device with this number; None if there is none."""
        if index is None:
            return None
        if index not in self._devices:
            with suppress(NetlinkError):
                self._devices[index] = rtnetlink.device(index)
        return self._devices.get(index)


async def find(
    tunnels: Sequence[Tunnel], wanted: Sequence[str] = (), enough: int = ENOUGH
) -> list[Remote]:
    """Return some remote ends of these tunnels, or those that are wanted by their inner address.

    enough: how many of one tunnel and inner family.

    Raises CsumfixError if the route to a wanted address does not lead into a tunnel.
    """
    if wanted:
        tables = await in_thread(_read)
        return [await _wanted(tables, tunnels, address) for address in wanted]
    return await in_thread(_of_tunnels, tunnels, enough)


def _of_tunnels(tunnels: Sequence[Tunnel], enough: int) -> list[Remote]:
    tables = _read({tunnel.index for tunnel in tunnels})
    return [remote for tunnel in tunnels for remote in _of_tunnel(tables, tunnel, enough)]


def _read(devices: Container[int] | None = None) -> _Tables:
    """Read the tables of these devices; None for all."""
    tables = _Tables()
    tables.neighbours = [
        entry
        for family in (socket.AF_INET, socket.AF_INET6)
        for entry in _dump(family, devices, UNUSABLE)
        if entry.get("NDA_LLADDR")
    ]
    for entry in _dump(socket.AF_BRIDGE, devices):
        if entry.get("NDA_DST") and entry.get("NDA_LLADDR"):
            tables.vteps.setdefault(
                (entry["ifindex"], entry.get("NDA_LLADDR")), entry.get("NDA_DST")
            )
    return tables


def _dump(family: int, devices: Container[int] | None, without: int = 0) -> list[Any]:
    """Return a table of neighbours; nothing if it changes all the time."""
    for _ in range(ATTEMPTS):
        with suppress(NetlinkDumpInterrupted, NetlinkError):
            return rtnetlink.neighbours(family, devices, without)
    return []


def _of_tunnel(tables: _Tables, tunnel: Tunnel, enough: int) -> list[Remote]:
    """Return remote ends whose inner addresses are neighbours on the tunnel's own device."""
    found: dict[int, list[Remote]] = {4: [], 6: []}
    entries = [one for one in tables.neighbours if one["ifindex"] == tunnel.index]
    for entry in sorted(entries, key=lambda one: not one["state"] & PERMANENT):
        address = entry.get("NDA_DST") or ""
        there = ipaddress.ip_address(address) if address else None
        if not there or there.is_link_local or there.is_multicast:
            continue
        known = found[there.version]
        vtep = _vtep(tables, tunnel, entry.get("NDA_LLADDR"))
        if len(known) >= enough or any(vtep and one.vtep == vtep for one in known):
            continue
        route = _route(address, tunnel.index)
        if route:
            mac = _mac(entry.get("NDA_LLADDR"))
            known.append(_remote(tables, tunnel, route, address, (mac, vtep)))
    return [*found[4], *found[6]]


async def _wanted(tables: _Tables, tunnels: Sequence[Tunnel], address: str) -> Remote:
    """Return the remote end with this inner address."""
    route = await in_thread(_route, address)
    device = route.get("oif") if route else None
    tunnel = _carrier(tables, tunnels, device)
    if not route or not tunnel:
        raise CsumfixError(
            f"--to: the route to {address} does not lead into a tunnel of this host: "
            f"give an address of a pod on another node; see 'ip route get {address}'",
            Exit.USAGE,
        )
    hop = route.get("gateway") or address
    entry = _neighbour(tables, device, hop)
    if not entry and not tunnel.metadata:
        _ask_for(address)
        tables = await _resolved(device, hop)
        entry = _neighbour(tables, device, hop)
    text = entry.get("NDA_LLADDR") if entry else ""
    is_plain = not tunnel.metadata  # others take packets from their own programs only
    mac = _mac(text) if is_plain else b""
    return _remote(tables, tunnel, route, address, (mac, _vtep(tables, tunnel, text)))


def _carrier(tables: _Tables, tunnels: Sequence[Tunnel], device: int | None) -> Tunnel | None:
    """Return the tunnel into which packets to a device go: itself, or a port of the bridge.

    A collect-metadata tunnel is fed by programs that no route shows.
    """
    for tunnel in tunnels:
        link = tables.device(tunnel.index)
        if device is not None and device in (tunnel.index, link and link.get("master")):
            return tunnel
    return next((tunnel for tunnel in tunnels if tunnel.metadata), None)


def _neighbour(tables: _Tables, device: int | None, address: str) -> Any:
    for entry in tables.neighbours:
        if entry["ifindex"] == device and entry.get("NDA_DST") == address:
            return entry
    return None


def _ask_for(address: str) -> None:
    """Send an empty datagram, so that the kernel looks for the neighbour."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (address, 9))  # discard


async def _resolved(device: int | None, address: str) -> _Tables:
    """Return the tables as soon as the neighbour is there, or anyway after half a second."""
    for _ in range(5):
        tables = await in_thread(_read)
        if _neighbour(tables, device, address):
            break
        await asyncio.sleep(0.1)
    return tables


def _route(address: str, device: int = 0) -> Any:
    with suppress(NetlinkError, OSError):
        for route in rtnetlink.route_to(address, device):
            return route
    return None


def _remote(
    tables: _Tables, tunnel: Tunnel, route: Any, address: str, there: tuple[bytes, str]
) -> Remote:
    device = route.get("oif")
    link = tables.device(device)
    return Remote(
        tunnel=tunnel,
        device=device,
        name=printable(link.get("ifname") if link else f"device {device}"),
        address=address,
        source=route.get("prefsrc") or "",
        source_mac=_mac(link.get("address") if link else ""),
        dest_mac=there[0],
        vtep=there[1],
        mtu=(link.get("mtu") if link else None) or tunnel.mtu,
    )


def _vtep(tables: _Tables, tunnel: Tunnel, mac: str) -> str:
    default = tables.vteps.get((tunnel.index, ANY_MAC)) or tunnel.remote
    return tables.vteps.get((tunnel.index, mac)) or default


def _mac(text: str | None) -> bytes:
    try:
        mac = bytes.fromhex((text or "").replace(":", ""))
    except ValueError:
        return b""
    return mac if len(mac) == 6 else b""  # noqa: PLR2004 - others are no Ethernet addresses
