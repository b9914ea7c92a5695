"""The devices that carry tunnels: the ones on which their outer packets leave this host."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from csumfix.host.tunnels import Tunnel

REMOTES = 64
"""How many remote ends of a tunnel are looked up: a node has few underlays, if many remotes."""

MAIN_TABLE = 254  # linux/rtnetlink.h: RT_TABLE_MAIN


async def find(tunnels: Iterable[Tunnel], *, named: bool) -> frozenset[int]:
    """Return the numbers of the devices that carry these tunnels.

    named: whether there are tunnels which no device of this namespace shows. They, and
    collect-metadata devices, may send by any default route.
    """
    found: set[int] = set()
    anywhere = named
    async with AsyncIPRoute() as ip:
        for tunnel in tunnels:
            if tunnel.underlay:
                found.add(tunnel.underlay)
            elif tunnel.metadata:
                anywhere = True
            else:
                found |= await _routed(ip, tunnel)
        if anywhere:
            found |= await _default_routes(ip)
    return frozenset(found)


def name(index: int) -> str:
    """Return the name of a device; its number if it has just gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"device {index}"


async def _routed(ip: Any, tunnel: Tunnel) -> set[int]:
    """Return the devices by which the routes to a tunnel's remote ends lead."""
    found = set()
    for remote in [*filter(None, [tunnel.remote]), *await _remotes(ip, tunnel)][:REMOTES]:
        try:
            for route in await ip.route("get", dst=remote):
                found.add(route.get("oif"))
        except NetlinkError:  # no route: then nothing leaves
            continue
    return found - {None}


async def _remotes(ip: Any, tunnel: Tunnel) -> list[str]:
    """Return the addresses in the forwarding table of a vxlan device."""
    try:
        dump = await ip.fdb("dump", ifindex=tunnel.index)
        entries = [entry async for entry in dump]
    except (NetlinkError, NetlinkDumpInterrupted):  # the device has gone, or changes right now
        return []
    found = (e.get("NDA_DST") for e in entries if e["ifindex"] == tunnel.index)
    return sorted({address for address in found if address})


async def _default_routes(ip: Any) -> set[int]:
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            dump = await ip.route("dump", family=family, table=MAIN_TABLE)
            routes = [route async for route in dump]
        except (NetlinkError, NetlinkDumpInterrupted):
            continue
        for route in routes:
            if route["dst_len"] == 0:
                hops = route.get("multipath") or []
                found |= {route.get("oif"), *(hop["oif"] for hop in hops)}
    return found - {None}
