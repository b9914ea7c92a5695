"""Plain `csumfix run` against bugs and underlays that need a kernel with modules."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from csumfix_lab import Lab
from tests.kernels.tunnels import (
    BUGS,
    NFT,
    UNDERLAYS,
    Exchange,
    Tunnel,
)
from tests.lab.harness import Service

# What the kernel lane does not cure. IPVS without outer checksum: super-packets, which it leaves
# to the device. With conntrack: IPVS changes the connection, but does not mark it as under NAT.
BY_EVIDENCE = ("stateless", "IPVS, no outer checksum", "IPVS with conntrack")
READY = 150.0

# ESP: the policy would be that for the virtual address. IPv6: the rules are those of IPv4.
NOT_STATELESS = ("ESP", "IPv6")
ON_UNDERLAYS = [
    (underlay, bug)
    for underlay in UNDERLAYS
    for bug in ("snat", "stateless")
    if underlay != "eth0" and not (bug == "stateless" and underlay in NOT_STATELESS)
]
CASES = [*(("eth0", bug) for bug in BUGS if bug not in NFT), *ON_UNDERLAYS]
TUNNELS = [Tunnel(number, *case) for number, case in enumerate(CASES, 1)]
EACH = pytest.mark.parametrize(
    "tunnel",
    [
        pytest.param(tunnel, marks=[] if tunnel.underlay == "eth0" else pytest.mark.slow)
        for tunnel in TUNNELS
    ],
    ids=lambda tunnel: tunnel.name,
)


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Service]:
    daemon = Service(lab.sender)
    daemon.wait_for("ready", READY)
    # The first probes of the stateless tunnels leave wrong, and all tunnels share the counters.
    daemon.wait_for("warning: port", READY)
    yield daemon
    daemon.process.kill()
    print("\n".join(daemon.lines()))


@pytest.fixture
def track(lab: Lab, tunnel: Tunnel) -> None:
    track = BUGS[tunnel.bug].track
    if track:
        lab.sender.run(["sh", "-c", f"echo {track} >/proc/sys/net/ipv4/vs/conntrack"])


@EACH
@pytest.mark.usefixtures("track")
def test_without_csumfix_packets_are_lost(exchange: Exchange, tunnel: Tunnel) -> None:
    lost = tunnel.bug != "none" and UNDERLAYS[tunnel.underlay].verified
    exchange.assert_lost(tunnel, lost)


@EACH
@pytest.mark.usefixtures("track", "daemon")
def test_plain_csumfix_delivers_everything(exchange: Exchange, tunnel: Tunnel) -> None:
    exchange.until_whole(tunnel.address, at_once=tunnel.bug not in BY_EVIDENCE)


@pytest.mark.parametrize(
    "tunnel",
    [tunnel for tunnel in TUNNELS if tunnel.name in ("snat over eth0", "stateless over eth0")],
    ids=["kernel lane", "queue lane"],
)
@pytest.mark.usefixtures("daemon")
def test_a_packet_leaves_at_the_time_that_it_asks_for(
    lab: Lab, exchange: Exchange, tunnel: Tunnel
) -> None:
    lab.sender.run(["tc", "qdisc", "replace", "dev", "eth0", "root", "fq"])
    assert exchange.late(tunnel.address, 1.0) >= 0
    lab.sender.run(["tc", "qdisc", "del", "dev", "eth0", "root"])
    assert exchange.late(tunnel.address, 1.0) < 0


def test_the_evidence_names_the_device_by_which_packets_left(daemon: Service) -> None:
    # If many ports change at once, their line is cut.
    changes = re.findall(r"VNI (\d+), left (\S+) with", "\n".join(daemon.lines()))
    # What leaves by a VLAN shows on the device below it as well.
    devices = {int(vni): device.partition(".")[0] for vni, device in changes}
    carriers = {
        tunnel.number: UNDERLAYS[tunnel.underlay].device.partition(".")[0]
        for tunnel in TUNNELS
        if tunnel.bug == "stateless"
    }
    named = devices.keys() & carriers.keys()
    assert named
    assert {vni: devices[vni] for vni in named} == {vni: carriers[vni] for vni in named}
