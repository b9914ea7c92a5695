"""Hosts without iptables, or whose kernel lacks what it needs: csumfix uses nft there.

Nothing here may load modules that test_modules.py has missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csumfix.errors import Exit
from csumfix.host import rules
from csumfix_lab import Lab
from csumfix_lab.node import Node
from tests.kernels.test_modules import PATIENCE, missing
from tests.kernels.tunnels import ARRIVES_WITHIN, DATAGRAMS, Exchange, Tunnel
from tests.lab.harness import CSUMFIX, SILENT, Service, until

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"
PROGRAMS = Path("/usr/sbin")

SNAT = Tunnel(1, "eth0", "snat by nft")
DNAT = Tunnel(2, "eth0", "dnat by nft")
HEALTHY = Tunnel(3, "eth0", "none")
STATELESS = Tunnel(4, "eth0", "stateless")
TUNNELS = [SNAT, DNAT, HEALTHY, STATELESS]
EACH = pytest.mark.parametrize("tunnel", TUNNELS, ids=lambda tunnel: tunnel.name)

BURSTS = 40


@contextmanager
def hidden(pattern: str) -> Iterator[None]:
    """Have these programs be not installed."""
    found = list(PROGRAMS.glob(pattern))
    assert found
    for program in found:
        program.rename(f"{program}.hidden")
    try:
        yield
    finally:
        for program in found:
            Path(f"{program}.hidden").rename(program)


@pytest.fixture(scope="module")
def without_iptables(lab: Lab) -> Iterator[None]:
    assert lab
    with hidden("ip*tables*"):
        yield


def status(node: Node) -> rules.Loaded:
    return rules.parse(node.run([str(SCRIPT), "status"], check=False).stdout)


def packets(node: Node) -> Counter[str]:
    found: Counter[str] = Counter()
    for rule in status(node).rules:
        found[rule.role] += rule.packets
    return found


def settings(node: Node) -> str:
    return node.run([str(SCRIPT), "status", "--family=4"], check=False).stdout


def answer(lab: Lab) -> str:
    """Return what the running service says of itself; busy, it may be too slow to answer."""

    def ask() -> str | None:
        shown = lab.sender.run([*CSUMFIX, "status"], check=False)
        return None if shown.returncode else shown.stdout

    return until(ask, PATIENCE, lambda: "no answer")


def has_rules(node: Node) -> bool:
    return "csumfix" in node.run(["nft", "list", "tables"]).stdout


def failure(lab: Lab, *options: str) -> tuple[int, str]:
    """Run the service, which must end by itself; return its exit code and last line."""
    daemon = Service(lab.sender, SILENT, *options)
    try:
        until(
            lambda: daemon.process.poll() is not None or None,
            PATIENCE,
            lambda: str(daemon.lines()),
        )
        assert not has_rules(lab.sender)
        return daemon.process.returncode, daemon.lines()[-1]
    finally:
        daemon.process.kill()


# Before any of its modules is loaded


@pytest.mark.slow
def test_without_nft_queue_it_says_so(lab: Lab) -> None:
    with hidden("ip*tables*"), missing("nft_queue"):
        code, line = failure(lab)
    assert code == Exit.KERNEL
    assert "modprobe -a nf_tables nft_ct nft_queue" in line


@pytest.mark.slow
def test_without_the_modules_of_iptables_nft_is_chosen(lab: Lab) -> None:
    with missing("xt_CHECKSUM", "xt_NFQUEUE", "nft_compat"):
        code, line = failure(lab, "--backend=iptables")
        assert code == Exit.KERNEL
        assert "modprobe -a xt_CHECKSUM" in line
        daemon = Service(lab.sender, SILENT)
        try:
            daemon.wait_for("ready", PATIENCE)
            daemon.wait_for("nft loads the rules, because iptables cannot load the rules (")
            assert "backend=nft" in settings(lab.sender)
            daemon.process.terminate()
            assert daemon.process.wait(PATIENCE) == 0, daemon.lines()
            assert not has_rules(lab.sender)
        finally:
            daemon.process.kill()


@pytest.mark.slow
def test_without_nft_it_says_so(lab: Lab) -> None:
    with hidden("nft"):
        daemon = Service(lab.sender, SILENT, "--backend=nft")
        assert daemon.process.wait(PATIENCE) == Exit.MISSING, daemon.lines()
    assert "nft not found" in daemon.lines()[-1]
    assert "apt-get install nftables" in daemon.lines()[-1]


# On a host without iptables


@pytest.fixture(scope="module")
def daemon(lab: Lab, without_iptables: None) -> Iterator[Service]:
    assert without_iptables is None
    daemon = Service(lab.sender, SILENT, "--hold=60")
    daemon.wait_for("ready", PATIENCE)
    until(
        lambda: "gate=conntrack" in settings(lab.sender) or None,
        PATIENCE,
        lambda: settings(lab.sender),
    )
    yield daemon
    daemon.process.kill()
    print("\n".join(daemon.lines()))


@EACH
def test_without_csumfix_nft_loses_packets(exchange: Exchange, tunnel: Tunnel) -> None:
    exchange.assert_lost(tunnel, tunnel is not HEALTHY)


@pytest.mark.slow
def test_it_says_that_and_why_it_uses_nft(lab: Lab, daemon: Service) -> None:
    line = "nft loads the rules, because iptables is not installed"
    daemon.wait_for(line)
    shown = answer(lab)
    assert line in shown
    assert shown.startswith("all is well: 5 tunnel ports, ")
    assert settings(lab.sender).startswith("backend=nft why=iptables is not installed\n")


@EACH
@pytest.mark.usefixtures("daemon")
def test_nft_cures(exchange: Exchange, tunnel: Tunnel) -> None:
    if tunnel is STATELESS:  # by evidence, after the first packets
        assert exchange.udp(tunnel.address, 64)
        until(lambda: exchange.all(tunnel.address).whole or None, PATIENCE, lambda: "not cured")
    outcome = exchange.all(tunnel.address)
    assert outcome.whole, outcome


@pytest.mark.slow
def test_flows_leave_the_queue_lane_with_nft(
    lab: Lab, exchange: Exchange, daemon: Service
) -> None:
    daemon.wait_for(f"warning: port {STATELESS.port}: now in the queue lane")
    lab.sender.run(["nft", "delete", "table", "ip", "stateless"])

    def after_a_new_flow(pattern: str) -> str | None:
        exchange.udp(STATELESS.address, 64)  # to nobody now
        shown = settings(lab.sender)
        return (
            shown if re.search(f"lane=queue state=present .* leaving={pattern} ", shown) else None
        )

    until(lambda: after_a_new_flow(str(STATELESS.port)), PATIENCE, lambda: str(daemon.lines()))
    daemon.wait_for(f"warning: port {STATELESS.port}: now in the kernel lane")
    until(lambda: after_a_new_flow("-"), PATIENCE, lambda: settings(lab.sender))


@pytest.mark.usefixtures("daemon")
def test_flows_without_nat_are_not_queued_by_nft(lab: Lab, exchange: Exchange) -> None:
    before = packets(lab.sender)
    assert exchange.tcp(HEALTHY.address) == "done"
    after = packets(lab.sender)
    after.subtract(before)
    assert after["gate"] > 4, settings(lab.sender)
    assert 1 <= after[f"fill-{HEALTHY.port}"] <= 4, settings(lab.sender)  # what opens the flow
    assert after["queue-0"] <= 4


@pytest.mark.usefixtures("daemon")
def test_nft_keeps_the_order_of_flows_that_open_with_a_burst(exchange: Exchange) -> None:
    before = exchange.overtaken
    for _ in range(BURSTS):  # each a flow of its own
        assert exchange.udp(HEALTHY.address, 64, patience=ARRIVES_WITHIN) == (DATAGRAMS, 0)
    assert exchange.overtaken == before


@pytest.mark.slow
@pytest.mark.usefixtures("daemon")
def test_nft_flush_ruleset_is_repaired(lab: Lab, exchange: Exchange) -> None:
    lab.sender.run(["nft", "flush", "ruleset"])
    # A check costs seconds of CPU in a guest, and the service allows itself only a share of one.
    until(lambda: has_rules(lab.sender) or None, PATIENCE, lambda: settings(lab.sender))
    lab.sender.run(["sh", "-eu"], input=SNAT.rules())
    # Conntrack was off for a while, so the rules had no gate.
    until(lambda: exchange.all(SNAT.address).whole or None, PATIENCE, lambda: settings(lab.sender))


@pytest.mark.slow
def test_a_take_over_with_nft_loses_nothing(lab: Lab, exchange: Exchange, daemon: Service) -> None:
    restart = lab.sender.popen([*CSUMFIX, "restart"])
    sent, arrived = exchange.udp_during(SNAT.address, restart)
    assert sent == arrived
    daemon.wait_for("superseded by process", PATIENCE)
    assert daemon.process.wait(PATIENCE) == 0, daemon.lines()
    outcome = exchange.all(SNAT.address)
    assert outcome.whole, outcome


@pytest.mark.slow
def test_nft_rules_are_removed_at_stop(lab: Lab, daemon: Service) -> None:
    assert has_rules(lab.sender)
    successor = re.search(r"superseded by process (\d+)", "\n".join(daemon.lines()))
    assert successor
    lab.sender.run(["kill", successor[1]])
    until(lambda: not has_rules(lab.sender) or None, PATIENCE, lambda: str(daemon.lines()))
