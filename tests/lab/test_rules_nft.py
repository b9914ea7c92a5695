"""csumfix-rules and the service with nft; see nft.py for what this kernel lacks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csumfix_lab import Lab
from tests.lab import nft
from tests.lab.harness import HEALTHY, SILENT, Service, service, trickle, until
from tests.lab.test_rules_bridge import COUNT, GROUPS, UNICAST, Bridge, Replication
from tests.lab.test_rules_bridge import bridge as bridge  # noqa: PLC0414 - a fixture
from tests.lab.test_rules_bridge import replication as replication  # noqa: PLC0414
from tests.lab.test_rules_script import PATH, SCRIPT, Node, namespace

# Packets of a socket of this host look like bridged ones.
BOTH = ("--kernel-port=8472", "--queue-port=4789", "--bridged=queue")
LEAVING = ("--kernel-port=8472", "--leaving-port=8472", "--bridged=queue")

FLOWS = """
from csumfix.host import flows
print(flows.are_left_in_nft())
"""


class NftNode(Node):
    """A namespace where csumfix-rules finds the stand-in for nft."""

    programs: Path

    def rules(
        self, *arguments: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command, *options = arguments
        path = {"PATH": f"{self.programs}:{PATH}"}
        return super().rules(command, "--backend=nft", *options, env={**path, **(env or {})})

    def apply(self, *arguments: str) -> None:
        result = self.rules("apply", *arguments)
        assert (result.returncode, result.stdout) == (0, "")
        assert re.fullmatch("csumfix-rules: note: [ -~]+\n", result.stderr)

    def tables(self) -> str:
        return self.must("nft", "list", "tables")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NftNode]:
    nft.stand_in(tmp_path)
    with namespace("iptables-nft") as made:
        node = NftNode(made.pid, made.iptables)
        node.programs = tmp_path
        yield node


def track(node: Node, tool: str = "iptables") -> None:
    """Switch conntrack on for one family."""
    node.must(*f"{tool} -t mangle -A PREROUTING -m conntrack --ctstate NEW".split())


def test_life_cycle(node: NftNode) -> None:
    assert "what=missing table=csumfix\n" in node.check(*BOTH)
    assert node.rules("status").returncode == 1
    node.apply(*BOTH)
    assert node.check(*BOTH) == ""
    status = node.status("--family=4")
    assert status.startswith("backend=nft why=it was asked for\n")
    assert "lane=kernel state=present ports=8472 gate=closed\n" in status
    assert "lane=queue state=present ports=4789 queues=0 leaving=- record=- " in status
    assert node.tables() == "table ip csumfix\ntable ip6 csumfix\n"
    node.apply("--port=8472", "--family=4")
    assert node.tables() == "table ip csumfix\n"
    node.remove()
    assert node.tables() == ""
    node.remove()


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"], ["busybox", "sh"]], ids=" ".join)
def test_every_shell(node: NftNode, shell: list[str]) -> None:
    if shell[0] == "busybox":
        for tool in ("awk", "cat", "cut", "grep", "sed", "sort", "tr"):
            (node.programs / tool).symlink_to("/usr/bin/busybox")
    env = {"PATH": f"{node.programs}:/usr/bin:/bin"}
    for command in ("apply", "check", "status", "remove"):
        options = [*LEAVING, "--queues=3", "--gate=conntrack", "--backend=nft"]
        result = node.run(*shell, str(SCRIPT), command, *options, env=env)
        assert result.returncode == 0, result
    assert node.tables() == ""


def test_apply_changes_nothing_if_nothing_differs(node: NftNode) -> None:
    node.apply(*BOTH)
    before = node.must("nft", "-a", "list", "ruleset")
    node.apply(*BOTH)
    assert node.must("nft", "-a", "list", "ruleset") == before  # with the rules' handles


def test_rules_that_stay_keep_their_counters(node: NftNode) -> None:
    node.add_device()
    node.apply(*BOTH, "--gate=none")
    node.send("4", 2, count=3)
    node.send("6", 2, count=4, port=4789)
    node.apply(*BOTH, "--queue-port=1", "--gate=none")
    assert node.packets("4") == {
        "kernel jump": 3, "kernel all": 3, "kernel fill-8472": 3, "queue queue-0": 3
    }  # fmt: skip
    assert node.packets("6") == {"queue queue-0": 4}  # the other rule has other ports now


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("add rule ip csumfix CSUMFIX-QUEUE drop", "rule=foreign what=foreign"),
        ("insert rule ip csumfix CSUMFIX-QUEUE drop", "rule=foreign what=foreign"),
        ("add rule ip csumfix postrouting drop", "rule=table what=edited"),
        ("add chain ip csumfix other", "rule=table what=foreign"),
        ("flush chain ip csumfix CSUMFIX-FILL", "what=missing chain=CSUMFIX-FILL"),
        ("flush chain ip csumfix postrouting", "what=jump how=missing"),
        ("flush table ip csumfix", "what=missing chain=CSUMFIX-QUEUE"),
        ("delete table ip csumfix", "what=missing table=csumfix"),
        ("flush ruleset", "what=missing table=csumfix"),
        ("add chain ip csumfix postrouting { policy drop; }", "rule=table what=edited"),
        ("add table ip csumfix { flags dormant; }", "rule=table what=foreign"),
    ],
)
def test_edits_are_noticed_and_repaired(node: NftNode, change: str, what: str) -> None:
    node.apply(*BOTH)
    node.must("nft", change)
    assert what in node.check(*BOTH)
    node.apply(*BOTH)
    assert node.check(*BOTH) == ""


def test_other_tables_are_left_alone(node: NftNode) -> None:
    node.must(
        "nft", "add table inet csumfix; add chain inet csumfix CSUMFIX-QUEUE; add table ip x"
    )
    node.apply(*BOTH)
    node.remove()
    assert node.tables() == "table inet csumfix\ntable ip x\n"


def test_each_backend_replaces_the_other(node: NftNode) -> None:
    iptables = Node(node.pid, node.iptables)
    iptables.apply(*BOTH)
    assert "program=iptables-nft" in node.check(*BOTH)
    node.apply(*BOTH)
    assert "CSUMFIX" not in iptables.table()
    assert "program=nft" in iptables.check(*BOTH)
    iptables.apply(*BOTH)
    assert "csumfix" not in node.tables()
    node.apply(*BOTH)
    iptables.remove()
    assert "csumfix" not in node.tables()


def test_the_backend_that_has_rules_is_looked_at(node: NftNode) -> None:
    node.apply(*BOTH)
    for named in ("", "iptables-nft"):
        shown = node.run(str(SCRIPT), "status", env={"CSUMFIX_IPTABLES": named}).stdout
        assert shown.startswith("backend=nft why=its rules are loaded\n")
    node.remove()
    shown = node.run(str(SCRIPT), "status", env={"CSUMFIX_IPTABLES": ""}).stdout
    assert shown.startswith("backend=iptables why=it is the first choice\n")


# Conntrack


def test_conntrack_is_not_switched_on(node: NftNode) -> None:
    node.add_device()
    node.apply(*BOTH)
    node.send("4", 2, count=3)
    node.send("6", 2, count=3)
    assert node.conntrack_entries() == 0
    assert node.packets("4") == {"kernel jump": 3}


def test_each_family_has_its_gate_when_it_is_tracked(node: NftNode) -> None:
    node.add_device()
    node.apply(*BOTH)
    track(node)
    node.send("4", 2)
    node.send("6", 2)
    differences = node.check(*BOTH)
    assert "family=4 lane=kernel rule=gate what=missing" in differences
    assert "family=6" not in differences
    node.apply(*BOTH)
    assert node.check(*BOTH) == ""
    assert "gate=conntrack" in node.status("--family=4")
    assert "gate=closed" in node.status("--family=6")


def test_only_what_opens_a_flow_is_queued_without_nat(node: NftNode) -> None:
    node.add_device()
    track(node)
    node.apply(*BOTH, "--gate=conntrack")
    node.send("4", 2, sport=40001, count=5)
    node.send("4", 2, sport=40002, count=5)
    counted = node.packets("4")
    assert counted["kernel opening"] == counted["kernel fill-8472"] == 2
    assert counted["kernel gate"] == 8
    assert "kernel nat" not in counted


@pytest.mark.parametrize(
    "rule",
    [
        "nat -A POSTROUTING -p udp -j SNAT --to-source 10.9.0.77",
        "nat -A OUTPUT -p udp -j DNAT --to-destination 10.9.0.3",
    ],
    ids=["snat", "dnat"],
)
def test_flows_that_nat_touches_are_queued_whole(node: NftNode, rule: str) -> None:
    node.add_device()
    node.must("iptables", "-t", *rule.split())
    node.apply(*BOTH, "--gate=conntrack")
    node.send("4", 2, count=5)
    counted = node.packets("4")
    assert counted["kernel fill-8472"] == 5
    assert counted["kernel nat"] >= 4
    assert "kernel gate" not in counted


def test_a_busy_flow_stays_queued(node: NftNode) -> None:
    node.add_device()
    track(node)
    node.apply(*BOTH, "--gate=conntrack")
    node.must("nft", "add element ip csumfix opened { 40003 }")
    node.send("4", 2, sport=40003, count=5)  # its first packet comes while another waits
    counted = node.packets("4")
    assert (counted["kernel burst"], counted["kernel busy"]) == (1, 4)
    assert counted["kernel fill-8472"] == 5
    assert "40003" in node.must("nft", "list set ip csumfix busy")


# Leaving the queue lane


def test_recorded_flows_stay_in_the_queue_lane(node: NftNode) -> None:
    node.add_device()
    node.apply(*LEAVING, "--record")
    assert node.check(*LEAVING, "--record") == ""
    node.send("4", 2, sport=40001, count=3)
    node.apply(*LEAVING)
    node.send("4", 2, sport=40001, count=3)
    node.send("4", 2, sport=40002, count=3)
    counted = node.packets("4")
    assert counted["queue stay"] == 6
    assert counted["queue left"] == 3
    assert "leaving=8472 record=no" in node.status("--family=4")
    assert "kernel fill-8472" not in counted


def test_whether_flows_are_left_is_read_from_nft(node: NftNode) -> None:
    def left() -> bool:
        return node.must(sys.executable, "-c", FLOWS) == "True\n"

    assert not left()
    node.apply(*LEAVING)
    assert not left()
    node.must("nft", "add element ip6 csumfix flows { 40001 timeout 2s }")
    assert left()
    until(lambda: not left() or None, 10, lambda: "it stays")


# Bridged packets


def nft_status(programs: Path, bridge: Bridge | Replication, command: str) -> str:
    options = [command, "--backend=nft", "--lane=queue", "--port=8472"]
    path = f"PATH={programs}:{PATH}"
    return bridge.host.run(["env", path, str(SCRIPT), *options], check=False).stdout


def counted(status: str, role: str) -> int:
    return sum(map(int, re.findall(rf" rule={role} packets=(\d+)", status)))


@pytest.mark.parametrize("bridge", ["iptables-nft"], indirect=True)
@pytest.mark.parametrize("family", ["4", "6"])
def test_bridged_packets_are_not_queued(bridge: Bridge, family: str, tmp_path: Path) -> None:
    nft.stand_in(tmp_path)
    nft_status(tmp_path, bridge, "apply")
    assert bridge.arrived(UNICAST[family], GROUPS[family]) == COUNT
    status = nft_status(tmp_path, bridge, "status")
    assert counted(status, "bridged") >= COUNT
    assert counted(status, "queue-0") == 0


def test_packets_that_this_host_encapsulates_are_queued(
    replication: Replication, tmp_path: Path
) -> None:
    """Though they leave by a bridge, and br_netfilter is in use."""
    nft.stand_in(tmp_path)
    nft_status(tmp_path, replication, "apply")
    assert replication.arrived(100)
    status = nft_status(tmp_path, replication, "status")
    assert counted(status, "queue-0") >= 100  # 50 to each of two remote ends
    assert counted(status, "bridged") == 0


# The service


@HEALTHY
def test_the_service_restores_what_was_flushed(lab: Lab, tmp_path: Path) -> None:
    nft.stand_in(tmp_path)
    path = f"PATH={tmp_path}:{os.environ['PATH']}"
    daemon = Service(lab.sender, SILENT, "--backend=nft", prefix=["env", path])
    try:
        daemon.wait_for("ready", 10)
        daemon.wait_for("nft loads the rules: ")
        for flush in ("flush ruleset", "delete table ip csumfix"):
            lab.sender.run(["nft", flush])
            until(lambda: tables(lab) == ["ip"] or None, 30, lambda: str(daemon.lines()))
        daemon.wait_for("warning: another program changed the rules; restored: ", 5, count=2)
        assert daemon.status()["service"]["rules_restored"] == 2
        assert daemon.stop() == 0
        assert tables(lab) == []
    finally:
        daemon.process.kill()
        daemon.log.unlink()


@HEALTHY
@pytest.mark.parametrize("before", ["queue", "kernel"], ids=["starts to leave", "is leaving"])
def test_a_port_that_leaves_the_queue_lane_may_change_the_backend(
    lab: Lab, tmp_path: Path, before: str
) -> None:
    nft.stand_in(tmp_path)
    settings = tmp_path / "csumfix.toml"

    def configure(backend: str, lane: str) -> None:
        settings.write_text(f'backend = "{backend}"\nlane = "{lane}"\nprobe = "off"\n')

    configure("nft", "queue")
    path = f"PATH={tmp_path}:{os.environ['PATH']}"
    daemon = Service(lab.sender, f"--config={settings}", prefix=["env", path])
    try:
        daemon.wait_for("ready", 10)
        if before == "kernel":
            configure("nft", "kernel")
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("reloaded", 10)
            assert leaving(daemon)
        configure("iptables", "kernel")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded", 10, count=1 if before == "queue" else 2)
        assert tables(lab) == []
        until(lambda: not leaving(daemon) or None, 15, lambda: str(daemon.status()))
        assert daemon.stop() == 0
        assert "csumfix-flows" not in lab.sender.run(["ipset", "list", "-n"]).stdout
    finally:
        daemon.process.kill()
        daemon.log.unlink()


WITHOUT_NFQUEUE = r"""#!/bin/sh
input=$(cat)
printf '%s\n' "$input" | /usr/sbin/{name} "$@" --test || exit
case $input in
*' -j NFQUEUE '*) echo 'no NFQUEUE here' >&2; exit 1 ;;
esac
printf '%s\n' "$input" | /usr/sbin/{name} "$@"
"""


@HEALTHY
def test_a_successor_takes_over_while_a_port_leaves_the_queue_lane_under_nft(
    lab: Lab, tmp_path: Path
) -> None:
    """It may choose as well, so it tries iptables first, which must not lack its ipset."""
    nft.stand_in(tmp_path)
    for name in ("iptables-restore", "ip6tables-restore"):
        (tmp_path / name).write_text(WITHOUT_NFQUEUE.format(name=name))
        (tmp_path / name).chmod(0o755)
    settings = tmp_path / "csumfix.toml"
    settings.write_text('lane = "queue"\nprobe = "off"\n')
    prefix = ["env", f"PATH={tmp_path}:{os.environ['PATH']}"]
    with (
        trickle(lab.sender, lab.pod_ip),
        service(lab.sender, f"--config={settings}", prefix=prefix) as old,
    ):
        old.wait_for("nft loads the rules, because iptables cannot load the rules (no NFQUEUE")
        settings.write_text('lane = "kernel"\nprobe = "off"\n')
        old.process.send_signal(signal.SIGHUP)
        old.wait_for("reloaded", 10)
        with service(lab.sender, f"--config={settings}", "--take-over", prefix=prefix) as new:
            assert old.process.wait(10) == 0
            assert leaving(new)
            assert tables(lab) == ["ip"]
            assert "csumfix-flows" not in lab.sender.run(["ipset", "list", "-n"]).stdout


def leaving(daemon: Service) -> bool:
    return any(one["leaving_queue"] for one in daemon.status()["service"]["lanes"])


def tables(lab: Lab) -> list[str]:
    listing = lab.sender.run(["nft", "list", "tables"]).stdout
    return re.findall(r"table (\w+) csumfix\n", listing)
