"""Discovery from links that the kernel described (6.18), recorded byte by byte."""

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from csumfix.errors import CsumfixError, Exit
from csumfix.host import rtnetlink
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
        Tunnel(
            "flannel.1", 8472, "4", 1450, vni=1, checksum=False, source_ports=EPHEMERAL, index=2
        ),
        Tunnel("v6", 4789, "6", 1500, vni=2, checksum6=False, source_ports=EPHEMERAL, index=4),
        Tunnel("cilium_vxlan", 8472, "both", 1500, metadata=True, source_ports=EPHEMERAL, index=3),
        Tunnel(
            "group6",
            4789,
            "6",
            65466,
            vni=3,
            source_ports=(40000, 50000),
            index=5,
            underlay=1,
            remote="ff05::100",
        ),
    ],
    ids=lambda tunnel: tunnel.name,
)
def test_recorded_device(tunnel: Tunnel) -> None:
    assert recorded(tunnel.name) == tunnel


@pytest.mark.parametrize(
    ("data", "family"),
    [
        ({"IFLA_VXLAN_LOCAL": "192.0.2.1"}, "4"),
        ({"IFLA_VXLAN_GROUP": "192.0.2.2"}, "4"),
        ({"IFLA_VXLAN_LOCAL6": "2001:db8::1"}, "6"),
        ({"IFLA_VXLAN_GROUP6": "ff05::100"}, "6"),
        ({"IFLA_VXLAN_COLLECT_METADATA": 1}, "both"),
        ({}, "both"),  # remotes are in the forwarding table only
    ],
)
def test_family_of_the_underlay(data: dict[str, Any], family: str) -> None:
    link = {
        "ifname": "vx",
        "mtu": 1450,
        ("linkinfo", "data"): {"IFLA_VXLAN_PORT": 4789, **data},
    }
    assert parse_link(link, EPHEMERAL).family == family


def test_what_the_kernel_refuses_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise NetlinkError(errno.ENOMEM)

    monkeypatch.setattr(rtnetlink, "links", refuse)
    with pytest.raises(CsumfixError, match="Cannot allocate memory") as caught:
        asyncio.run(discover())
    assert caught.value.code is Exit.KERNEL
