"""csumfix doctor names what is wrong with a tunnel, and nothing where nothing is."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab, faults
from csumfix_lab.node import Node
from csumfix_lab.rules import LOADERS, snat
from tests.lab.harness import CSUMFIX, HEALTHY, QUEUE, Sink, sender, service, trickle

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"
IPV6 = pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])

LONGEST = 20.0
"""Seconds. It takes 5 at most where nothing else runs; tests share the machine."""

CAUSES = {
    "kube-proxy": "kube_proxy",
    "cni": "cni",
    "snat": "snat",
    "dnat": "dnat",
    "stateless": "stateless",
    "nic": "nic",
    "nic-udpcsum": "nic_outer",
    "relay": "relay",
    # From the guest: nothing that it sends arrives, and what it sends is right.
    "forwarded": "black_hole",
}

NAT_VERDICTS = {"kube_proxy", "cni", "snat", "dnat"}


def doctor(node: Node, *options: str, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run it; it must change nothing, and exit with what it says."""
    before = state(node)
    began = time.monotonic()
    result = node.run([*prefix, *CSUMFIX, "doctor", "--json", *options], check=False, timeout=30)
    assert time.monotonic() - began < LONGEST
    assert result.stderr == ""
    assert state(node) == before
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["exit_code"] == result.returncode
    return document


def state(node: Node) -> str:
    """What it must leave as it was."""
    script = "nft -s list ruleset; ip link; ip addr; ip route; ip -6 route; ethtool -k eth0"
    return node.run(["sh", "-c", script]).stdout


def verdicts(document: dict[str, Any]) -> list[str]:
    return [finding["verdict"] for finding in document["findings"]]


def evidence(document: dict[str, Any]) -> list[str]:
    """All evidence of the first finding."""
    lines: list[str] = document["findings"][0]["evidence"]
    return lines


def verdict(document: dict[str, Any]) -> str:
    """The only verdict there is."""
    assert len(document["findings"]) == 1, document
    (only,) = verdicts(document)
    codes = {"healthy": Exit.OK, "cured": Exit.OK, "undecided": Exit.BROKEN}
    assert document["exit_code"] == codes.get(only, Exit.NEGATIVE)
    return only


@IPV6
@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_is_named_and_the_other_end_is_healthy(cause: str, ipv6: bool) -> None:
    wanted = "nic_outer" if (cause, ipv6) == ("nic", True) else CAUSES[cause]
    with Lab(cause, ipv6=ipv6) as lab:
        document = doctor(lab.client)
        assert verdict(document) == wanted
        is_tracked = any("conntrack: the flow" in line for line in evidence(document))
        assert is_tracked == (wanted in NAT_VERDICTS)
        if cause == "forwarded" and not ipv6:
            assert "no vxlan or geneve device" in doctor(lab.sender)["trouble"]
            lab.client.popen(["ping", "-q", "-i0.2", "-w9", lab.pod_ip], stdout=subprocess.DEVNULL)
            assert verdict(doctor(lab.sender)) == "forwarded"
        if cause == "kube-proxy":
            assert verdict(doctor(lab.receiver)) == "healthy"
        if cause == "snat":
            # Only over inner IPv6 does the kernel leave the checksum of a RST to offload.
            document = doctor(lab.receiver)
            assert verdicts(document) == ["remote", "healthy"]
            assert any("this host dropped" in line for line in evidence(document))


@IPV6
def test_healthy_and_what_is_no_checksum(ipv6: bool) -> None:
    with Lab(ipv6=ipv6) as lab:
        port = lab.spec.port
        document = doctor(lab.sender)
        assert verdict(document) == "healthy"
        assert len(document["findings"][0]["to"]) == 2, "both inner families"
        with lab.fault(lab.wire, faults.black_hole(port)):
            assert verdict(doctor(lab.sender)) == "black_hole"
        with lab.fault(lab.wire, faults.mtu_hole(port, 1400)):
            assert verdict(doctor(lab.sender)) == "mtu"
        if ipv6:
            return
        with lab.fault(lab.wire, faults.loss(port, 20)):
            assert verdict(doctor(lab.sender)) == "loss"
        with lab.fault(lab.receiver, faults.firewall()):
            document = doctor(lab.sender)
            assert verdict(document) == "healthy"
            assert any("firewall" in line for line in document["findings"][0]["evidence"])
        with lab.fault(lab.sender, faults.table("inet", "output", f"udp dport {port} drop")):
            assert verdict(doctor(lab.sender)) == "not_leaving"
        lab.sender.run(["ip", "neigh", "flush", "dev", lab.device, "nud", "permanent"])
        document = doctor(lab.sender)
        assert document["exit_code"] == Exit.BROKEN
        assert "--to" in document["trouble"]


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
def test_a_firewall_and_losses_hide_no_cause(lab: Lab) -> None:
    with lab.fault(lab.receiver, faults.firewall()):
        assert verdict(doctor(lab.sender)) == "snat"
    with lab.fault(lab.wire, faults.loss(lab.spec.port, 20)):
        assert verdict(doctor(lab.sender)) == "snat"


@pytest.mark.parametrize("lab", ["nic"], indirect=True)
def test_a_firewall_and_losses_hide_no_lying_nic(lab: Lab) -> None:
    with lab.fault(lab.receiver, faults.firewall()):
        assert verdict(doctor(lab.sender)) == "nic"
    with lab.fault(lab.wire, faults.loss(lab.spec.port, 20)):
        assert verdict(doctor(lab.sender)) == "nic"
    # The gate of the kernel lane finishes the first packet of each flow; the second one is lost.
    lab.sender.run([str(SCRIPT), "apply", "--lane=kernel", "--port=8472", "--gate=conntrack"])
    document = doctor(lab.sender)
    assert verdict(document) == "nic"
    assert any("do not repair" in line for line in document["findings"][0]["against"])
    # Without the gate it finishes all but GSO packets.
    lab.sender.run([str(SCRIPT), "apply", "--lane=kernel", "--port=8472", "--gate=none"])
    assert verdict(doctor(lab.sender)) == "nic_gso"
    with service(lab.sender, QUEUE):
        assert verdict(doctor(lab.sender)) == "healthy"


@pytest.mark.parametrize(
    ("cause", "ipv6"),
    [("kube-proxy", False), ("cni", True), ("snat", True), ("dnat", False)],
    ids=str,
)
def test_cured_is_told_from_healthy(cause: str, ipv6: bool) -> None:
    with Lab(cause, ipv6=ipv6) as lab, service(lab.sender):
        assert verdict(doctor(lab.sender)) == "cured"


def test_both_ends_are_sick() -> None:
    with Lab("snat", ipv6=True) as lab:
        for tool, rules in snat(lab.spec).items():
            lab.receiver.run(LOADERS[tool], input=rules)
        assert verdicts(doctor(lab.sender))[0] == "snat"
        assert verdicts(doctor(lab.receiver))[0] == "snat"
        lab.sender.run(["iptables", "-t", "nat", "-F"])
        lab.sender.run(["ip6tables", "-t", "nat", "-F"])
        assert verdicts(doctor(lab.sender))[0] == "remote"


SECOND = """
ip link add vx2 mtu 1400 type vxlan id 2 dev eth0 local {here} dstport 4789 nolearning udpcsum
ip link set vx2 up
ip addr add 10.9.0.{number}/24 dev vx2
bridge fdb append 00:00:00:00:00:00 dev vx2 dst {there}
"""


@HEALTHY
def test_one_of_two_tunnels_is_sick(lab: Lab) -> None:
    here, there = "192.0.2.1", "192.0.2.2"
    lab.sender.run(["sh", "-eu"], input=SECOND.format(here=here, there=there, number=1))
    lab.receiver.run(["sh", "-eu"], input=SECOND.format(here=there, there=here, number=2))
    rule = "-t nat -A POSTROUTING -p udp --dport 4789 -j MASQUERADE --random-fully"
    lab.sender.run(["iptables", *rule.split()])
    lab.sender.run(["ping", "-c1", "-W1", "10.9.0.2"])  # so that the neighbour is known
    document = doctor(lab.sender)
    assert {one["tunnel"]: one["verdict"] for one in document["findings"]} == {
        "vx2": "snat",
        "flannel.1": "healthy",
    }
    assert document["exit_code"] == Exit.NEGATIVE


@HEALTHY
def test_what_an_operator_can_ask_for(lab: Lab) -> None:
    assert verdict(doctor(lab.sender, "--to", lab.pod_ip, "--to", lab.pod_ip6)) == "healthy"
    sink = lab.receiver.popen([sys.executable, "-c", READER, lab.pod_ip], stdout=-1, stdin=-3)
    assert sink.stdout
    assert sink.stdout.readline() == "listening\n"
    document = doctor(lab.sender, "--tcp", f"{lab.pod_ip}:5001")
    assert verdict(document) == "healthy"
    assert "took 1 MB" in document["notes"][0]
    refused = lab.sender.run([*CSUMFIX, "doctor", "--to", "192.0.2.2"], check=False)
    assert refused.returncode == Exit.USAGE
    assert "does not lead into a tunnel" in refused.stderr
    document = doctor(lab.sender, "--probe", "off")
    assert document["exit_code"] == Exit.BROKEN


READER = """
import socket, sys
server = socket.create_server((sys.argv[1], 5001))
print("listening", flush=True)
connection, _ = server.accept()
while connection.recv(65536): pass
"""


@HEALTHY
def test_probe_off_sends_nothing(lab: Lab) -> None:
    before = lab.receiver.counters().in_datagrams
    doctor(lab.sender, "--probe", "off")
    assert lab.receiver.counters().in_datagrams == before


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
def test_without_probes_the_packets_of_others_show_the_cause(lab: Lab) -> None:
    with trickle(lab.sender, lab.pod_ip):
        document = doctor(lab.sender, "--probe", "off")
    assert verdict(document) == "snat"
    assert "packets left this host with a wrong" in evidence(document)[0]


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
def test_an_ordinary_user_learns_what_can_be_learnt(lab: Lab) -> None:
    unprivileged = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    document = doctor(lab.sender, prefix=unprivileged)
    assert verdict(document) == "undecided"
    assert "need root" in document["notes"][0]
    lab.sender.run(["iptables", "-t", "nat", "-F"])
    assert verdict(doctor(lab.sender, prefix=unprivileged)) == "healthy"


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
def test_it_reads_well_at_80_columns(lab: Lab) -> None:
    shown = lab.sender.run([*CSUMFIX, "doctor"], check=False).stdout
    lines = shown.splitlines()
    assert lines[0].startswith("flannel.1: source NAT rewrites the outer header")
    assert [line for line in lines if len(line) > 80 and not line.startswith("       ")] == []
    assert "Cures, cheapest first:" in lines
    assert "       csumfix-rules apply --lane kernel --port 8472" in lines
    # The command is one that works.
    lab.sender.run([str(SCRIPT), "apply", "--lane", "kernel", "--port", "8472"])
    assert verdict(doctor(lab.sender)) == "cured"


@HEALTHY
def test_traffic_meanwhile_is_not_disturbed(lab: Lab) -> None:
    sink = Sink(lab, 5000)
    process = sender(lab, 5000, 200, flows=8, rate=2000)
    assert verdict(doctor(lab.sender)) == "healthy"
    assert process.wait(30) == 0
    assert sink.delivery().whole
