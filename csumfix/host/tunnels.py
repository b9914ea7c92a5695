"""The VXLAN and Geneve devices of this network namespace."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from csumfix.errors import CsumfixError, Exit
from csumfix.host import rtnetlink
from csumfix.protocols import Protocol, Protocols, known
from csumfix.text import printable
from csumfix.threads import in_thread

Family = Literal["4", "6", "both"]

LOCAL_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LIST_ATTEMPTS = 20

GENEVE_SOURCE_PORTS = (1, 65535)
"""Outer source ports of a geneve device that has no range configured, whatever the local ports are
(drivers/net/geneve.c: geneve_xmit_skb() calls udp_flow_src_port() with 1 and USHRT_MAX). Kernels
from 6.14 on can have a range configured; it is within this one."""


@dataclass(frozen=True)
class Tunnel:
    """One vxlan or geneve device.

    port: UDP destination port.
    family: of the underlay; both if the device does not say.
    mtu: of the device, bytes.
    checksum: whether it computes outer checksums over IPv4 (``udpcsum``), if it decides that.
    checksum6: the same over IPv6 (no ``udp6zerocsumtx``).
    metadata: a collect-metadata (``external``) device, which serves any VNI.
    source_ports: lowest and highest outer source port.
    index: number of the device.
    underlay: number of the device that it is bound to; 0 if routes decide.
    remote: address of its only or default remote end; empty if it has none.
    protocol: what it sends: the device's kind.
    """

    name: str
    port: int
    family: Family
    mtu: int
    vni: int = 0
    checksum: bool = True
    checksum6: bool = True
    metadata: bool = False
    source_ports: tuple[int, int] = (1, 65535)
    index: int = 0
    underlay: int = 0
    remote: str = ""
    protocol: Protocol = "vxlan"


def local_port_range() -> tuple[int, int]:
    """Return the namespace's range of ephemeral ports, which vxlan devices use by default."""
    low, high = LOCAL_PORT_RANGE.read_text().split()
    return int(low), int(high)


def _family(data: Any) -> Family:
    """Return the underlay's family.

    A device without a local or remote address has its remotes only in the forwarding table. Calico
    and Cilium make such devices. Their remotes may be of either family.
    """
    if data.get("IFLA_VXLAN_LOCAL6") or data.get("IFLA_VXLAN_GROUP6"):
        return "6"
    if data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_GROUP"):
        return "4"
    return "both"


def parse_link(link: Any, default_ports: tuple[int, int]) -> Tunnel:
    """Read one RTM_NEWLINK message of a vxlan or geneve device.

    default_ports: the source ports of a vxlan device that has no range configured.
    """
    if link.get(("linkinfo", "kind")) == "geneve":
        return _parse_geneve(link)
    data = link.get(("linkinfo", "data"))
    ports = data.get("IFLA_VXLAN_PORT_RANGE") or {"low": 0, "high": 0}
    own = (int(ports["low"]), int(ports["high"]))
    return Tunnel(
        name=printable(link.get("ifname")),
        port=data.get("IFLA_VXLAN_PORT"),
        family=_family(data),
        mtu=link.get("mtu"),
        vni=data.get("IFLA_VXLAN_ID") or 0,
        checksum=bool(data.get("IFLA_VXLAN_UDP_CSUM")),
        checksum6=not data.get("IFLA_VXLAN_UDP_ZERO_CSUM6_TX"),
        metadata=bool(data.get("IFLA_VXLAN_COLLECT_METADATA")),
        source_ports=own if own[0] < own[1] else default_ports,
        index=link.get("index") or 0,
        underlay=data.get("IFLA_VXLAN_LINK") or 0,
        remote=data.get("IFLA_VXLAN_GROUP") or data.get("IFLA_VXLAN_GROUP6") or "",
    )


def _parse_geneve(link: Any) -> Tunnel:
    """Read the message of a geneve device.

    The kernel tells of the outer checksum only for the family of the remote end
    (geneve_fill_info() in drivers/net/geneve.c). A collect-metadata device has it as each packet
    wants it.
    """
    data = link.get(("linkinfo", "data"))
    remote, remote6 = data.get("IFLA_GENEVE_REMOTE"), data.get("IFLA_GENEVE_REMOTE6")
    return Tunnel(
        name=printable(link.get("ifname")),
        port=data.get("IFLA_GENEVE_PORT"),
        family="4" if remote else "6" if remote6 else "both",
        mtu=link.get("mtu"),
        vni=data.get("IFLA_GENEVE_ID") or 0,
        checksum=data.get("IFLA_GENEVE_UDP_CSUM") != 0,
        checksum6=not data.get("IFLA_GENEVE_UDP_ZERO_CSUM6_TX"),
        metadata=any(name == "IFLA_GENEVE_COLLECT_METADATA" for name, _ in data["attrs"]),
        source_ports=GENEVE_SOURCE_PORTS,
        index=link.get("index") or 0,
        remote=remote or remote6 or "",
        protocol="geneve",
    )


def protocols(found: Iterable[Tunnel], by_number: Protocols = MappingProxyType({})) -> Protocols:
    """Return what the ports of these devices carry, and ports that are known by their number."""
    return known(by_number, ((tunnel.port, tunnel.protocol) for tunnel in found))


async def discover() -> list[Tunnel]:
    """Return the vxlan and geneve devices of the current network namespace."""
    return await in_thread(_discover)


def _discover() -> list[Tunnel]:
    default_ports = local_port_range()
    return [parse_link(link, default_ports) for link in _links()]


def _links() -> list[Any]:
    """List the devices; again if the list changed meanwhile, because it may be incomplete."""
    for _ in range(LIST_ATTEMPTS):
        try:
            return [*rtnetlink.links("vxlan"), *rtnetlink.links("geneve")]
        except rtnetlink.NetlinkDumpInterrupted:
            continue
        except rtnetlink.NetlinkError as error:
            raise CsumfixError(
                f"cannot list the network devices: {os.strerror(error.code)}: see dmesg",
                Exit.KERNEL,
            ) from None
    raise CsumfixError(
        "cannot list the network devices: they change faster than they can be read: "
        "look for a program that makes and deletes devices all the time",
        Exit.KERNEL,
    )
