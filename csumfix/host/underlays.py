"""The devices that carry tunnels: the ones on which their outer packets leave this host.

If a device adds another header (IPIP, GRE, WireGuard), that device is meant: the outer packet is
visible there. IPsec in transport mode has no device: what leaves is encrypted.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from contextlib import suppress

from csumfix.host import rtnetlink
from csumfix.host.rtnetlink import NetlinkError
from csumfix.host.tunnels import Tunnel
from csumfix.threads import in_thread

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
    found: set[int] = set()
    if unbound or named:
        found = await in_thread(_of_unbound, unbound, named)
    if bound:
        found |= await in_thread(_without_vrfs, bound)
    return frozenset(found)


def _of_unbound(tunnels: Collection[Tunnel], named: bool) -> set[int]:
    addressed = [tunnel for tunnel in tunnels if not tunnel.metadata]
    found = _routed(_remotes(addressed)) if addressed else set()
    if named or len(addressed) < len(tunnels):
        found |= _default_routes()
    return found


def name(index: int) -> str:
    """Return the name of a device; its number if it has just gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"device {index}"


def _routed(remotes: Iterable[str]) -> set[int]:
    """Return the devices by which packets to these addresses leave."""
    found: set[int | None] = set()
    for remote in remotes:
        try:
            for route in rtnetlink.route_to(remote):
                found.add(route.get("oif"))
        except NetlinkError:  # no route: then nothing leaves
            continue
    return {number for number in found if number}


def _remotes(tunnels: Collection[Tunnel]) -> list[str]:
    """Return remote ends of these tunnels: their own, and those in the forwarding tables."""
    found = {tunnel.remote for tunnel in tunnels} - {""}
    numbers = {tunnel.index for tunnel in tunnels}
    # One dump for all: the kernel dumps the entries of all devices in any case, unless the
    # request is a strict one (net/core/rtnetlink.c: valid_fdb_dump_legacy()).
    with suppress(NetlinkError):  # they change right now: another event will come
        for entry in rtnetlink.neighbours():
            if entry["ifindex"] in numbers and entry.get("NDA_DST"):
                found.add(entry.get("NDA_DST"))
    return sorted(found)[:REMOTES]


def _without_vrfs(devices: Collection[int]) -> set[int]:
    """Return these devices with the members of a VRF in place of the VRF itself.

    A tunnel is bound to the VRF, but its packets leave by a member. What the VRF shows of them is
    what they are before NAT and before the queue (drivers/net/vrf.c: vrf_ip_out_direct()).
    """
    found = set(devices)
    with suppress(NetlinkError):  # they change right now: another event will come
        vrfs = {link["index"] for link in rtnetlink.links("vrf")}
        for vrf in vrfs.intersection(devices):
            found |= {link["index"] for link in rtnetlink.members(vrf)}
            found.discard(vrf)
    return found


def _default_routes() -> set[int]:
    found: set[int | None] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            routes = rtnetlink.routes(family)
        except NetlinkError:
            continue
        for route in routes:
            if route["dst_len"] == 0 and route.get("table") == MAIN_TABLE:
                hops = route.get("multipath") or []
                found |= {route.get("oif"), *(hop["oif"] for hop in hops)}
    return {number for number in found if number}
