"""The service on big and busy hosts: events cost it little, and no change is missed."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csumfix_lab import Lab
from csumfix_lab.process import Process
from tests.lab.harness import (
    ALONE,
    CSUMFIX,
    HEALTHY,
    LANES,
    SILENT,
    Load,
    Service,
    checksum_errors,
    link,
    rules_text,
    send,
    service,
    until,
    wait_for_rules,
)
from tests.lab.tunnel import UNBOUND, forward, rebuild

LOCAL = "udpcsum local 192.0.2.1 dev eth0"

TOGGLE = """
import socket, struct, sys, time
name, rate = sys.argv[1], float(sys.argv[2])
index = socket.if_nametoindex(name)
kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
start, done = time.monotonic(), 0
while True:  # RTM_NEWLINK that sets IFF_UP or clears it: one event for each
    kernel.send(struct.pack("=IHHIIBxHiII", 32, 16, 1, 0, 0, 0, 0, index, done & 1, 1))
    done += 1
    time.sleep(max(0, start + done / rate - time.monotonic()))
"""


def add_tunnels(lab: Lab, count: int) -> None:
    """Add vxlan devices, every one with a port, and a remote end in the FDB, of its own."""
    where = ("", "dev eth0")
    links = (
        f"link add vx{i} type vxlan id {1000 + i} dstport {10_000 + i} {where[i % 2]}"
        for i in range(count)
    )
    lab.sender.run(["ip", "-batch", "-"], input="\n".join(links))
    entries = (
        f"fdb append 00:00:00:00:00:00 dev vx{i} dst 192.0.2.{i % 250 + 1} self permanent"
        for i in range(count)
    )
    lab.sender.run(["bridge", "-batch", "-"], input="\n".join(entries))


@contextmanager
def running(lab: Lab, command: list[str]) -> Iterator[Process]:
    process = lab.sender.popen(command)
    try:
        yield process
    finally:
        process.kill()
        process.wait(5)


def cpu_share(daemon: Service, seconds: float) -> float:
    """Return which share of a CPU the service and the programs that it runs take."""

    def ticks() -> int:
        stat = Path(f"/proc/{daemon.process.command_pid()}/stat").read_text()
        return sum(map(int, stat.rpartition(")")[2].split()[11:15]))

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / 100 / seconds


# Cost

LITTLE = 0.25
"""Share of a CPU. Some 0.05 on an idle machine; without a bound, all of it."""


@ALONE
@HEALTHY
@pytest.mark.parametrize(("count", "rate"), [(600, 20), (1000, 5000)])
def test_events_about_other_devices_cost_little(lab: Lab, count: int, rate: int) -> None:
    add_tunnels(lab, count)
    link(lab, "add other0 type bridge")
    with service(lab.sender, ready=60) as daemon:
        until_settled(daemon)
        with running(lab, [sys.executable, "-c", TOGGLE, "other0", str(rate)]):
            assert cpu_share(daemon, 4) < LITTLE
            link(lab, "add late0 type vxlan id 9 dstport 4789")
            wait_for_rules(lab.sender, "4789", timeout=20)


@ALONE
@HEALTHY
def test_a_tunnel_that_goes_up_and_down_costs_little(lab: Lab) -> None:
    add_tunnels(lab, 600)
    with service(lab.sender, ready=60) as daemon:
        until_settled(daemon)
        with running(lab, [sys.executable, "-c", TOGGLE, "vx7", "2000"]):
            assert cpu_share(daemon, 4) < LITTLE


@ALONE
@HEALTHY
def test_tunnels_that_come_and_go_all_the_time_cost_a_bounded_share(lab: Lab) -> None:
    add_tunnels(lab, 600)
    add = "ip link add vxn type vxlan id 5 dstport 4444"
    with service(lab.sender, ready=60) as daemon:
        until_settled(daemon)
        with running(lab, ["sh", "-c", f"while :; do {add}; sleep 0.02; ip link del vxn; done"]):
            assert cpu_share(daemon, 8) < 0.4
        link(lab, "add late0 type vxlan id 9 dstport 4789")
        wait_for_rules(lab.sender, "4789", timeout=30)


@ALONE
@HEALTHY
@pytest.mark.parametrize(
    "change",
    [
        "iptables -t nat -A OUTPUT -p tcp; iptables -t nat -F OUTPUT",
        "iptables -t mangle -A FORWARD -p tcp; iptables -t mangle -F FORWARD",
    ],
    ids=["table nat", "table mangle"],
)
def test_rules_of_others_that_change_all_the_time_cost_little(lab: Lab, change: str) -> None:
    with service(lab.sender) as daemon:
        until_settled(daemon)
        with running(lab, ["sh", "-c", f"while :; do {change}; done"]):
            assert cpu_share(daemon, 5) < LITTLE
            rules = rules_text(lab.sender).count("CSUMFIX")
            lab.sender.run(["iptables", "-w", "-t", "mangle", "-F", "OUTPUT"])
            until(
                lambda: rules_text(lab.sender).count("CSUMFIX") == rules or None,
                10,
                lambda: rules_text(lab.sender),
            )


def until_settled(daemon: Service) -> None:
    """Wait until the service has done what a start leaves to do."""
    until(lambda: cpu_share(daemon, 0.5) == 0 or None, 30, lambda: "it is always busy")


# Nothing is missed


@HEALTHY
def test_a_change_is_seen_though_its_event_is_lost(lab: Lab) -> None:
    link(lab, "add other0 type bridge")
    with service(lab.sender) as daemon:
        until_settled(daemon)
        daemon.process.send_signal(signal.SIGSTOP)
        with running(lab, [sys.executable, "-c", TOGGLE, "other0", "1e9"]) as toggle:
            until(lambda: netlink_drops(lab, daemon) or None, 20, lambda: "no event is lost")
            toggle.kill()
            toggle.wait()
        link(lab, "add late0 type vxlan id 9 dstport 4789")
        daemon.process.send_signal(signal.SIGCONT)
        wait_for_rules(lab.sender, "4789", timeout=5)


def netlink_drops(lab: Lab, daemon: Service) -> int:
    """Return how many netlink events the service has lost."""
    (pid,) = {daemon.process.command_pid()}
    lines = Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:]
    return sum(int(line.split()[8]) for line in lines)


@pytest.mark.parametrize("lab", ["stateless"], indirect=True)
def test_an_underlay_is_found_when_the_remote_end_becomes_known(lab: Lab) -> None:
    rebuild(lab, UNBOUND, forwarding=False)
    with service(lab.sender, SILENT) as daemon:
        until_settled(daemon)
        forward(lab)
        time.sleep(1.5)
        assert not send(lab, 10, 64).whole
        daemon.wait_for("warning: port 8472: now in the queue lane", 5)
        assert send(lab, 20, 512).whole


@pytest.mark.parametrize("lab", ["stateless"], indirect=True)
def test_an_underlay_is_followed_when_the_route_changes(lab: Lab) -> None:
    rebuild(lab, UNBOUND)
    link(lab, "add under0 link eth0 type macvlan mode bridge")
    link(lab, "set under0 up")
    with service(lab.sender, SILENT) as daemon:
        until_settled(daemon)
        route = "ip route add 192.0.2.200/32 dev under0 src 192.0.2.1"
        lab.sender.run(route.split())
        time.sleep(1.5)
        assert not send(lab, 10, 64).whole
        assert "under0" in daemon.wait_for("warning: port 8472: now in the queue lane", 5)
        assert send(lab, 20, 512).whole


# Many tunnels


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
@pytest.mark.parametrize("count", [125, 600, 1000])
def test_many_tunnels(lab: Lab, count: int) -> None:
    add_tunnels(lab, count)
    with service(lab.sender, ready=60) as daemon:
        (ready,) = [line for line in daemon.lines() if line.startswith("ready")]
        assert len(ready) < 1000
        errors = checksum_errors(lab)
        assert send(lab, 50, 512).whole
        assert checksum_errors(lab) == errors
        status = lab.sender.run([*CSUMFIX, "status"]).stdout
        top = lab.sender.run([*CSUMFIX, "top", "--once"]).stdout
        assert len(daemon.status()["tunnels"]) == count + 1
    assert status.startswith(f"all is well: {count + 1} tunnel ports")
    assert f"and {count - 39} more; for all: csumfix status --json" in status
    assert len(status.splitlines()) < 160
    assert len(top.splitlines()) < 40
    assert "flannel.1" in status
    assert "flannel.1" in top


# Changes under load


OTHER = "add other0 type vxlan id 9 dstport 4789 local 192.0.2.1"


@HEALTHY
@LANES
@pytest.mark.parametrize(
    ("changes", "there"),
    [
        ([OTHER, "set other0 mtu 1400", "set other0 mtu 65535", "set other0 mtu 1280"], "other0"),
        ([OTHER, "set other0 name other1"], "other1"),
        ([OTHER, "set other0 netns elsewhere"], None),
        ([OTHER, "del other0"] * 20, None),
        ([OTHER, "del other0"] * 20 + [OTHER], "other0"),
    ],
    ids=["MTU", "renamed", "moved away", "deleted at once", "deleted and there again"],
)
def test_a_device_changes_under_load(
    lab: Lab, lane: str, changes: list[str], there: str | None
) -> None:
    lab.sender.run(["ip", "netns", "add", "elsewhere"])
    with service(lab.sender, lane) as daemon:
        load = Load(lab)
        batch = "\n".join(f"link {change}" for change in changes)
        lab.sender.run(["ip", "-batch", "-"], input=batch)
        wanted = {lab.device, *filter(None, [there])}
        until(lambda: tunnels(daemon) == wanted or None, 5, lambda: str(tunnels(daemon)))
        wait_for_rules(lab.sender, "4789", present=bool(there), timeout=5)
        load.assert_whole()


@HEALTHY
@LANES
def test_the_devices_of_a_change_go_in_the_middle_of_it(
    lab: Lab, lane: str, tmp_path: Path
) -> None:
    program = tmp_path / "iptables-restore"
    program.write_text('#!/bin/sh\nsleep 0.5\nexec /usr/sbin/iptables-restore "$@"\n')
    program.chmod(0o755)
    prefix = ["env", f"CSUMFIX_IPTABLES={tmp_path}/iptables"]
    for name in ("iptables", "iptables-save", "ip6tables-save", "ip6tables-restore"):
        (tmp_path / name).symlink_to(f"/usr/sbin/{name}")
    with service(lab.sender, lane, prefix=prefix) as daemon:
        load = Load(lab)
        link(lab, OTHER)
        time.sleep(0.5)  # the rules are being loaded
        link(lab, "del other0")
        wait_for_rules(lab.sender, "4789", timeout=5)
        wait_for_rules(lab.sender, "4789", present=False, timeout=10)
        assert not [line for line in daemon.lines() if line.startswith("error")]
        load.assert_whole()


def tunnels(daemon: Service) -> set[str]:
    return {tunnel["name"] for tunnel in daemon.status()["service"]["tunnels"]}
