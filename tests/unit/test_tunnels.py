"""Discovery from links that the kernel described (6.18), recorded byte by byte."""

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from csumfix.errors import CsumfixError, Exit
from csumfix.host.tunnels import Tunnel, discover, parse_link

RECORDED: dict[str, str] = json.loads((Path(__file__).parent / "data" / "links.json").read_text())
EPHEMERAL = (32768, 60999)


def recorded(name: str) -> Tunnel:
    link = ifinfmsg(bytes.fromhex(RECORDED[name]))
    link.decode()
    return parse_link(link, EPHEMERAL)


@pytest.mark.parametrize(
    "tunnel",
    [
        Tunnel("flannel.1", 8472, "4", 1450, vni=1, checksum=False, source_ports=EPHEMERAL),
        Tunnel("v6", 4789, "6", 1500, vni=2, checksum6=False, source_ports=EPHEMERAL),
        Tunnel("cilium_vxlan", 8472, "both", 1500, metadata=True, source_ports=EPHEMERAL),
        Tunnel("group6", 4789, "6", 65466, vni=3, source_ports=(40000, 50000)),
    ],
    ids=lambda tunnel: tunnel.name,
)
def test_recorded_device(tunnel: Tunnel) -> None:
    assert recorded(tunnel.name) == tunnel


@pytest.mark.parametrize(
    ("tunnel", "longest"),
    [
        # MTU, two VLAN tags, and 50 or 70 bytes of headers
        (Tunnel("plain", 8472, "4", 1450), 1508),
        (Tunnel("plain6", 8472, "6", 1430), 1508),
        (Tunnel("meta", 8472, "both", 65000, metadata=True), 1578),
        (Tunnel("meta", 8472, "both", 1400, metadata=True), 1478),
    ],
)
def test_longest_packet(tunnel: Tunnel, longest: int) -> None:
    assert tunnel.longest_packet(underlay_mtu=1500) == longest


def test_what_the_kernel_refuses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise NetlinkError(errno.ENOMEM)

    monkeypatch.setattr(AsyncIPRoute, "get_links", refuse)
    with pytest.raises(CsumfixError, match="Cannot allocate memory") as caught:
        asyncio.run(discover())
    assert caught.value.code is Exit.KERNEL
