"""The VXLAN devices of this network namespace."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from csumfix.errors import CsumfixError, Exit
from csumfix.host import rtnetlink
from csumfix.text import printable
from csumfix.threads import in_thread

Family = Literal["4", "6", "both"]

LOCAL_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LIST_ATTEMPTS = 20


@dataclass(frozen=True)
class Tunnel:
    """One vxlan device.

    port: UDP destination port.
    family: of the underlay; both if the device does not say.
    mtu: of the device, bytes.
    checksum: whether it computes outer checksums over IPv4 (``udpcsum``).
    checksum6: the same over IPv6 (no ``udp6zerocsumtx``).
    metadata: a collect-metadata (``external``) device, which serves any VNI.
    source_ports: lowest and highest outer source port.
    index: number of the device.
    underlay: number of the device that it is bound to; 0 if routes decide.
    remote: address of its only or default remote end; empty if it has none.
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
    """Read one RTM_NEWLINK message of a vxlan device.

    default_ports: the source ports of a device that has no range configured.
    """
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


async def discover() -> list[Tunnel]:
    """Return the vxlan devices of the current network namespace."""
    return await in_thread(_discover)


def _discover() -> list[Tunnel]:
    default_ports = local_port_range()
    return [parse_link(link, default_ports) for link in _links()]


def _links() -> list[Any]:
    """List the devices; again if the list changed meanwhile, because it may be incomplete."""
    for _ in range(LIST_ATTEMPTS):
        try:
            return rtnetlink.links("vxlan")
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
