"""The devices that carry tunnels: the ones on which their outer packets leave this host.

Where another header follows by way of a device (IPIP, GRE, WireGuard), that device is meant: the
outer packet can be seen there. IPsec in transport mode has no device: what leaves is encrypted.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from csumfix.host.tunnels import Tunnel

REMOTES = 256
"""How many remote ends are looked up: a node has few underlays, if many remotes."""

MAIN_TABLE = 254  # linux/rtnetlink.h: RT_TABLE_MAIN


async def find(tunnels: Collection[Tunnel], *, named: bool) -> frozenset[int]:
    """Return the numbers of the devices that carry these tunnels.

    named: whether there are tunnels which no device of this namespace shows. They, and
    collect-metadata devices, may send by any default route.
    """
    bound = {tunnel.underlay for tunnel in tunnels if tunnel.underlay}
    unbound = [tunnel for tunnel in tunnels if not tunnel.underlay]
    addressed = [tunnel for tunnel in unbound if not tunnel.metadata]
    found: set[int] = set()
    async with AsyncIPRoute() as ip:
        if addressed:
            found |= await _routed(ip, await _remotes(ip, addressed))
        if named or len(addressed) < len(unbound):
            found |= await _default_routes(ip)
        if bound:
            bound = await _without_vrfs(ip, bound)
    return frozenset(bound | found)


def name(index: int) -> str:
    """Return the name of a device; its number if it has just gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"device {index}"


async def _routed(ip: Any, remotes: Iterable[str]) -> set[int]:
    """Return the devices by which the routes to these addresses lead."""
    found = set()
    for remote in remotes:
        try:
            for route in await ip.route("get", dst=remote):
                found.add(route.get("oif"))
        except NetlinkError:  # no route: then nothing leaves
            continue
    return found - {None}


async def _remotes(ip: Any, tunnels: Collection[Tunnel]) -> list[str]:
    """Return remote ends of these tunnels: their own, and those in the forwarding tables."""
    found = {tunnel.remote for tunnel in tunnels} - {""}
    numbers = {tunnel.index for tunnel in tunnels}
    # One dump for all: the kernel dumps the entries of all devices in any case, unless the
    # request is a strict one (net/core/rtnetlink.c: valid_fdb_dump_legacy()).
    with suppress(NetlinkError, NetlinkDumpInterrupted):  # they change right now: another event
        async for entry in await ip.fdb("dump"):
            if entry["ifindex"] in numbers and entry.get("NDA_DST"):
                found.add(entry.get("NDA_DST"))
    return sorted(found)[:REMOTES]


async def _without_vrfs(ip: Any, devices: Collection[int]) -> set[int]:
    """Return these devices with the members of a VRF in place of the VRF itself.

    A tunnel is bound to the VRF, but its packets leave by a member. What the VRF shows of them is
    what they are before NAT and before the queue (drivers/net/vrf.c: vrf_ip_out_direct()).
    """
    found = set(devices)
    with suppress(NetlinkError, NetlinkDumpInterrupted):  # they change right now: another event
        vrfs = {link["index"] async for link in await ip.get_links(kind="vrf")}
        for vrf in vrfs.intersection(devices):
            found |= {link["index"] async for link in await ip.get_links(master=vrf)}
            found.discard(vrf)
    return found


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
