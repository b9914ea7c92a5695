"""Tunnels over all kinds of underlays, and what else must survive on the way out.

What this kernel may lack is in tests/kernels: VLAN, bond, VRF, WireGuard, IPIP, GRE and ESP, and
a qdisc that honours SO_TXTIME.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from csumfix_lab import Lab
from tests.lab.harness import (
    LANES,
    PEER,
    SILENT,
    address,
    assert_no_rules,
    checksum_errors,
    link,
    send,
    service,
    tcp_arrives,
    wait_for_rules,
)
from tests.lab.tunnel import rebuild

COUNT = 30
TCP_BYTES = 500_000

MOVE = """
ip addr flush dev eth0
ip addr add 192.0.2.1/24 dev {0}
ip addr add 2001:db8::1/64 dev {0} nodad
ip route add default via 192.0.2.254
"""

BRIDGE = "ip link add under0 type bridge; ip link set eth0 master under0; ip link set under0 up"
MACVLAN = "ip link add under0 link eth0 type macvlan mode bridge; ip link set under0 up"


@dataclass(frozen=True)
class Underlay:
    """What carries the tunnel.

    script: sets it up on the sender.
    options: of the vxlan device.
    ipv6: the family of the outer header.
    """

    script: str = ""
    options: str = "udpcsum"
    ipv6: bool = False


UNDERLAYS = {
    "bridge": Underlay(BRIDGE + MOVE.format("under0"), "udpcsum local 192.0.2.1 dev under0"),
    "bridge, not bound": Underlay(BRIDGE + MOVE.format("under0")),
    "macvlan": Underlay(MACVLAN + MOVE.format("under0"), "udpcsum local 192.0.2.1 dev under0"),
    "macvlan, not bound": Underlay(MACVLAN + MOVE.format("under0")),
    "policy routing by source": Underlay(
        MACVLAN
        + """
ip addr add 192.0.2.7/24 dev under0 noprefixroute
ip rule add from 192.0.2.7 lookup 100
ip route add 192.0.2.0/24 dev under0 table 100
""",
        "udpcsum local 192.0.2.7",
    ),
    "policy routing by mark": Underlay(
        MACVLAN
        + """
ip rule add fwmark 0x77 lookup 100
ip route add 192.0.2.0/24 dev under0 src 192.0.2.1 table 100
iptables -t mangle -A OUTPUT -o flannel.1 -j MARK --set-mark 0x77
"""
    ),
    "path MTU below the tunnel's": Underlay("ip route change 192.0.2.0/24 dev eth0 mtu 1000"),
    "DF set": Underlay(options="udpcsum df set local 192.0.2.1 dev eth0"),
    "DF inherited, path MTU below": Underlay(
        "ip route change 192.0.2.0/24 dev eth0 mtu 1000", "udpcsum df inherit local 192.0.2.1"
    ),
    "IPv6, remotes in the FDB only": Underlay(options="noudp6zerocsumtx", ipv6=True),
    "IPv6, bound, path MTU below": Underlay(
        "ip route add 2001:db8::2/128 dev eth0 mtu 1300", "noudp6zerocsumtx dev eth0", ipv6=True
    ),
}


@pytest.fixture
def lab(underlay: str, bug: str) -> Iterator[Lab]:
    """Return a lab with this underlay, whose outer headers are masqueraded if the bug is snat."""
    what = UNDERLAYS[underlay]
    with Lab(cause="none", ipv6=what.ipv6) as lab:
        lab.sender.run(["sh", "-eu"], input=what.script)
        rebuild(lab, what.options)
        if bug == "snat":
            iptables = "ip6tables" if what.ipv6 else "iptables"
            rule = f"-A POSTROUTING -p udp --dport {lab.spec.port} -j MASQUERADE --random-fully"
            lab.sender.run([iptables, "-t", "nat", *rule.split()])
        yield lab


@LANES
@pytest.mark.parametrize("bug", ["none", "snat"])
@pytest.mark.parametrize("underlay", UNDERLAYS)
def test_everything_arrives_over(lab: Lab, bug: str, lane: str) -> None:
    send(lab, 1, 1400)  # lost where the path MTU is yet to be found out
    assert send(lab, 5, 64).whole is (bug == "none")
    with service(lab.sender, lane):
        errors = checksum_errors(lab)
        for size in (64, 1400):
            assert send(lab, COUNT, size, flows=5).whole, size
        assert tcp_arrives(lab, TCP_BYTES)
        assert checksum_errors(lab) == errors


# What a packet has besides its bytes

BEFORE = """
table ip dress {
    chain output {
        type filter hook output priority 0;
        oifname flannel.1 meta mark set 0x77 meta priority set 1:7
        oifname flannel.1 ip dscp set cs5
        oifname flannel.1 ip ecn set ect0
    }
}
"""

AFTER = """
table ip look {
    counter seen {
    }
    counter whole {
    }
    chain postrouting {
        type filter hook postrouting priority 300;
        oifname eth0 udp dport 8472 counter name seen
        oifname eth0 udp dport 8472 meta mark 0x77 meta priority 1:7 ip dscp cs5 ip ecn ect0 \
            counter name whole
    }
}
"""


def counter(lab: Lab, name: str) -> int:
    text = lab.sender.run(["nft", "list", "counter", "ip", "look", name]).stdout
    return int(text.split("packets ")[1].split()[0])


@pytest.mark.parametrize("how", ["without csumfix", "--lane=auto", "--lane=queue"])
@pytest.mark.parametrize("bug", ["none", "snat", "dnat"])
def test_mark_priority_tos_and_ecn_survive(bug: str, how: str) -> None:
    with Lab(cause=bug) as lab, ExitStack() as stack:
        options = "udpcsum local 192.0.2.1 dev eth0 tos inherit"
        rebuild(lab, options)
        lab.sender.run(["nft", "-f", "-"], input=BEFORE + AFTER)
        if how != "without csumfix":
            stack.enter_context(service(lab.sender, how, SILENT))
        arrived = send(lab, COUNT, 600, flows=5)
        assert counter(lab, "seen") >= COUNT
        assert counter(lab, "whole") == counter(lab, "seen")
        assert arrived.whole is (bug == "none" or how != "without csumfix")


# Fragments of outer packets

LARGE_MTU = 5000


def reassembled(lab: Lab) -> int:
    return lab.receiver.all_counters()["IpReasmOKs"]


@LANES
@pytest.mark.parametrize("bug", ["none", "snat"])
def test_a_tunnel_whose_packets_are_fragmented(bug: str, lane: str) -> None:
    """The underlay's MTU is 1,500: the kernel fragments after all rules."""
    with Lab(cause=bug) as lab:
        rebuild(lab, "udpcsum local 192.0.2.1")  # a device that is bound may not be larger
        link(lab, f"set {lab.device} mtu {LARGE_MTU}")
        lab.receiver.run(["ip", "link", "set", lab.device, "mtu", "1450"])
        with service(lab.sender, lane):
            errors, before = checksum_errors(lab), reassembled(lab)
            assert send(lab, COUNT, 4000, flows=5).whole
            assert reassembled(lab) - before >= COUNT
            assert tcp_arrives(lab, TCP_BYTES)
            assert checksum_errors(lab) == errors


# Sends one datagram of a tunnel in two fragments, its outer and inner checksum wrong. IP_NODEFRAG
# keeps conntrack from putting them together.
FRAGMENTS = """
import json, socket, struct
from scapy.all import IP, UDP, Raw, fragment
from scapy.layers.vxlan import VXLAN
from scapy.layers.l2 import Ether
inner = Ether() / IP(src="10.1.0.1", dst="10.1.0.2") / UDP(chksum=0x1234) / Raw(bytes(2500))
outer = IP(src="192.0.2.1", dst="192.0.2.2", id=77) / UDP(sport=50000, dport=8472, chksum=0x4321)
parts = [bytes(part) for part in fragment(outer / VXLAN(vni=1) / inner, 1400)]
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
    sock.setsockopt(socket.IPPROTO_IP, 22, 1)
    for part in parts:
        sock.sendto(part, ("192.0.2.2", 0))
print(json.dumps([part.hex() for part in parts]))
"""

# Prints the fragments that arrive, from the IP header on.
SEE = """
import json, socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
sock.bind(("eth0", 0x0800))
sock.settimeout(15)
print("listening", flush=True)
parts = []
while len(parts) < int(sys.argv[1]):
    data = sock.recv(65536)
    if data[4:6] == bytes([0, 77]):
        parts.append(data.hex())
print(json.dumps(parts))
"""


@LANES
def test_fragments_leave_as_they_came(lane: str) -> None:
    """Only the first is queued, because it has the ports, so the second may overtake it."""
    with Lab(cause="none") as lab, service(lab.sender, lane):
        watcher = lab.receiver.popen(
            [sys.executable, "-c", SEE, "2"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert watcher.stdout
        assert watcher.stdout.readline() == "listening\n"
        sent = json.loads(lab.sender.run([sys.executable, "-c", FRAGMENTS]).stdout)
        arrived = json.loads(watcher.communicate(timeout=20)[0])
        assert len(sent) == 2
        assert sorted(arrived) == sorted(sent)


# A host that has no tunnel at times


@LANES
def test_the_only_device_comes_and_goes_under_load(lane: str) -> None:
    with Lab(cause="dnat") as lab:
        link(lab, f"del {lab.device}")
        with service(lab.sender, lane) as daemon:
            daemon.wait_for("ready: no vxlan or geneve device yet")
            assert_no_rules(lab.sender)
            for _ in range(3):
                rebuild(lab, "udpcsum local 192.0.2.1")
                flood = [sys.executable, PEER, "flood", address(lab), "53", "--rate=10000"]
                load = lab.sender.popen(flood, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
                wait_for_rules(lab.sender, "8472")
                time.sleep(0.2)  # what was on its way before has arrived by then
                errors = checksum_errors(lab)
                assert tcp_arrives(lab, TCP_BYTES)
                assert checksum_errors(lab) == errors
                link(lab, f"del {lab.device}")  # while packets leave
                load.kill()
                load.communicate()
                wait_for_rules(lab.sender, "CSUMFIX", present=False, timeout=5)
            assert not [line for line in daemon.lines() if line.startswith(("error", "warning"))]
