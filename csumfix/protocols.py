"""What the UDP ports of tunnels carry. Nothing in a packet tells VXLAN from Geneve for sure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

Protocol = Literal["vxlan", "geneve"]

Protocols = Mapping[int, Protocol]
"""What each port carries."""

TITLES: Mapping[Protocol, str] = {"vxlan": "VXLAN", "geneve": "Geneve"}

WELL_KNOWN: Protocols = {4789: "vxlan", 8472: "vxlan", 6081: "geneve"}
"""IANA's ports, and Linux's own for VXLAN, which flannel and Cilium use."""

GENEVE_PORT = 6081


def named(ports: Iterable[int], geneve_ports: Iterable[int] = ()) -> dict[int, Protocol]:
    """Return what ports carry that are known by their number only.

    geneve_ports: that were named as Geneve's.
    """
    found = {port: WELL_KNOWN.get(port, "vxlan") for port in ports}
    return {**found, **dict.fromkeys(geneve_ports, "geneve")}


def known(by_number: Protocols, by_device: Iterable[tuple[int, Protocol]]) -> dict[int, Protocol]:
    """Return what is known of ports; a device knows better than a number.

    A port that devices of both kinds have is left out: a packet might be of either.
    """
    devices: dict[int, set[Protocol]] = {}
    for port, protocol in by_device:
        devices.setdefault(port, set()).add(protocol)
    found = {port: protocol for port, protocol in by_number.items() if port not in devices}
    return found | {port: next(iter(both)) for port, both in devices.items() if len(both) == 1}
