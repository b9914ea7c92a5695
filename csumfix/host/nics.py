"""What a network device says of itself: its driver, and what it offers to compute."""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import re
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pyroute2.ethtool.ioctl import IoctlEthtool

from csumfix.host import rtnetlink, underlays
from csumfix.text import printable

SIOCETHTOOL = 0x8946  # linux/sockios.h
ETHTOOL_GDRVINFO = 0x00000003  # linux/ethtool.h
DRVINFO_SIZE = 196  # struct ethtool_drvinfo
IFREQ = struct.Struct("16sP16x")

CHECKSUM_FEATURES = (
    "tx-checksum-ip-generic",
    "tx-checksum-ipv4",
    "tx-checksum-ipv6",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
)


@dataclass(frozen=True)
class Nic:
    """A device that sends: one that carries tunnels, or one below it.

    driver: of the kernel, such as virtio_net; empty if it does not say.
    features: those of CHECKSUM_FEATURES that are on.
    """

    name: str
    driver: str = ""
    features: frozenset[str] = field(default_factory=frozenset)


def find(devices: Collection[int]) -> list[Nic]:
    """Return these devices, and the ones below them: what bonds and VLANs are made of."""
    wanted = set(devices)
    with contextlib.suppress(rtnetlink.NetlinkError, rtnetlink.NetlinkDumpInterrupted, OSError):
        links = rtnetlink.links()
        for _ in range(3):  # VLAN over bond over NIC
            wanted |= {one["index"] for one in links if one.get("master") in wanted}
            wanted |= {_lower(one) for one in links if one["index"] in wanted} - {0}
    return [_nic(underlays.name(index)) for index in sorted(wanted)]


def _lower(link: Any) -> int:
    """Return the number of the device below, if it is in this network namespace."""
    here = link.get("link_netnsid") is None
    return (link.get("link") or 0) if here else 0


def _nic(name: str) -> Nic:
    return Nic(printable(name), driver(name), _features(name))


def driver(name: str) -> str:
    """Ask for the driver's name."""
    buffer = array.array("B", bytes(DRVINFO_SIZE))
    struct.pack_into("I", buffer, 0, ETHTOOL_GDRVINFO)
    request = IFREQ.pack(os.fsencode(name)[:15], buffer.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
    except OSError:
        return ""
    return printable(bytes(buffer[4:36]).split(b"\0")[0])


def _features(name: str) -> frozenset[str]:
    try:
        shown = IoctlEthtool(name).get_features()
        return frozenset(one for one in CHECKSUM_FEATURES if shown.is_active(one))
    except (OSError, ValueError, KeyError, AttributeError, ctypes.ArgumentError, RuntimeError):
        return frozenset()


def kernel_version() -> tuple[int, ...]:
    """Return the running kernel's version, such as (6, 1, 90)."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", os.uname().release)
    return tuple(int(part or 0) for part in found.groups()) if found else ()
