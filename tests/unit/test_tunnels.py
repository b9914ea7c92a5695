"""Discovery from links that the kernel described (6.18), recorded byte by byte."""

import asyncio
import errno
import json
from dataclasses import replace
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


def geneve(name: str, *data: tuple[str, Any]) -> ifinfmsg:
    """A geneve device as geneve_fill_info() in drivers/net/geneve.c describes it."""
    link = ifinfmsg()
    link["index"] = 9
    info = {"attrs": [("IFLA_INFO_KIND", "geneve"), ("IFLA_INFO_DATA", {"attrs": list(data)})]}
    link["attrs"] = [("IFLA_IFNAME", name), ("IFLA_MTU", 1450), ("IFLA_LINKINFO", info)]
    link["header"] = {"type": 16, "flags": 0, "sequence_number": 1}
    link.encode()
    again = ifinfmsg(bytes(link.data))
    again.decode()
    return again


GENEVE = Tunnel("gnv", 7000, "4", 1450, 7, source_ports=(1, 65535), index=9, protocol="geneve")


@pytest.mark.parametrize(
    ("data", "tunnel"),
    [
        (
            [
                ("IFLA_GENEVE_REMOTE", "192.0.2.2"),
                ("IFLA_GENEVE_UDP_CSUM", 0),
                ("IFLA_GENEVE_PORT", 7000),
            ],
            replace(GENEVE, remote="192.0.2.2", checksum=False),
        ),
        (
            [
                ("IFLA_GENEVE_REMOTE6", "2001:db8::2"),
                ("IFLA_GENEVE_UDP_ZERO_CSUM6_TX", 1),
                ("IFLA_GENEVE_PORT", 7000),
            ],
            replace(GENEVE, family="6", remote="2001:db8::2", checksum6=False),
        ),
        (
            [("IFLA_GENEVE_PORT", 6081), ("IFLA_GENEVE_COLLECT_METADATA", True)],
            replace(GENEVE, port=6081, family="both", metadata=True),
        ),
    ],
    ids=["IPv4", "IPv6", "collect-metadata"],
)
def test_geneve_devices(data: list[tuple[str, Any]], tunnel: Tunnel) -> None:
    link = geneve("gnv", ("IFLA_GENEVE_ID", 7), *data)
    assert parse_link(link, EPHEMERAL) == tunnel


def test_both_kinds_of_devices_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    vxlan = ifinfmsg(bytes.fromhex(RECORDED["flannel.1"]))
    vxlan.decode()
    port = ("IFLA_GENEVE_PORT", 7000)
    links = {"vxlan": [vxlan], "geneve": [geneve("gnv", port)]}
    monkeypatch.setattr(rtnetlink, "links", links.__getitem__)
    found = asyncio.run(discover())
    assert [(one.name, one.protocol) for one in found] == [
        ("flannel.1", "vxlan"),
        ("gnv", "geneve"),
    ]
