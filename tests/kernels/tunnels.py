"""Many tunnels between the two nodes of one lab, each with an underlay and a bug of its own.

All exist side by side, so that one service has to do with all of them: starting it takes long in a
guest. Tunnel number N has the UDP port 9000 + N and the inner network 10.50.N.0/24; the sender has
the first address of each network, the receiver the second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csumfix.protocols import Protocol
from csumfix_lab import Lab
from csumfix_lab.process import Process
from tests.kernels import exchange

DATAGRAMS = 20
TCP_BYTES = 200_000
LOST_AFTER = 1.5  # seconds
ARRIVES_WITHIN = 8.0  # seconds; a guest stands still now and then
UNTIL_MOVED = 120.0  # seconds until evidence has moved a port to the queue lane


@dataclass(frozen=True)
class Underlay:
    """What carries tunnels.

    network: its addresses begin with this; number 99 is nobody's.
    sender, receiver: scripts that make it.
    device: by which the sender's packets leave.
    mtu: of the tunnels, bytes.
    verified: whether the receiver verifies checksums of what comes by it.
    """

    network: str
    sender: str = ""
    receiver: str = ""
    device: str = "eth0"
    mtu: int = 1300
    verified: bool = True

    @property
    def ipv6(self) -> bool:
        return ":" in self.network

    def address(self, number: int) -> str:
        return f"{self.network}{':' if self.ipv6 else '.'}{number}"

    @property
    def virtual(self) -> str:
        return self.address(99)

    @property
    def remote(self) -> str:
        return self.address(2)


def _both(network: str, device: str, script: str) -> Underlay:
    """Return an underlay of which the two ends differ only in their addresses."""
    sender, receiver = (
        script.replace("LOCAL", f"{network}.{here}")
        .replace("OUTER_HERE", f"192.0.2.{here}")
        .replace("OUTER_THERE", f"192.0.2.{there}")
        for here, there in ((1, 2), (2, 1))
    )
    return Underlay(network, sender, receiver, device)


VLAN = "198.18.1"
BOND = "198.18.2"
VRF = "198.18.3"
WIREGUARD = "198.18.4"
IPIP = "198.18.5"
GRE = "198.18.6"
ESP = "198.18.7"

# Keys of this test alone.
_KEYS = {
    "sender": (
        "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
        "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
    ),
    "receiver": (
        "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
        "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyBz6EAA=",
    ),
}


def _wireguard(here: str, there: str, number: int, outer: str) -> str:
    return f"""
ip link add wg0 type wireguard
echo {_KEYS[here][0]} >/tmp/wg-{here}
wg set wg0 private-key /tmp/wg-{here} listen-port 51820 \
    peer $(echo {_KEYS[there][0]} | wg pubkey) allowed-ips {WIREGUARD}.0/24 endpoint {outer}:51820
ip addr add {WIREGUARD}.{number}/24 dev wg0
ip link set wg0 up
"""


def _esp(here: str, there: str) -> str:
    key = "0x" + "11" * 20
    return f"""
ip addr add {here}/24 dev eth0
ip xfrm state add src {ESP}.1 dst {ESP}.2 proto esp spi 1 reqid 1 mode transport \
    aead 'rfc4106(gcm(aes))' {key} 128
ip xfrm state add src {ESP}.2 dst {ESP}.1 proto esp spi 2 reqid 2 mode transport \
    aead 'rfc4106(gcm(aes))' {key} 128
ip xfrm policy add src {here} dst {there} dir out \
    tmpl proto esp reqid {1 if here.endswith(".1") else 2} mode transport
ip xfrm policy add src {there} dst {here} dir in \
    tmpl proto esp reqid {2 if here.endswith(".1") else 1} mode transport
"""


_ON_ETH0 = "ip addr add {0}/24 dev eth0"

UNDERLAYS = {
    "eth0": Underlay("192.0.2"),
    "IPv6": Underlay("2001:db8:"),
    "VLAN": _both(
        VLAN,
        "eth0.7",
        "ip link add eth0.7 link eth0 type vlan id 7\n"
        "ip addr add LOCAL/24 dev eth0.7\nip link set eth0.7 up",
    ),
    "bond": Underlay(
        BOND,
        sender="ip link add bond0 type bond mode active-backup miimon 100\n"
        "ip link set eth1 down\nip link set eth1 master bond0\nip link set bond0 up\n"
        f"ip addr add {BOND}.1/24 dev bond0",
        receiver=_ON_ETH0.format(f"{BOND}.2"),
        device="bond0",
    ),
    "VRF": Underlay(
        VRF,
        sender="ip link add red type vrf table 100\nip link set red up\n"
        f"ip link set eth2 master red\nip link set eth2 up\nip addr add {VRF}.1/24 dev eth2",
        receiver=_ON_ETH0.format(f"{VRF}.2"),
        device="eth2",
    ),
    "WireGuard": Underlay(
        WIREGUARD,
        sender=_wireguard("sender", "receiver", 1, "192.0.2.2"),
        receiver=_wireguard("receiver", "sender", 2, "192.0.2.1"),
        device="wg0",
        # drivers/net/wireguard/receive.c: wg_packet_consume_data_done() vouches for them.
        verified=False,
    ),
    "IPIP": _both(
        IPIP,
        "ipip1",
        "ip link add ipip1 type ipip local OUTER_HERE remote OUTER_THERE\n"
        "ip addr add LOCAL/24 dev ipip1\nip link set ipip1 up",
    ),
    "GRE": _both(
        GRE,
        "gre1",
        "ip link add gre1 type gre local OUTER_HERE remote OUTER_THERE\n"
        "ip addr add LOCAL/24 dev gre1\nip link set gre1 up",
    ),
    "ESP": Underlay(
        ESP, sender=_esp(f"{ESP}.1", f"{ESP}.2"), receiver=_esp(f"{ESP}.2", f"{ESP}.1")
    ),
}


@dataclass(frozen=True)
class Bug:
    """What goes wrong on the sender.

    script: for this tunnel; it may use $port, $virtual, $remote, $inner, and $iptables, which is
        that of the underlay's family.
    virtual: the sender sends to the virtual address.
    checksum: whether the tunnel has an outer checksum.
    service: the sender reaches the receiver by this address, in place of the inner one.
    track: what /proc/sys/net/ipv4/vs/conntrack is; "" if that does not matter.
    """

    script: str
    virtual: bool = False
    checksum: bool = True
    service: str = ""
    track: str = ""


IPVS = """
ipvsadm -A -u $virtual:$port -s rr
ipvsadm -a -u $virtual:$port -r $remote:$port -m
"""

# With net.ipv4.vs.conntrack=1, without which IPVS keeps its connections from iptables' NAT. As
# kube-proxy 1.18 writes them in IPVS mode (pkg/proxy/ipvs/proxier.go: writeIptablesRules(),
# createAndLinkKubeChain()), with the cluster's CIDR known.
KUBE_IPVS = f"""
ip link show kube-ipvs0 >/dev/null 2>&1 || ip link add kube-ipvs0 type dummy
ip addr add 10.96.0.10/32 dev kube-ipvs0
ipset create KUBE-CLUSTER-IP hash:ip,port
ipset add KUBE-CLUSTER-IP 10.96.0.10,udp:{exchange.PORT}
ipset add KUBE-CLUSTER-IP 10.96.0.10,tcp:{exchange.PORT}
for protocol in -u -t; do
    ipvsadm -A $protocol 10.96.0.10:{exchange.PORT} -s rr
    ipvsadm -a $protocol 10.96.0.10:{exchange.PORT} -r $inner:{exchange.PORT} -m
done
iptables-restore --noflush <<'EOF'
*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" \
-m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
-A KUBE-SERVICES ! -s 10.244.0.0/16 -m comment --comment "Kubernetes service cluster ip + port \
for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
COMMIT
EOF
"""

NFT = {
    "snat by nft": Bug(
        """
nft add table ip source
nft 'add chain ip source post { type nat hook postrouting priority srcnat; }'
nft add rule ip source post udp dport $port masquerade fully-random
"""
    ),
    "dnat by nft": Bug(
        """
nft add table ip destination
nft 'add chain ip destination out { type nat hook output priority -100; }'
nft add rule ip destination out ip daddr $virtual udp dport $port dnat to $remote
""",
        virtual=True,
    ),
}
"""For hosts without iptables."""

BUGS = {
    **NFT,
    "none": Bug(""),
    "snat": Bug(
        "$iptables -t nat -A POSTROUTING -p udp --dport $port -j MASQUERADE --random-fully"
    ),
    "dnat": Bug(
        "iptables -t nat -A OUTPUT -d $virtual -p udp --dport $port "
        "-j DNAT --to-destination $remote",
        virtual=True,
    ),
    "stateless": Bug(
        "nft add table ip stateless\n"
        "nft 'add chain ip stateless output { type filter hook output priority raw; }'\n"
        "nft add rule ip stateless output ip daddr $virtual udp dport $port notrack "
        "ip daddr set $remote",
        virtual=True,
    ),
    "IPVS": Bug(IPVS, virtual=True, track="0"),
    "IPVS, no outer checksum": Bug(IPVS, virtual=True, checksum=False, track="0"),
    "IPVS with conntrack": Bug(IPVS, virtual=True, track="1"),
    "kube-proxy in IPVS mode": Bug(KUBE_IPVS, service="10.96.0.10", track="1"),
}


@dataclass(frozen=True)
class Tunnel:
    """One tunnel; see above for what its number decides."""

    number: int
    underlay: str
    bug: str
    protocol: Protocol = "vxlan"

    @property
    def name(self) -> str:
        return f"{self.bug} over {self.underlay}"

    @property
    def port(self) -> int:
        return 9000 + self.number

    @property
    def address(self) -> str:
        """Where the sender reaches the receiver through the tunnel and into the bug."""
        return BUGS[self.bug].service or f"10.50.{self.number}.2"

    def script(self, here: int, there: int) -> str:
        """Return what makes one end."""
        if self.protocol == "geneve":
            return self.geneve_script(here, there)
        carrier, bug = UNDERLAYS[self.underlay], BUGS[self.bug]
        device = f"vx{self.number}"
        remote = carrier.virtual if bug.virtual and here == 1 else carrier.address(there)
        # To packets that are encapsulated, a VRF is the device that the tunnel is bound to.
        bound = "dev red" if self.underlay == "VRF" and here == 1 else ""
        checksum = "udpcsum" if bug.checksum else "noudpcsum"
        return f"""
ip link add {device} mtu {carrier.mtu} type vxlan id {self.number} dstport {self.port} \
    local {carrier.address(here)} remote {remote} nolearning {checksum} {bound}
ip addr add 10.50.{self.number}.{here}/24 dev {device}
ip link set {device} up
"""

    def geneve_script(self, here: int, there: int) -> str:
        """Return what makes one end of a Geneve tunnel.

        A geneve device takes packets from its remote end only, so what sends to a virtual address
        must be a collect-metadata device, as Cilium's and OVN's are. It has no ARP.
        """
        carrier, bug = UNDERLAYS[self.underlay], BUGS[self.bug]
        device, mac = f"gnv{self.number}", f"02:00:00:50:{self.number:02}"
        inner = f"10.50.{self.number}"
        checksum = "noudp6zerocsumtx noudp6zerocsumrx" if carrier.ipv6 else "udpcsum"
        kind = f"id {self.number} remote {carrier.address(there)} {checksum}"
        route = ""
        if bug.virtual and here == 1:
            kind = "external"
            route = (
                f"ip route add {inner}.{there}/32 dev {device} "
                f"encap ip id {self.number} dst {carrier.virtual} key csum"
            )
        return f"""
ip link add {device} address {mac}:{here:02} mtu {carrier.mtu} \
    type geneve {kind} dstport {self.port}
ip addr add {inner}.{here}/24 dev {device}
ip link set {device} up
ip neigh add {inner}.{there} lladdr {mac}:{there:02} dev {device}
{route}
"""

    def rules(self) -> str:
        """Return what makes the bug."""
        carrier = UNDERLAYS[self.underlay]
        iptables = "ip6tables" if carrier.ipv6 else "iptables"
        return (
            f"port={self.port} virtual={carrier.virtual} remote={carrier.remote} "
            f"inner=10.50.{self.number}.2 iptables={iptables}\n{BUGS[self.bug].script}\n"
        )


@dataclass(frozen=True)
class Delivery:
    """What became of some traffic."""

    arrived: int
    damaged: int
    tcp: str
    errors: dict[str, int]

    @property
    def delivered(self) -> bool:
        """Whether everything arrived."""
        return (self.arrived, self.damaged, self.tcp) == (2 * DATAGRAMS, 0, "done")

    @property
    def whole(self) -> bool:
        """Whether, besides, the receiver counted no error meanwhile, in any tunnel."""
        return self.delivered and not any(self.errors.values())


class Exchange:
    """Traffic from the sender to the receiver.

    overtaken: datagrams that came after one that was sent later.
    """

    def __init__(self, lab: Lab) -> None:
        self.overtaken = 0
        program = [sys.executable, "-I", "-S", str(Path(exchange.__file__).resolve())]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._receiver = lab.receiver.popen([*program, "receive"], **options)
        self._sender = lab.sender.popen([*program, "send"], **options)
        for process in (self._receiver, self._sender):
            assert process.stdout
            assert process.stdout.readline() == "ready\n"

    @staticmethod
    def _ask(process: subprocess.Popen[str], line: str) -> str:
        assert process.stdin
        assert process.stdout
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    def _take(self) -> Any:
        return json.loads(self._ask(self._receiver, "take"))

    def udp(self, address: str, *sizes: int, patience: float = LOST_AFTER) -> tuple[int, int]:
        """Send datagrams; return how many different ones arrived, and how many were damaged."""
        arrived = damaged = 0
        for size in sizes:
            self._ask(self._sender, f"udp {address} {DATAGRAMS} {size}")
            numbers: set[int] = set()
            deadline = time.monotonic() + patience
            while len(numbers) < DATAGRAMS and time.monotonic() < deadline:
                time.sleep(0.1)
                report = self._take()
                numbers.update(report["numbers"])
                damaged += report["damaged"]
                self.overtaken += report["overtaken"]
            arrived += len(numbers)
        return arrived, damaged

    def assert_lost(self, tunnel: Tunnel, lost: bool) -> None:
        """All of some datagrams are lost, or none is."""
        patience = LOST_AFTER if lost else ARRIVES_WITHIN
        arrived, _ = self.udp(tunnel.address, 64, patience=patience)
        assert arrived == (0 if lost else DATAGRAMS)

    def tcp(self, address: str) -> str:
        """Make a transfer over TCP; return what became of it."""
        return self._ask(self._sender, f"tcp {address} {TCP_BYTES}")

    def udp_during(self, address: str, process: Process) -> tuple[int, int]:
        """Send datagrams until a process ends; return how many, and how many arrived."""
        self._take()
        sent = arrived = 0
        while process.poll() is None:
            self._ask(self._sender, f"udp {address} {DATAGRAMS} 64")
            sent += DATAGRAMS
            time.sleep(0.2)
            arrived += len(self._take()["numbers"])
        deadline = time.monotonic() + 2 * ARRIVES_WITHIN
        while arrived < sent and time.monotonic() < deadline:
            time.sleep(0.1)
            arrived += len(self._take()["numbers"])
        return sent, arrived

    def late(self, address: str, delay: float) -> float:
        """Send a datagram that should leave after this many seconds; return how late it came."""
        self._take()
        at = time.monotonic_ns() + int(delay * 1e9)
        assert self._ask(self._sender, f"later {address} {at}") == "done"
        deadline = time.monotonic() + delay + ARRIVES_WITHIN
        while not (last := self._take()["last"]):
            assert time.monotonic() < deadline, "lost"
            time.sleep(0.1)
        return float(last - at) / 1e9

    def all(self, address: str) -> Delivery:
        """Send small and large datagrams, and a transfer over TCP."""
        before = self._take()["errors"]
        arrived, damaged = self.udp(address, 64, 1200, patience=ARRIVES_WITHIN)
        tcp = self.tcp(address)
        after = self._take()["errors"]
        return Delivery(
            arrived, damaged, tcp, {name: after[name] - before[name] for name in after}
        )

    def until_whole(self, address: str, *, at_once: bool) -> None:
        """Repeat all() until it is whole.

        at_once: everything has to arrive the first time already. The receiver may still count
            errors then: it counts the service's probes to other tunnels as well, which are wrong
            until evidence has moved the ports of these.
        """
        deadline = time.monotonic() + UNTIL_MOVED
        while not (outcome := self.all(address)).whole:
            assert outcome.delivered or not at_once, outcome
            assert time.monotonic() < deadline, outcome


def build(lab: Lab, tunnels: list[Tunnel]) -> None:
    """Make these tunnels, their underlays and their bugs."""
    more = [
        f"ip link add more{number} type veth peer name eth{number} netns sender\n"
        f"ip link set more{number} master br0 up\n"
        f"ethtool -K more{number} tx off tso off gso off gro off"
        for number in (1, 2)
    ]
    lab.wire.run(["sh", "-eu"], input="\n".join(more))
    used = [UNDERLAYS[name] for name in dict.fromkeys(tunnel.underlay for tunnel in tunnels)]
    for end, node in ((1, lab.sender), (2, lab.receiver)):
        scripts = [one.sender if end == 1 else one.receiver for one in used]
        scripts += [tunnel.script(end, 3 - end) for tunnel in tunnels]
        node.run(["sh", "-eu"], input="\n".join(scripts))
    lab.sender.run(["sh", "-eu"], input="\n".join(tunnel.rules() for tunnel in tunnels))
