"""VXLAN of guests on a bridge of this host: bridged packets, which iptables sees by br_netfilter.

The kernel drops queued clones of a packet that a bridge floods as long as they share a conntrack
entry that is not confirmed yet. Each packet here therefore opens a flow of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csumfix_lab.node import Node
from csumfix_lab.sandbox import Sandbox
from tests.lab.harness import LANES, service

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"
COUNT = 200
GROUPS = {"4": "239.1.2.3", "6": "ff05::123"}
UNICAST = {"4": "198.51.100.3", "6": "fd09::3"}

SEND = """
import socket, sys
target, count, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in target else socket.AF_INET
for number in range(count):
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind(("", first + number))
        sender.sendto(number.to_bytes(4, "big"), (target, 8472))
"""

RECEIVE = """
import json, select, socket, struct, sys
group = sys.argv[1]
family = socket.AF_INET6 if ":" in group else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
sock.bind(("", 8472))
index = struct.pack("=i", socket.if_nametoindex("eth0"))
if family == socket.AF_INET6:
    join = socket.inet_pton(family, group) + index
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, join)
else:
    join = socket.inet_pton(family, group) + bytes(4) + index
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
print("listening", flush=True)
numbers, sources = [], [sock, sys.stdin]
while True:
    ready, _, _ = select.select(sources, [], [], 0.5 if len(sources) == 1 else None)
    if not ready:
        break
    if sock in ready:
        numbers.append(int.from_bytes(sock.recv(100), "big"))
    else:
        sources.remove(sys.stdin)
print(json.dumps({"arrived": len(numbers), "different": len(set(numbers))}))
"""

ACCEPT = """
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(0, lambda packet: packet.accept(), max_len=65536)
print("listening", flush=True)
queue.run()
"""


class Bridge:
    """A host whose bridge floods what guest "a" sends to guests "b" and "c"."""

    def __init__(self, sandbox: Sandbox, iptables: str) -> None:
        self._iptables = iptables
        self.host = Node(sandbox, "host")
        self.guests = {name: Node(sandbox, name) for name in "abc"}
        # Without learning the bridge knows no guest's port and sends everything everywhere.
        self._script(self.host, "ip link add br0 up type bridge mcast_snooping 0 ageing_time 0")
        for number, (name, guest) in enumerate(self.guests.items(), 1):
            self._script(
                self.host,
                f"ip link add {name}0 master br0 up type veth peer name eth0 netns {name}\n"
                f"bridge link set dev {name}0 learning off",
            )
            self._script(
                guest,
                f"ip link set eth0 up address 02:00:00:00:00:0{number}\n"
                f"ip address add 198.51.100.{number}/24 dev eth0\n"
                f"ip address add fd09::{number}/64 dev eth0 nodad\n"
                "ip route add 224.0.0.0/4 dev eth0",
            )
        for address in UNICAST.values():
            neighbour = f"{address} lladdr 02:00:00:00:00:03 dev eth0"
            self._script(self.guests["a"], f"ip neighbour replace {neighbour}")
        for tool in ("iptables", "ip6tables"):  # switches conntrack on
            name = iptables.replace("iptables", tool)
            rule = "-t mangle -A PREROUTING -m conntrack --ctstate NEW"
            self.host.run([name, *rule.split()])

    @staticmethod
    def _script(node: Node, script: str) -> None:
        node.run(["sh", "-eu"], input=script)

    def apply(self, *options: str) -> None:
        arguments = ["apply", "--lane=queue", "--port=8472", *options]
        self.host.run([str(SCRIPT), *arguments], env={"CSUMFIX_IPTABLES": self._iptables})

    @contextmanager
    def listener(self) -> Iterator[None]:
        """Accept whatever is queued."""
        process = self.host.popen([sys.executable, "-c", ACCEPT], stdout=subprocess.PIPE)
        try:
            assert process.stdout
            assert process.stdout.readline() == "listening\n"
            yield
        finally:
            process.kill()
            process.communicate()

    def arrived(self, target: str, group: str, first: int = 40000) -> int:
        """Send and return how many different packets arrived at "c"; none may arrive twice.

        The last port gets the packet itself, and loses nothing: that is the port of "b".
        """
        process = self.guests["c"].popen(
            [sys.executable, "-c", RECEIVE, group], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        self.guests["a"].run([sys.executable, "-c", SEND, target, str(COUNT), str(first)])
        out, _ = process.communicate(timeout=30)
        result = json.loads(out)
        assert result["arrived"] == result["different"]
        return int(result["different"])


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def bridge(request: pytest.FixtureRequest) -> Iterator[Bridge]:
    sandbox = Sandbox("host", "a", "b", "c")
    try:
        yield Bridge(sandbox, request.param)
    finally:
        sandbox.close()


@pytest.mark.parametrize("kind", ["unicast flood", "multicast"])
@pytest.mark.parametrize("family", ["4", "6"])
def test_no_flooded_packet_is_lost(bridge: Bridge, family: str, kind: str) -> None:
    target = GROUPS[family] if kind == "multicast" else UNICAST[family]
    assert bridge.arrived(target, GROUPS[family]) == COUNT, "the bridge must work"
    with bridge.listener():
        bridge.apply()
        assert bridge.arrived(target, GROUPS[family], first=41000) == COUNT
        bridge.apply("--bridged=queue")  # shows that the test could have failed
        assert bridge.arrived(target, GROUPS[family], first=42000) < COUNT / 2


# Head-end replication: the host's own vxlan device is a port of its bridge, and sends a copy of
# what a guest broadcasts to each remote end.


class Replication:
    """A host with guest "a" on its bridge, and remote hosts "b" and "c" behind a tunnel."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.host = Node(sandbox, "host")
        self.guest = Node(sandbox, "a")
        self.remotes = [Node(sandbox, name) for name in "bc"]
        self._script(
            self.host,
            """
ip link add wire up type bridge mcast_snooping 0
ip addr add 198.51.100.1/24 dev wire
ip link add br0 up type bridge mcast_snooping 0
ip link add a0 master br0 up type veth peer name eth0 netns a
ip link add vx0 type vxlan id 7 dstport 8472 local 198.51.100.1 udpcsum
ip link set vx0 master br0 up
bridge fdb append 00:00:00:00:00:00 dev vx0 dst 198.51.100.2
bridge fdb append 00:00:00:00:00:00 dev vx0 dst 198.51.100.3
iptables -t nat -A POSTROUTING -p udp --dport 8472 -j MASQUERADE --random-fully
""",
        )
        self._script(self.guest, "ip addr add 10.9.0.1/24 dev eth0; ip link set eth0 up")
        for number, remote in enumerate(self.remotes, 2):
            name = remote.name
            self._script(
                self.host,
                f"ip link add {name}0 master wire up type veth peer name eth0 netns {name}\n"
                f"ethtool -K {name}0 tx off tso off gso off gro off",
            )
            self._script(
                remote,
                f"""
ip addr add 198.51.100.{number}/24 dev eth0
ip link set eth0 up
ip link add vx0 type vxlan id 7 dstport 8472 local 198.51.100.{number} udpcsum
ip addr add 10.9.0.{number}/24 broadcast 10.9.0.255 dev vx0
ip link set vx0 up
""",
            )

    @staticmethod
    def _script(node: Node, script: str) -> None:
        node.run(["sh", "-eu"], input=script)

    def arrived(self, size: int, count: int = 50) -> list[tuple[int, int]]:
        """Broadcast datagrams; return how many came to each remote, and how many differed."""
        listeners = [
            remote.popen(
                [sys.executable, "-c", LISTEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for remote in self.remotes
        ]
        for listener in listeners:
            assert listener.stdout
            assert listener.stdout.readline() == "listening\n"
        self.guest.run([sys.executable, "-c", BROADCAST, str(count), str(size)])
        results = [json.loads(one.communicate(timeout=30)[0]) for one in listeners]
        return [(result["arrived"], result["different"]) for result in results]


BROADCAST = """
import socket, sys, time
count, size = map(int, sys.argv[1:])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for number in range(count):
        sock.sendto(number.to_bytes(4, "big") * (size // 4), ("10.9.0.255", 7000))
        time.sleep(0.002)
"""

LISTEN = """
import json, select, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", 7000))
print("listening", flush=True)
intact, sources = [], [sock, sys.stdin]
while ready := select.select(sources, [], [], 0.5 if len(sources) == 1 else None)[0]:
    if sock in ready:
        data = sock.recv(65536)
        if data == data[:4] * (len(data) // 4):
            intact.append(data[:4])
    else:
        sources.remove(sys.stdin)
print(json.dumps({"arrived": len(intact), "different": len(set(intact))}))
"""


@pytest.fixture
def replication() -> Iterator[Replication]:
    sandbox = Sandbox("host", "a", "b", "c")
    try:
        yield Replication(sandbox)
    finally:
        sandbox.close()


@LANES
@pytest.mark.parametrize(
    "filtered", [False, True], ids=["without br_netfilter", "with br_netfilter"]
)
def test_each_copy_of_head_end_replication_arrives_once(
    replication: Replication, lane: str, filtered: bool
) -> None:
    setting = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    replication.host.run(["sh", "-c", f"echo {int(filtered)} >{setting}"])
    assert replication.arrived(400) == [(0, 0), (0, 0)], "the bug must show"
    with service(replication.host, lane):
        for size in (64, 1200):
            assert replication.arrived(size) == [(50, 50), (50, 50)]
    assert replication.arrived(400) == [(0, 0), (0, 0)]
