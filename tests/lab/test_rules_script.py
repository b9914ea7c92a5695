"""csumfix-rules against real tables, in throwaway network namespaces.

Each test has a user, network and mount namespace of its own, so no privileges are needed. The
namespaces live as long as one process that reads from a pipe of ours; however pytest ends, the
pipe closes and everything is gone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

# Everything that must survive us: chains, rules before and after, and comments made to mislead.
FOREIGN_RULES = r"""*mangle
:PREROUTING ACCEPT [0:0]
:FOREIGN - [0:0]
:CSUMFIX2 - [0:0]
:CSUMFIX-KERNEL2 - [0:0]
[1:100] -A PREROUTING -p udp -m comment --comment "-j CSUMFIX-QUEUE" -j FOREIGN
[2:200] -A OUTPUT -p sctp -m comment --comment "x \" -j CSUMFIX-KERNEL" -j CSUMFIX-KERNEL2
[3:300] -A POSTROUTING -p sctp -m comment --comment "a rule -j CSUMFIX" -j RETURN
[4:400] -A POSTROUTING -p tcp -m comment --comment "csumfix:0badcafe:queue-0" -j FOREIGN
[5:500] -A FOREIGN -m mark --mark 0x4000/0x4000 -j ACCEPT
[6:600] -A CSUMFIX2 -j RETURN
[7:700] -A CSUMFIX-KERNEL2 -g CSUMFIX2
COMMIT
"""

# What version 0.1.0 loaded, with "csumfix trace" running.
OLD_RULES = """*mangle
:CSUMFIX - [0:0]
:CSUMFIX-TRACE - [0:0]
-A CSUMFIX -m conntrack ! --ctstate SNAT,DNAT --ctstatus CONFIRMED -m comment --comment "csumfix:db4c2180:no-nat" -j RETURN
-A CSUMFIX -p udp -m length --length 0:1500 -m comment --comment "csumfix:db4c2180:queue-0" -j NFQUEUE --queue-num 0 --queue-bypass
-A CSUMFIX-TRACE -p udp -m length --length 0:1500 -m limit --limit 100/s --limit-burst 100 -m comment --comment "csumfix-trace:12345678:queue-9" -j NFQUEUE --queue-num 9 --queue-bypass
-A POSTROUTING -p udp -m multiport --dports 4789,8472 -m comment --comment "csumfix-trace:jump:4789,8472" -j CSUMFIX-TRACE
-A POSTROUTING -p udp -m multiport --dports 4789,8472 -m comment --comment "csumfix:jump:4789,8472" -j CSUMFIX
COMMIT
"""  # noqa: E501

SEND = """
import socket, sys
family, target, source_port, port, size, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
sender = socket.socket(socket.AF_INET6 if family == "6" else socket.AF_INET, socket.SOCK_DGRAM)
sender.bind(("", source_port))
for _ in range(count):
    sender.sendto(bytes(size), (target, port))
"""


@dataclass
class Node:
    """A namespace, and the iptables variant to use in it."""

    pid: int
    iptables: str

    def command(self, *arguments: str) -> list[str]:
        enter = ["nsenter", "--target", str(self.pid), "--user", "--preserve-credentials"]
        return [*enter, "--net", "--mount", *arguments]

    def run(
        self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
            env={"PATH": PATH, "CSUMFIX_IPTABLES": self.iptables, **(env or {})},
        )

    def must(self, *arguments: str, stdin: str = "") -> str:
        result = self.run(*arguments, stdin=stdin)
        assert result.returncode == 0, result
        return result.stdout

    def rules(
        self, *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self.run(str(SCRIPT), *arguments, env=env)

    def apply(self, *arguments: str) -> None:
        result = self.rules("apply", *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    def remove(self, *arguments: str) -> None:
        result = self.rules("remove", *arguments)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    def check(self, *arguments: str) -> str:
        """Return what check says is wrong; nothing if all is well."""
        result = self.rules("check", *arguments)
        assert result.stderr == ""
        assert result.returncode == (1 if result.stdout else 0), result
        for line in result.stdout.splitlines():
            assert re.fullmatch(r"difference family=[46] lane=(kernel|queue) .*what=\w+.*", line)
        return result.stdout

    def status(self, *arguments: str) -> str:
        return self.rules("status", *arguments).stdout

    def packets(self, family: str) -> dict[str, int]:
        """Return the packet counters by lane and role, such as "kernel jump", without zeros."""
        row = r"lane=(\w+) rule=(\S+) packets=(\d+)"
        found = re.findall(row, self.status("--family", family))
        return {f"{lane} {role}": int(packets) for lane, role, packets in found if packets != "0"}

    def conntrack_entries(self) -> int:
        return int(self.must("cat", "/proc/sys/net/netfilter/nf_conntrack_count"))

    def tool(self, family: str, suffix: str = "") -> str:
        return self.iptables.replace("iptables", f"ip{family.strip('4')}tables") + suffix

    def table(self, family: str = "4") -> str:
        """Return table mangle with the counters of all rules.

        Left out are comments, which carry the time, and the counters of the built-in chains'
        policies, which legacy iptables sets to 0 at every change, be it "iptables -A".
        """
        saved = self.must(self.tool(family, "-save"), "-c", "-t", "mangle")
        saved = re.sub(r"^#.*\n", "", saved, flags=re.MULTILINE)
        return re.sub(r"^(:\w+ ACCEPT) .*", r"\1", saved, flags=re.MULTILINE)

    def add_device(self) -> None:
        """Add a device that swallows packets, so that they leave through POSTROUTING.

        Without ARP, packets carry its own address, which the other end takes for a stranger's.
        """
        self.must("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
        self.must("ip", "address", "add", "10.9.0.1/24", "dev", "d0")
        self.must("ip", "address", "add", "fd09::1/64", "dev", "d0", "nodad")
        self.must("ip", "link", "set", "d1", "up")
        self.must("ip", "link", "set", "d0", "up", "arp", "off")

    def add_set(self, timeout: int = 5) -> None:
        """Add the set of flows that are queued."""
        kind = ["bitmap:port", "range", "0-65535", "timeout", str(timeout)]
        self.must("ipset", "create", "csumfix-flows", *kind)

    def send(self, family: str, host: int, **changes: int) -> None:
        """Send UDP packets: changes to sport, port, size (of the payload) and count."""
        target = f"fd09::{host}" if family == "6" else f"10.9.0.{host}"
        numbers = {"sport": 40000, "port": 8472, "size": 100, "count": 1} | changes
        self.must(sys.executable, "-Sc", SEND, family, target, *map(str, numbers.values()))


def assert_error(
    result: subprocess.CompletedProcess[str], status: int, *words: str, output: str = ""
) -> None:
    assert result.returncode == status, result
    assert re.fullmatch(r"csumfix-rules: [ -~]+: [ -~]+\n", result.stderr), result.stderr
    assert result.stdout == output
    for word in words:
        assert word in result.stderr


@contextmanager
def namespace(iptables: str) -> Iterator[Node]:
    # /run is for legacy iptables' lock file.
    keeper = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--net", "--mount",
         "sh", "-ec", "mount -t tmpfs none /run; echo ready; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with keeper:  # closes the pipes and waits
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n", "cannot make a namespace"
        yield Node(keeper.pid, iptables)


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with namespace(request.param) as made:
        yield made


@pytest.fixture
def legacy() -> Iterator[Node]:
    with namespace("iptables-legacy") as made:
        yield made


# ---------------------------------------------------------------------------- life cycle

LANES = ("--kernel-port=8472", "--queue-port=4789", "--gate=none", "--bridged=queue")
"""Both lanes, each for a port of its own."""

BACKEND = "backend=iptables why=it was asked for\n"

LEAVING = ("--leaving-port=8472", "--queue-port=4789", "--bridged=queue")


def test_life_cycle(node: Node) -> None:
    assert node.check(*LANES) == "".join(
        f"difference family={family} lane={lane} what=missing chain=CSUMFIX-{lane.upper()}\n"
        for family in "46"
        for lane in ("kernel", "queue")
    )
    absent = node.rules("status")
    assert absent.returncode == 1
    assert absent.stdout == BACKEND + "".join(
        f"family={family} lane=kernel state=absent ports=- gate=-\n"
        f"family={family} lane=queue state=absent ports=- queues=- leaving=- record=- bridged=-\n"
        for family in "46"
    )
    node.apply(*LANES)
    assert node.check(*LANES) == ""
    status = node.rules("status")
    assert status.returncode == 0
    assert status.stdout.removeprefix(BACKEND).splitlines() == [
        f"family={family} lane={rest}"
        for family in "46"
        for rest in (
            "kernel state=present ports=8472 gate=none",
            "kernel rule=jump packets=0 bytes=0 "
            "text=-A OUTPUT -p udp -m udp --dport 8472 -j CSUMFIX-KERNEL",
            "kernel rule=fill-8472 packets=0 bytes=0 "
            "text=-A CSUMFIX-KERNEL -p udp -m udp --dport 8472 -j CHECKSUM --checksum-fill",
            "queue state=present ports=4789 queues=0 leaving=- record=- bridged=queue",
            "queue rule=jump packets=0 bytes=0 "
            "text=-A POSTROUTING -p udp -m udp --dport 4789 -j CSUMFIX-QUEUE",
            "queue rule=queue-0 packets=0 bytes=0 "
            "text=-A CSUMFIX-QUEUE -j NFQUEUE --queue-num 0 --queue-bypass",
        )
    ]
    node.remove()
    assert node.rules("status").stdout == absent.stdout
    assert "CSUMFIX" not in node.table("4") + node.table("6")
    node.remove()


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"], ["busybox", "sh"]], ids=" ".join)
def test_every_shell(node: Node, shell: list[str], tmp_path: Path) -> None:
    """In busybox with the tools of busybox, too."""
    if shell[0] == "busybox":
        for tool in ("awk", "cat", "cut", "grep", "sed", "sort", "tr"):
            (tmp_path / tool).symlink_to("/usr/bin/busybox")
    path = f"{tmp_path}:/usr/bin:/bin"
    node.must(node.tool("4", "-restore"), stdin=OLD_RULES)
    for command in ("apply", "check", "status", "remove"):
        arguments = [command, *LANES, "--queues=3"]
        result = node.run(*shell, str(SCRIPT), *arguments, env={"PATH": path})
        assert (result.returncode, result.stderr) == (0, "")
    assert "CSUMFIX" not in node.table()


@pytest.mark.parametrize("gate", ["conntrack", "none"])
def test_apply_loads_what_show_prints(node: Node, gate: str) -> None:
    options = [*LANES, "--queues", "3", "--queue-base", "5", "--family", "4", "--gate", gate]
    shown = node.rules("show", *options).stdout
    assert shown.startswith(f"# {node.iptables}-restore --noflush\n")
    node.apply(*options)
    applied = node.table()
    node.remove()
    node.must(node.tool("4", "-restore"), "--noflush", stdin=shown)
    assert node.check(*options) == ""
    assert node.table() == applied


def test_apply_again_keeps_counting(node: Node) -> None:
    node.add_device()
    node.apply("--lane=both")
    node.send("4", 2, count=3)
    node.send("6", 2, count=4)
    before = node.status()
    assert node.packets("4")["queue queue-0"] == 3
    assert node.packets("6")["kernel fill-8472"] == 4
    node.apply("--lane=both")
    assert node.status() == before


def test_rules_that_stay_keep_their_counters(node: Node) -> None:
    """A tunnel that comes or goes, or another lane, is no reason to forget what was counted."""
    node.add_device()
    node.add_set()
    node.apply("--port=8472", "--port=4789")
    node.send("4", 2, count=3)
    node.apply("--port=8472", "--port=4790", "--gate=conntrack")
    assert node.packets("4") == {"kernel fill-8472": 3}
    node.apply("--port=8472", "--port=4790", "--queue-port=4789", "--gate=conntrack")
    node.send("4", 2, port=4789, count=5)
    node.apply("--kernel-port=8472", "--queue-port=4789", "--leaving-port=53")
    assert node.packets("4") == {
        "kernel fill-8472": 3, "queue jump": 5, "queue queue-0": 5
    }  # fmt: skip


def test_other_options_replace_the_rules(node: Node) -> None:
    node.apply("--lane=queue", "--queues", "2")
    assert "what=edited" in node.check("--lane=queue", "--queues", "3")
    node.apply("--lane=queue", "--queues", "3")
    assert node.check("--lane=queue", "--queues", "3") == ""
    assert node.status().count("rule=jump") == 2
    assert "queues=0,1,2 " in node.status()
    assert "lane=queue what=unwanted chain=CSUMFIX-QUEUE\n" in node.check()
    node.apply()
    assert node.check() == ""
    assert "CSUMFIX-QUEUE" not in node.table()


def test_no_packet_slips_through_while_rules_are_replaced(node: Node) -> None:
    """A queued packet skips the rest of the table: what the last rule counts was not queued."""
    node.add_device()
    node.apply("--lane=queue")
    node.must(node.iptables, "-t", "mangle", "-A", "POSTROUTING", "-p", "udp", "-j", "RETURN")
    arguments = ["4", "10.9.0.2", "40000", "8472", "100", "100000000"]
    with subprocess.Popen(node.command(sys.executable, "-Sc", SEND, *arguments)) as sender:
        try:
            for queues in "2345":
                node.apply("--lane=queue", "--queues", queues)
            assert sender.poll() is None, "the sender must outlast the changes"
            assert node.packets("4")["queue jump"] > 100
        finally:
            sender.kill()
    assert "[0:0] -A POSTROUTING -p udp -j RETURN\n" in node.table()


def test_a_hundred_ports(node: Node) -> None:
    node.add_device()
    options = [
        "--lane=both",
        "--gate=conntrack",
        *(f"--port={port}" for port in range(9000, 9100)),
    ]
    node.apply(*options)
    assert node.check(*options) == ""
    assert node.status().count("state=present ports=9000,9001,") == 4
    for port in (9000, 9014, 9015, 9099):
        node.send("4", 2, port=port)
        assert node.packets("4")[f"kernel fill-{port}"] == 1
    assert node.packets("4")["queue queue-0"] == 4
    node.remove()
    assert "CSUMFIX" not in node.table()


# ---------------------------------------------------------------------------- rules of others


@pytest.mark.parametrize("family", ["4", "6"])
def test_foreign_rules_survive_byte_for_byte(node: Node, family: str) -> None:
    node.must(node.tool(family, "-restore"), "--counters", stdin=FOREIGN_RULES)
    node.add_set()
    foreign = node.table(family)
    assert foreign.count("-j CSUMFIX") == 4, "the bait must be there"
    assert "absent" in node.status("--family", family)
    node.remove()
    assert node.table(family) == foreign
    node.apply(*LANES)
    assert node.check(*LANES) == ""
    assert not set(foreign.splitlines()) - set(node.table(family).splitlines())
    node.apply("--leaving-port=1", "--lane=both")
    node.remove()
    assert node.table(family) == foreign


def targets(node: Node, chain: str) -> list[str]:
    """Return where the rules of a chain lead, in order."""
    return re.findall(rf" -A {chain} .*-[jg] (\S+)$", node.table(), re.MULTILINE)


def test_jumps_are_first_in_output_and_last_in_postrouting(node: Node) -> None:
    """Another's ACCEPT must not skip the kernel lane; the queue must not skip another's rules."""
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    node.must(node.iptables, "-t", "mangle", "-I", "OUTPUT", "-p", "udp", "-j", "ACCEPT")
    ports = [f"--port={port}" for port in range(1, 17)]
    node.apply("--lane=both", *ports)
    assert targets(node, "OUTPUT") == [
        "CSUMFIX-KERNEL",
        "CSUMFIX-KERNEL",
        "ACCEPT",
        "CSUMFIX-KERNEL2",
    ]
    assert "--dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 " in node.table()
    assert targets(node, "POSTROUTING")[2:] == ["CSUMFIX-QUEUE", "CSUMFIX-QUEUE"]
    node.apply("--lane=both", *ports[1:])
    assert targets(node, "OUTPUT") == ["CSUMFIX-KERNEL", "ACCEPT", "CSUMFIX-KERNEL2"]
    assert targets(node, "POSTROUTING")[2:] == ["CSUMFIX-QUEUE"]


def test_jumps_stay_where_they_are(node: Node) -> None:
    """Two programs that both insist on a place would take it from each other for ever."""
    node.apply("--lane=both")
    node.must(node.iptables, "-t", "mangle", "-I", "OUTPUT", "-p", "sctp", "-j", "RETURN")
    node.must(node.iptables, "-t", "mangle", "-A", "POSTROUTING", "-p", "sctp", "-j", "RETURN")
    assert node.check("--lane=both") == ""
    node.apply("--lane=both", "--queues=2")
    assert targets(node, "OUTPUT") == ["RETURN", "CSUMFIX-KERNEL"]
    assert targets(node, "POSTROUTING") == ["CSUMFIX-QUEUE", "RETURN"]


def test_flush_is_noticed_and_restored(node: Node) -> None:
    node.apply(*LANES)
    node.must(node.iptables, "-t", "mangle", "-F")
    found = node.check(*LANES)
    assert found.count("family=4") == 4
    assert "lane=kernel rule=jump what=jump how=missing text=-A OUTPUT " in found
    assert "lane=queue rule=queue-0 what=missing text=-A CSUMFIX-QUEUE " in found
    assert node.status("--family=4").count("state=incomplete") == 2
    assert node.rules("status", "--family", "4").returncode == 1
    assert node.rules("status").returncode == 0  # IPv6 is still there
    node.apply(*LANES)
    assert node.check(*LANES) == ""


FILL = ["-p", "udp", "-m", "udp", "--dport", "8472", "-j", "CHECKSUM", "--checksum-fill"]
STILL_WHOLE = (
    ["-D", "CSUMFIX-LEAVE", "1"],  # as with --record
    ["-D", "POSTROUTING", "1"],  # as without --queue-port
)
"""After these changes the rules are those that other options would load."""

ALL_CHAINS = ("--gate=conntrack", "--kernel-port=8472", "--kernel-port=4789", *LEAVING)


@pytest.mark.parametrize(
    ("change", "lane", "found"),
    [
        (["-F", "CSUMFIX-KERNEL"], "kernel", "rule=gate what=missing"),
        (["-D", "CSUMFIX-KERNEL", "1"], "kernel", "rule=gate what=missing"),
        (["-D", "CSUMFIX-KERNEL", "2"], "kernel", "rule=nat what=missing"),
        (["-D", "CSUMFIX-KERNEL", "3"], "kernel", "rule=fill-4789 what=missing"),
        (["-I", "CSUMFIX-KERNEL", "3", *FILL], "kernel", "rule=fill-8472 what=edited"),
        (["-A", "CSUMFIX-KERNEL", *FILL], "kernel", "rule=fill-8472 what=edited"),
        (["-R", "CSUMFIX-KERNEL", "3", *FILL], "kernel", "rule=fill-4789 what=missing"),
        (["-R", "CSUMFIX-KERNEL", "4", "-j", "DROP"], "kernel", "rule=foreign what=edited"),
        (["-A", "CSUMFIX-QUEUE", "-j", "ACCEPT"], "queue", "rule=foreign what=foreign"),
        (["-R", "CSUMFIX-QUEUE", "1", "-j", "NFQUEUE"], "queue", "rule=foreign what=edited"),
        (
            ["-I", "CSUMFIX-QUEUE", "-m", "comment", "--comment", "hello", "-j", "ACCEPT"],
            "queue",
            "rule=foreign what=foreign",
        ),
        (["-D", "CSUMFIX-LEAVE", "1"], "queue", "rule=left what=missing"),
        (["-D", "CSUMFIX-LEAVE", "2"], "queue", "rule=record what=missing"),
        (["-R", "CSUMFIX-LEAVE", "3", "-j", "CSUMFIX-QUEUE"], "queue", "rule=foreign what=edited"),
        (["-D", "POSTROUTING", "1"], "queue", "rule=jump what=jump how=missing"),
        (["-D", "POSTROUTING", "2"], "queue", "rule=leave-jump what=jump how=missing"),
        (["-D", "OUTPUT", "1"], "kernel", "rule=jump what=jump how=missing"),
        (
            ["-R", "OUTPUT", "1", "-j", "CSUMFIX-KERNEL"],
            "kernel",
            "rule=jump what=jump how=edited",
        ),
    ],
    ids=str,
)
def test_edited_rules_are_noticed_and_restored(
    node: Node, change: list[str], lane: str, found: str
) -> None:
    node.add_set()
    node.apply(*ALL_CHAINS)
    good = sorted(node.table("6").splitlines())
    node.must(node.tool("6"), "-t", "mangle", *change)
    differences = node.check(*ALL_CHAINS)
    assert f"difference family=6 lane={lane} {found} " in differences
    assert "family=4" not in differences
    assert ("state=incomplete" in node.status()) is (change not in STILL_WHOLE)
    node.apply(*ALL_CHAINS)
    assert node.check(*ALL_CHAINS) == ""
    assert sorted(node.table("6").splitlines()) == good


@pytest.mark.parametrize("chain", ["OUTPUT", "POSTROUTING", "PREROUTING", "FOREIGN"])
@pytest.mark.parametrize("way", ["-j", "-g"])
def test_stray_jumps_are_removed(node: Node, chain: str, way: str) -> None:
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    foreign = node.table()
    node.apply(*LANES)
    good = node.table()

    def add_jumps() -> None:
        for match in (["-p", "udp"], ["-p", "udp"], ["-m", "comment", "--comment", "my own"]):
            for target in ("CSUMFIX-KERNEL", "CSUMFIX-QUEUE"):
                node.must(node.iptables, "-t", "mangle", "-A", chain, *match, way, target)

    add_jumps()
    found = node.check(*LANES)
    assert found.count("what=jump how=foreign") == 6
    assert "comment" in found
    node.apply(*LANES)
    assert node.check(*LANES) == ""
    assert node.table() == good
    add_jumps()
    node.remove()
    assert node.table() == foreign


# ---------------------------------------------------------------------------- upgrade


@pytest.mark.parametrize("how", ["apply", "remove"])
def test_rules_of_the_old_version_are_removed(node: Node, how: str) -> None:
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    foreign = node.table()
    for family in "46":
        node.must(node.tool(family, "-restore"), "--noflush", stdin=OLD_RULES)
    found = node.check()
    for chain in ("CSUMFIX", "CSUMFIX-TRACE"):
        assert f"family=4 lane=queue what=old-version chain={chain}\n" in found
    status = node.rules("status")
    assert status.returncode == 1
    assert "family=4 lane=queue state=incomplete" in status.stdout
    assert status.stdout.count("rule=old-version") == 10
    if how == "apply":
        node.apply()
        assert node.check() == ""
        assert "CSUMFIX-TRACE" not in node.table("6")
        assert node.table("6").count("CSUMFIX ") == 0
    node.remove()
    assert node.table() == foreign
    assert "CSUMFIX" not in node.table("6")


def test_old_rules_come_back_if_the_new_ones_are_refused(node: Node, tmp_path: Path) -> None:
    for family in "46":
        node.must(node.tool(family, "-restore"), stdin=OLD_RULES)
    tables = node.table("4"), node.table("6")
    refuse_ipv6(node, tmp_path)
    result = node.rules("apply", env={"PATH": f"{tmp_path}:{PATH}"})
    assert_error(result, 5, "IPv4 rules are as before", output=REFUSED_IPV6)
    assert (node.table("4"), node.table("6")) == tables


# ---------------------------------------------------------------------------- the gate


def test_conntrack_is_never_switched_on(node: Node) -> None:
    node.add_device()
    node.apply("--lane=both")
    assert node.status().count(" gate=none") == 2
    for family in "46":
        node.send(family, 2, count=10)
    assert node.conntrack_entries() == 0
    assert node.packets("4")["kernel fill-8472"] == 10

    node.apply("--lane=both", "--gate=conntrack")  # shows that the test could have failed
    for family in "46":
        node.send(family, 2, count=10)
    assert node.conntrack_entries() == 2
    assert node.packets("6")["kernel gate"] == 9


@pytest.mark.parametrize(("family", "other"), [("4", "6"), ("6", "4")])
def test_gate_is_used_for_the_family_that_is_tracked(node: Node, family: str, other: str) -> None:
    node.add_device()
    track = ["-t", "raw", "-A", "OUTPUT", "-p", "udp", "-m", "conntrack", "--ctstate", "NEW"]
    node.must(node.tool(family), *track)
    node.apply()
    assert node.status().count(" gate=none") == 2  # nothing is tracked yet
    node.send(family, 2)
    assert node.check() == (
        f"difference family={family} lane=kernel rule=gate what=missing text=-A CSUMFIX-KERNEL "
        "-m conntrack ! --ctstate SNAT,DNAT --ctstatus CONFIRMED -j RETURN\n"
        f"difference family={family} lane=kernel rule=nat what=missing text=-A CSUMFIX-KERNEL "
        "-m conntrack --ctstatus CONFIRMED\n"
    )
    node.apply()
    assert node.check() == ""
    assert (
        f"family={family} lane=kernel state=present ports=4789,8472 gate=conntrack"
        in node.status()
    )
    assert f"family={other} lane=kernel state=present ports=4789,8472 gate=none" in node.status()
    node.send(other, 2)
    assert node.conntrack_entries() == 1


def test_gate_stays_when_nothing_is_tracked(node: Node) -> None:
    """Or it would come and go with traffic."""
    node.apply("--gate=conntrack")
    assert node.conntrack_entries() == 0
    assert node.check() == ""
    node.apply("--port=8472")
    assert node.check("--gate=conntrack", "--port=8472") == ""
    assert "rule=gate what=foreign" in node.check("--gate=none", "--port=8472")
    node.apply("--gate=none", "--port=8472")
    assert node.check("--port=8472") == ""


# ---------------------------------------------------------------------------- families


@pytest.mark.parametrize(("family", "other"), [("4", "6"), ("6", "4")])
def test_one_family_after_both(node: Node, family: str, other: str) -> None:
    node.apply()
    unwanted = f"difference family={other} lane=kernel what=unwanted chain=CSUMFIX-KERNEL\n"
    assert node.check("--family", family) == unwanted
    node.apply("--family", family)
    assert node.check("--family", family) == ""
    assert f"family={other} lane=kernel what=missing" in node.check()
    assert "CSUMFIX" not in node.table(other)
    node.remove("--family", other)
    assert node.check("--family", family) == ""


def test_kernel_without_ipv6(node: Node) -> None:
    node.must("mount", "-t", "tmpfs", "none", "/proc")  # and so without /proc/net/if_inet6
    result = node.rules("apply")
    assert result.returncode == 0
    assert_error(result, 0, "IPv4 rules only")
    assert node.check() == ""
    assert node.status().count("state=") == 2
    assert_error(node.rules("apply", "--family", "6"), 5, "no IPv6")
    node.remove()
    assert "CSUMFIX" not in node.table()
    assert_error(node.rules("apply", "--lane=queue", "--queues", "2"), 2, "--sport-range")
    assert "CSUMFIX" not in node.table()


def test_missing_ip6tables(node: Node, tmp_path: Path) -> None:
    for suffix in ("-save", "-restore"):
        real = subprocess.run(
            ["which", node.iptables + suffix], env={"PATH": PATH}, capture_output=True, check=True
        )
        wrap(tmp_path, node.iptables + suffix, f'exec {real.stdout.decode().strip()} "$@"')
    name = str(tmp_path / node.iptables)
    assert_error(node.rules("apply", "--iptables", name), 3, "ip6tables", "--family")
    assert "CSUMFIX" not in node.table()
    node.apply("--iptables", name, "--family", "4")
    assert node.check("--iptables", name, "--family", "4") == ""
    result = node.rules("remove", "--iptables", name)
    assert_error(result, 0, "no ip6tables: IPv4 rules only")
    assert "CSUMFIX" not in node.table()


# ---------------------------------------------------------------------------- failures

REFUSED_IPV6 = "refused family=6 lane=kernel\n"


def wrap(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def refuse_ipv6(node: Node, directory: Path) -> None:
    """Put an ip6tables-restore there that accepts tests and refuses everything else."""
    name = node.tool("6", "-restore")
    wrap(
        directory,
        name,
        f'case "$*" in *--test*) PATH={PATH}; exec {name} "$@" ;; esac\n'
        "cat >/dev/null; echo 'ip6tables-restore: line 5 failed' >&2; exit 1",
    )


@pytest.mark.parametrize("before", ["absent", "same", "other options", "stray jump", "only IPv6"])
def test_ipv4_is_rolled_back_when_ipv6_is_refused(node: Node, tmp_path: Path, before: str) -> None:
    """The test run of ip6tables-restore passes, the real one is refused."""
    node.add_device()
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    if before == "same":
        node.apply(*LANES)
        node.must(node.tool("6"), "-t", "mangle", "-F", "CSUMFIX-QUEUE")
    elif before == "only IPv6":
        node.apply("--family", "6", "--lane=queue", "--queues", "2")
    elif before != "absent":
        node.apply("--lane=both", "--queues", "2")
    if before == "stray jump":
        stray = ["-p", "udp", "-m", "comment", "--comment", "stray", "-j", "CSUMFIX-QUEUE"]
        node.must(node.iptables, "-t", "mangle", "-A", "PREROUTING", *stray)
    node.send("4", 2, count=3)
    tables = node.table("4"), node.table("6")

    refuse_ipv6(node, tmp_path)
    result = node.rules("apply", *LANES, env={"PATH": f"{tmp_path}:{PATH}"})
    outcome = "nothing was changed" if before == "same" else "IPv4 rules are as before"
    words = [f"loading IPv6 rules failed, {outcome}", "line 5 failed", "modprobe"]
    output = REFUSED_IPV6 + REFUSED_IPV6.replace("kernel", "queue")
    assert_error(result, 5, *words, output=output)
    assert (node.table("4"), node.table("6")) == tables


def test_refusal_in_the_test_run_changes_nothing(node: Node, tmp_path: Path) -> None:
    node.apply("--queues", "2")
    tables = node.table("4"), node.table("6")
    wrap(tmp_path, node.tool("6", "-restore"), "echo \"Couldn't load match 'udp'\" >&2; exit 2")
    result = node.rules("apply", "--port=1", env={"PATH": f"{tmp_path}:{PATH}"})
    assert_error(result, 5, "IPv6 rules refused in a test", "match 'udp'", output=REFUSED_IPV6)
    assert (node.table("4"), node.table("6")) == tables


def test_refused_lane_is_named(node: Node, tmp_path: Path) -> None:
    """An iptables without the CHECKSUM target, as some distributions and kernels have it."""
    (library,) = Path("/usr/lib").glob("*/xtables")
    for extension in library.iterdir():
        if "CHECKSUM" not in extension.name:
            (tmp_path / extension.name).symlink_to(extension)
    without = {"XTABLES_LIBDIR": str(tmp_path)}
    node.apply("--lane=queue")
    tables = node.table("4"), node.table("6")
    result = node.rules("apply", *LANES, env=without)
    assert_error(result, 5, "CHECKSUM", output=REFUSED_IPV6.replace("6", "4") + REFUSED_IPV6)
    assert (node.table("4"), node.table("6")) == tables
    result = node.rules("apply", "--lane=queue", "--queues=2", env=without)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_missing_set_refuses_the_queue_lane(node: Node) -> None:
    node.apply()
    tables = node.table("4"), node.table("6")
    result = node.rules("apply", *LEAVING, "--kernel-port=8472", "--flows=missing")
    output = "".join(f"refused family={family} lane=queue\n" for family in "46")
    assert_error(result, 5, "no ipset missing", "ipset create missing bitmap:port", output=output)
    assert (node.table("4"), node.table("6")) == tables


@pytest.mark.parametrize("command", ["apply", "remove", "check", "status"])
def test_no_permission(node: Node, command: str) -> None:
    node.apply("--queues", "2")
    tables = node.table("4"), node.table("6")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    result = node.run(*drop, str(SCRIPT), command)
    assert_error(result, 4, "CAP_NET_ADMIN")
    assert (node.table("4"), node.table("6")) == tables


def test_lock_held_by_another_process(legacy: Node) -> None:
    hold = ["sh", "-ec", "exec 9>/run/xtables.lock; flock 9; echo held; exec cat"]
    with subprocess.Popen(
        legacy.command(*hold), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = legacy.rules("apply", env={"CSUMFIX_LOCK_WAIT": "1"})
        assert_error(result, 5, "xtables lock for more than 1 s", "CSUMFIX_LOCK_WAIT")
        assert "CSUMFIX" not in legacy.table()
        assert "what=missing" in legacy.check()  # reading needs no lock
    legacy.apply()


def test_lock_file_cannot_be_made(legacy: Node, tmp_path: Path) -> None:
    legacy.must("mount", "-o", "remount,ro", "/run")
    result = legacy.rules("apply")
    assert_error(result, 5, "/run/xtables.lock", "XTABLES_LOCKFILE")
    assert "CSUMFIX" not in legacy.table()
    elsewhere = {"XTABLES_LOCKFILE": str(tmp_path / "lock")}
    assert legacy.rules("apply", env=elsewhere).returncode == 0
    assert legacy.check() == ""


# ---------------------------------------------------------------------------- packets


@pytest.mark.parametrize("family", ["4", "6"])
def test_gate_finishes_what_nat_may_touch(node: Node, family: str) -> None:
    """That is opening packets, and all packets of flows that NAT rewrites.

    Hosts: 2 plain, 3 source NAT, 4 destination NAT, 5 not tracked, 6 MASQUERADE to the same port.
    """
    net, own = ("fd09::", "[fd09::1]") if family == "6" else ("10.9.0.", "10.9.0.1")
    to = f"[{net}7]" if family == "6" else f"{net}7"
    node.add_device()
    for rule in (
        f"nat -A POSTROUTING -d {net}3 -p udp -j SNAT --to-source {own}:1024-2000",
        f"nat -A POSTROUTING -d {net}6 -p udp -j MASQUERADE",
        f"nat -A OUTPUT -d {net}4 -p udp -j DNAT --to-destination {to}",
        f"raw -A OUTPUT -d {net}5 -p udp -j CT --notrack",
    ):
        node.must(node.tool(family), "-t", *rule.split())
    node.apply("--gate=conntrack")

    def counted(host: int) -> dict[str, int]:
        before = node.packets(family)
        node.send(family, host, count=10)
        after = node.packets(family)
        change = {role: after[role] - before.get(role, 0) for role in after}
        return {
            role: packets for role, packets in change.items() if packets and "jump" not in role
        }

    assert counted(2) == {"kernel fill-8472": 1, "kernel gate": 9}
    assert counted(2) == {"kernel gate": 10}
    assert counted(3) == {"kernel fill-8472": 10, "kernel nat": 9}
    assert counted(3) == {"kernel fill-8472": 10, "kernel nat": 10}
    assert counted(4) == {"kernel fill-8472": 10, "kernel nat": 9}
    assert counted(5) == {"kernel gate": 10}
    assert counted(6) == {"kernel fill-8472": 1, "kernel gate": 9}

    node.apply("--gate=none")
    assert counted(2) == {"kernel fill-8472": 10}
    assert counted(5) == {"kernel fill-8472": 10}


@pytest.mark.parametrize("family", ["4", "6"])
def test_each_lane_takes_whole_packets_of_its_ports(node: Node, family: str) -> None:
    node.add_device()
    node.apply(*LANES)
    node.send(family, 2, count=2)
    node.send(family, 2, port=4789, size=1, count=4)
    node.send(family, 2, port=4789, size=1400, count=4)
    node.send(family, 2, port=4788, count=5)
    assert node.packets(family) == {
        "kernel jump": 2, "kernel fill-8472": 2, "queue jump": 8, "queue queue-0": 8
    }  # fmt: skip
    node.apply("--lane=both", "--queue-base", "5", "--port", "4788")
    node.send(family, 2, port=4788)
    assert node.packets(family) == {
        "kernel jump": 1, "kernel fill-4788": 1, "queue jump": 1, "queue queue-5": 1
    }  # fmt: skip


@pytest.mark.parametrize("family", ["4", "6"])
def test_source_ports_are_divided_among_the_queues(node: Node, family: str) -> None:
    node.add_device()
    options = ["--queues", "3", "--queue-base", "8", "--sport-range", "40000:40299"]
    node.apply("--lane=queue", *options)
    for sport in (1, 39999, 40000, 40099, 40100, 40199, 40200, 40299, 40300, 65535):
        node.send(family, 2, sport=sport)
    assert node.packets(family) == {
        "queue jump": 10, "queue queue-8": 4, "queue queue-9": 2, "queue queue-10": 4
    }  # fmt: skip


@pytest.mark.parametrize("family", ["4", "6"])
def test_flows_leave_the_queue_lane_when_they_are_idle(node: Node, family: str) -> None:
    node.add_device()
    node.add_set(timeout=4)

    def counted(sport: int) -> dict[str, int]:
        before = node.packets(family)
        node.send(family, 2, sport=sport, count=5)
        after = node.packets(family)
        change = {role[6:]: after[role] - before.get(role, 0) for role in after}
        return {role: packets for role, packets in change.items() if packets}

    node.apply(*LEAVING, "--record")
    assert "ports=4789 queues=0 leaving=8472 record=yes" in node.status()
    assert counted(1000) == {"leave-jump": 5, "record": 5, "stay": 5, "queue-0": 5}
    node.apply(*LEAVING)
    assert node.check(*LEAVING) == ""
    assert "ports=4789 queues=0 leaving=8472 record=no" in node.status()
    assert counted(2000) == {"leave-jump": 5, "left": 5}
    for _ in range(12):  # longer than the set's entries last, but never idle for so long
        time.sleep(0.4)
        assert counted(1000) == {"leave-jump": 5, "record": 5, "stay": 5, "queue-0": 5}
    time.sleep(5)
    assert counted(1000) == {"leave-jump": 5, "left": 5}
    node.apply("--queue-port=4789")
    assert "CSUMFIX-LEAVE" not in node.table()
