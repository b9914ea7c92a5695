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
