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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

# Everything that must survive us: a chain, rules before and after, and comments made to mislead.
FOREIGN_RULES = r"""*mangle
:PREROUTING ACCEPT [0:0]
:FOREIGN - [0:0]
:CSUMFIX2 - [0:0]
[1:100] -A PREROUTING -p udp -m comment --comment "csumfix:jumping" -j FOREIGN
[2:200] -A POSTROUTING -p sctp -m comment --comment "x --comment \"csumfix:jump\" y" -j RETURN
[3:300] -A POSTROUTING -p tcp -m comment --comment "csumfix:0badcafe:queue-0" -j FOREIGN
[4:400] -A FOREIGN -m mark --mark 0x4000/0x4000 -j ACCEPT
[5:500] -A CSUMFIX2 -j RETURN
COMMIT
"""

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
        assert (result.returncode == 0) == (result.stderr == ""), result
        assert result.stdout == ""
        if result.returncode:
            assert_error(result, 1, "run apply")
        return result.stderr

    def status(self, *arguments: str) -> str:
        return self.rules("status", *arguments).stdout

    def packets(self, family: str) -> dict[str, int]:
        """Return the packet counters by role, without zeros."""
        found = re.findall(r"rule=(\S+) packets=(\d+)", self.status("--family", family))
        return {role: int(packets) for role, packets in found if packets != "0"}

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

    def send(self, family: str, host: int, **changes: int) -> None:
        """Send UDP packets: changes to sport, port, size (of the payload) and count."""
        target = f"fd09::{host}" if family == "6" else f"10.9.0.{host}"
        numbers = {"sport": 40000, "port": 8472, "size": 100, "count": 1} | changes
        self.must(sys.executable, "-Sc", SEND, family, target, *map(str, numbers.values()))


def assert_error(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert result.returncode == status, result
    assert re.fullmatch(r"csumfix-rules: [ -~]+: [ -~]+\n", result.stderr), result.stderr
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


def test_life_cycle(node: Node) -> None:
    assert "IPv4: no rules are loaded, IPv6: no rules are loaded" in node.check()
    absent = node.rules("status")
    assert absent.returncode == 1
    assert absent.stdout == (
        "family=4 state=absent digest=- queues=-\nfamily=6 state=absent digest=- queues=-\n"
    )
    node.apply()
    assert node.check() == ""
    status = node.rules("status")
    assert status.returncode == 0
    assert [re.sub(r"digest=[0-9a-f]{8} ", "", line) for line in status.stdout.splitlines()] == [
        f"family={family} {rest}"
        for family in "46"
        for rest in (
            "state=present queues=0",
            "rule=jump packets=0 bytes=0",
            "rule=queue-0 packets=0 bytes=0",
        )
    ]
    node.remove()
    assert node.rules("status").stdout == absent.stdout
    assert "CSUMFIX" not in node.table("4") + node.table("6")
    node.remove()


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"]], ids=["dash", "bash"])
def test_every_shell(node: Node, shell: list[str]) -> None:
    for command in ("apply", "check", "status", "remove"):
        arguments = [command, "--divert=nat", "--queues=3"]
        result = node.run(*shell, str(SCRIPT), *arguments, env={"PATH": "/usr/bin:/bin"})
        assert (result.returncode, result.stderr) == (0, "")


def test_apply_loads_what_show_prints(node: Node) -> None:
    options = ["--divert", "nat", "--queues", "3", "--queue-base", "5", "--family", "4"]
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
    node.apply()
    node.send("4", 2, count=3)
    node.send("6", 2, count=4)
    before = node.status()
    assert node.packets("4")["queue-0"] == 3
    assert node.packets("6")["queue-0"] == 4
    node.apply()
    assert node.status() == before


def test_other_options_replace_the_rules(node: Node) -> None:
    node.apply("--queues", "2")
    assert "rules for other options are loaded" in node.check("--queues", "3")
    node.apply("--queues", "3")
    assert node.check("--queues", "3") == ""
    assert node.status().count("rule=jump") == 2
    assert "queues=0,1,2\n" in node.status()


def test_no_packet_slips_through_while_rules_are_replaced(node: Node) -> None:
    """A queued packet skips the rest of the table: what the last rule counts was not queued."""
    node.add_device()
    node.apply()
    node.must(node.iptables, "-t", "mangle", "-A", "POSTROUTING", "-p", "udp", "-j", "RETURN")
    arguments = ["4", "10.9.0.2", "40000", "8472", "100", "1000000"]
    with subprocess.Popen(node.command(sys.executable, "-Sc", SEND, *arguments)) as sender:
        for queues in "2345":
            node.apply("--queues", queues)
        assert sender.poll() is None, "the sender must outlast the changes"
        assert node.packets("4")["jump"] > 100
        sender.kill()
    assert "[0:0] -A POSTROUTING -p udp -j RETURN\n" in node.table()


# ---------------------------------------------------------------------------- rules of others


@pytest.mark.parametrize("family", ["4", "6"])
def test_foreign_rules_survive_byte_for_byte(node: Node, family: str) -> None:
    node.must(node.tool(family, "-restore"), "--counters", stdin=FOREIGN_RULES)
    foreign = node.table(family)
    assert foreign.count("csumfix:") == 3, "the bait must be there"
    node.remove()
    assert node.table(family) == foreign
    node.apply("--divert", "nat")
    assert node.check("--divert", "nat") == ""
    assert not set(foreign.splitlines()) - set(node.table(family).splitlines())
    node.apply("--divert", "all")
    node.remove()
    assert node.table(family) == foreign


def test_jump_comes_after_the_rules_of_others(node: Node) -> None:
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    node.apply()
    postrouting = [line for line in node.table().splitlines() if " -A POSTROUTING" in line]
    assert len(postrouting) == 3
    assert "csumfix:jump" in postrouting[-1]


def test_flush_is_noticed_and_mended(node: Node) -> None:
    node.apply()
    node.must(node.iptables, "-t", "mangle", "-F")
    assert "IPv4: the jump from POSTROUTING is missing" in node.check()
    assert "family=4 state=incomplete" in node.status()
    assert node.rules("status", "--family", "4").returncode == 1
    assert node.rules("status").returncode == 0  # IPv6 is still there
    node.apply()
    assert node.check() == ""


@pytest.mark.parametrize(
    "change",
    [
        ["-F", "CSUMFIX"],
        ["-D", "CSUMFIX", "1"],
        ["-A", "CSUMFIX", "-j", "ACCEPT"],
        ["-I", "CSUMFIX", "-m", "comment", "--comment", "hello", "-j", "ACCEPT"],
        ["-D", "POSTROUTING", "1"],
    ],
    ids=" ".join,
)
def test_changed_rules_are_noticed_and_mended(node: Node, change: list[str]) -> None:
    node.apply()
    node.must(node.tool("6"), "-t", "mangle", *change)
    assert "check: IPv6: " in node.check()
    node.apply()
    assert node.check() == ""


@pytest.mark.parametrize("chain", ["POSTROUTING", "PREROUTING"])
def test_stray_jumps_are_repaired_to_one(node: Node, chain: str) -> None:
    node.apply()
    good = node.table()
    comment = ["-m", "comment", "--comment", "csumfix:jump:4789,8472"]
    for match in (["-p", "udp"], ["-p", "udp"], []):
        node.must(node.iptables, "-t", "mangle", "-A", chain, *match, *comment, "-j", "CSUMFIX")
    assert "there is more than one jump" in node.check()
    node.apply()
    assert node.check() == ""
    assert node.table() == good
    node.must(node.iptables, "-t", "mangle", "-A", chain, *comment, "-j", "CSUMFIX")
    node.remove()
    assert "CSUMFIX" not in node.table()


def test_foreign_jump_keeps_the_chain_but_not_the_other_family(node: Node) -> None:
    node.apply()
    node.must(node.iptables, "-t", "mangle", "-A", "PREROUTING", "-j", "CSUMFIX")
    before = node.table()
    assert_error(node.rules("remove"), 5, "rules of IPv4 failed", "delete it first")
    assert node.table() == before  # all or nothing
    assert "CSUMFIX" not in node.table("6")


# ---------------------------------------------------------------------------- trace

TRACE = ("--trace", "--queue-base=65000", "--limit=10000")


def jumps(node: Node) -> list[str]:
    """Return where the rules of POSTROUTING lead, in order."""
    return re.findall(r" -A POSTROUTING .* -j (\S+)", node.table())


@pytest.mark.parametrize("first", ["service", "trace"])
def test_trace_stands_directly_before_the_service(node: Node, first: str) -> None:
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    node.apply(*(() if first == "service" else TRACE))
    node.apply(*(TRACE if first == "service" else ()))
    order = ["RETURN", "FOREIGN", "CSUMFIX-TRACE", "CSUMFIX"]
    assert jumps(node) == order
    node.apply(*TRACE, "--port=4789", "--queues=2")  # the jump must go and come again
    assert jumps(node) == order
    node.apply("--port=4789")
    assert jumps(node) == order


@pytest.mark.parametrize(("one", "other"), [((), TRACE), (TRACE, ())], ids=["service", "trace"])
def test_trace_and_service_leave_each_other_alone(
    node: Node, one: tuple[str, ...], other: tuple[str, ...]
) -> None:
    node.apply(*one)
    alone = node.table("4"), node.table("6")
    whose = ("--trace",) if one else ()
    status = node.status(*whose)
    assert "no rules are loaded" in node.check(*other)
    assert "state=absent" in node.status(*(("--trace",) if other else ()))
    node.apply(*other)
    node.apply(*other, "--queues=3")
    assert node.check(*one) == ""
    assert node.status(*whose) == status
    node.apply(*one)
    node.must(node.tool("4"), "-t", "mangle", "-F", "CSUMFIX-TRACE" if other else "CSUMFIX")
    assert node.check(*one) == ""
    assert node.check(*other, "--queues=3") != ""
    node.remove(*other)
    assert (node.table("4"), node.table("6")) == alone
    node.remove(*one)
    assert "CSUMFIX" not in node.table("4") + node.table("6")


@pytest.mark.parametrize("family", ["4", "6"])
def test_what_exceeds_the_limit_goes_on_to_the_service(node: Node, family: str) -> None:
    node.add_device()
    node.apply()
    node.apply("--trace", "--queue-base=65535", "--limit=1")
    node.send(family, 2, count=20)
    traced = node.rules("status", "--trace", "--family", family).stdout
    ((met, diverted),) = re.findall(r"jump packets=(\d+) [^#]*queue-65535 packets=(\d+)", traced)
    assert int(met) == 20
    assert 1 <= int(diverted) < 20
    assert node.packets(family) == {"jump": 20 - int(diverted), "queue-0": 20 - int(diverted)}


# ---------------------------------------------------------------------------- families


@pytest.mark.parametrize(("family", "other"), [("4", "6"), ("6", "4")])
def test_one_family_after_both(node: Node, family: str, other: str) -> None:
    node.apply()
    assert f"IPv{other}: rules are loaded but not wanted" in node.check("--family", family)
    node.apply("--family", family)
    assert node.check("--family", family) == ""
    assert f"IPv{other}: no rules are loaded" in node.check()
    assert "CSUMFIX" not in node.table(other)
    node.remove("--family", other)
    assert node.check("--family", family) == ""


def test_kernel_without_ipv6(node: Node) -> None:
    node.must("mount", "-t", "tmpfs", "none", "/proc")  # and so without /proc/net/if_inet6
    result = node.rules("apply")
    assert result.returncode == 0
    assert_error(result, 0, "IPv4 rules only")
    assert node.check() == ""
    assert node.status().count("state=") == 1
    assert_error(node.rules("apply", "--family", "6"), 5, "no IPv6")
    node.remove()
    assert "CSUMFIX" not in node.table()
    assert_error(node.rules("apply", "--queues", "2"), 2, "--sport-range")
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


def wrap(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("before", ["absent", "same", "other options", "stray jump", "only IPv6"])
def test_ipv4_is_rolled_back_when_ipv6_is_refused(node: Node, tmp_path: Path, before: str) -> None:
    """The test run of ip6tables-restore passes, the real one is refused."""
    node.add_device()
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    if before == "same":
        node.apply()
        node.must(node.tool("6"), "-t", "mangle", "-F", "CSUMFIX")
    elif before == "only IPv6":
        node.apply("--family", "6", "--queues", "2")
    elif before != "absent":
        node.apply("--queues", "2")
    if before == "stray jump":
        stray = ["-p", "udp", "-m", "comment", "--comment", "csumfix:jump:1", "-j", "CSUMFIX"]
        node.must(node.iptables, "-t", "mangle", "-A", "PREROUTING", *stray)
    node.send("4", 2, count=3)
    tables = strip_jump_counters(node.table("4")), node.table("6")

    name = node.tool("6", "-restore")
    wrap(
        tmp_path,
        name,
        f'case "$*" in *--test*) PATH={PATH}; exec {name} "$@" ;; esac\n'
        "echo 'ip6tables-restore: line 5 failed' >&2; exit 1",
    )
    result = node.rules("apply", env={"PATH": f"{tmp_path}:{PATH}"})
    outcome = "nothing was changed" if before == "same" else "IPv4 rules are as before"
    assert_error(result, 5, f"loading IPv6 rules failed, {outcome}", "line 5 failed", "modprobe")
    assert (strip_jump_counters(node.table("4")), node.table("6")) == tables


def strip_jump_counters(table: str) -> str:
    """A jump that had to be put back has lost its counters."""
    return re.sub(r"\[[0-9:]*\] (.*csumfix:jump:[0-9,]*\" )", r"\1", table)


def test_refusal_in_the_test_run_changes_nothing(node: Node, tmp_path: Path) -> None:
    node.apply("--queues", "2")
    tables = node.table("4"), node.table("6")
    wrap(tmp_path, node.tool("6", "-restore"), "echo \"Couldn't load match 'length'\" >&2; exit 2")
    result = node.rules("apply", env={"PATH": f"{tmp_path}:{PATH}"})
    assert_error(result, 5, "IPv6 rules refused in a test", "length")
    assert (node.table("4"), node.table("6")) == tables


@pytest.mark.parametrize("command", ["apply", "remove", "check", "status"])
def test_no_permission(node: Node, command: str) -> None:
    node.apply("--queues", "2")
    tables = node.table("4"), node.table("6")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    result = node.run(*drop, str(SCRIPT), command)
    assert_error(result, 4, "CAP_NET_ADMIN")
    assert result.stdout == ""
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
        assert "no rules are loaded" in legacy.check()  # reading needs no lock
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
def test_nat_gate(node: Node, family: str) -> None:
    """Opening packets, and all packets of flows that NAT rewrites, are diverted; others are not.

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
    node.apply("--divert", "nat")

    def counted(host: int) -> dict[str, int]:
        before = node.packets(family)
        node.send(family, host, count=10)
        after = node.packets(family)
        change = {role: after[role] - before.get(role, 0) for role in after}
        return {role: packets for role, packets in change.items() if packets and role != "jump"}

    assert counted(2) == {"queue-0": 1, "no-nat": 9}
    assert counted(2) == {"no-nat": 10}
    assert counted(3) == {"queue-0": 10}
    assert counted(4) == {"queue-0": 10}
    assert counted(5) == {"no-nat": 10}
    assert counted(6) == {"queue-0": 1, "no-nat": 9}

    node.apply("--divert", "packets")
    assert counted(2) == {"queue-0": 10}
    assert counted(5) == {"queue-0": 10}


@pytest.mark.parametrize(("family", "headers"), [("4", 28), ("6", 48)])
def test_length_and_port(node: Node, family: str, headers: int) -> None:
    node.add_device()
    node.apply("--max-length", "1000")
    node.send(family, 2, size=1000 - headers, count=2)
    node.send(family, 2, size=1001 - headers, count=3)
    node.send(family, 2, port=4789, count=4)
    node.send(family, 2, port=4788, count=5)
    assert node.packets(family) == {"jump": 9, "queue-0": 6}

    node.apply("--divert", "all", "--max-length", "1000", "--port", "4788")
    node.send(family, 2, size=1001 - headers, port=4788)
    assert node.packets(family) == {"jump": 1, "queue-0": 1}
    node.apply("--divert", "all", "--queue-base", "5", "--port", "4788")
    node.send(family, 2, port=4788)
    # The chain is new; the jump for the same port stayed and went on counting.
    assert node.packets(family) == {"jump": 2, "queue-5": 1}


@pytest.mark.parametrize("family", ["4", "6"])
def test_source_ports_are_divided_among_the_queues(node: Node, family: str) -> None:
    node.add_device()
    node.apply("--queues", "3", "--queue-base", "8", "--sport-range", "40000:40299")
    for sport in (1, 39999, 40000, 40099, 40100, 40199, 40200, 40299, 40300, 65535):
        node.send(family, 2, sport=sport)
    assert node.packets(family) == {"jump": 10, "queue-8": 4, "queue-9": 2, "queue-10": 4}
