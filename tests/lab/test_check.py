"""``csumfix check`` on real packets: what arrives at a receiver that merges them, and why."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapReader

from csumfix.core import checksum
from csumfix_lab import Lab, spec
from csumfix_lab.causes import BY_NAME
from csumfix_lab.node import Node
from csumfix_lab.process import Process
from tests.lab.harness import CSUMFIX, send, start_watching, tcp_arrives, until

CAPTURE = [sys.executable, "-m", "csumfix_lab.capture", "eth0"]
PCAP_HEADER = 24
MTU = 1500
TCP_BYTES = 2_000_000
FLOWS = 4

FAMILIES = pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])


@contextmanager
def lab_of(cause: str, *, ipv6: bool = False) -> Iterator[Lab]:
    """A lab whose receiver merges packets, as one with a real NIC does."""
    with Lab(cause, ipv6=ipv6) as lab:
        lab.receiver.run(["ethtool", "-K", "eth0", "gro", "on"])
        yield lab


@contextmanager
def arrivals(lab: Lab, path: Path) -> Iterator[None]:
    """Write to a file what arrives at the receiver."""
    with path.open("wb") as stream:
        process = lab.receiver.popen(CAPTURE, stdin=subprocess.DEVNULL, stdout=stream)
    until(lambda: path.stat().st_size >= PCAP_HEADER, 5, lambda: "no capture")
    try:
        yield
        settle(path)
    finally:
        process.kill()
        process.wait(5)


def settle(path: Path) -> None:
    """Wait until nothing more arrives."""
    size = -1
    while size != path.stat().st_size:
        size = path.stat().st_size
        time.sleep(0.2)


def check(node: Node, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = node.run([*CSUMFIX, "check", "--json", *arguments], check=False)
    assert result.returncode in (0, 1), result.stderr
    return result.returncode, json.loads(result.stdout)


def start_live(lab: Lab, seconds: float, *arguments: str) -> Process:
    return start_watching(lab, "check", "--live", f"--seconds={seconds}", *arguments)


def traffic(lab: Lab) -> None:
    """Send datagrams of several flows, and try to connect."""
    send(lab, 5 * FLOWS, 200, flows=FLOWS)
    lab.query(lab.pod_ip, tcp=True)


def address(lab: Lab, end: spec.Dual) -> str:
    return str(end.ip(lab.spec.ipv6))


def causes(document: dict[str, Any]) -> dict[str, str]:
    return {one["diagnosis"]: one["cause"] for one in document["findings"]}


def longest(path: Path) -> int:
    return max(len(data) for data, _ in RawPcapReader(str(path)))


@pytest.fixture
def no_outer_checksum(monkeypatch: pytest.MonkeyPatch) -> str:
    """A cause without a bug, and without outer checksums over IPv4."""
    healthy = replace(BY_NAME["none"], name="none-zero", outer_checksum=False)
    monkeypatch.setitem(BY_NAME, healthy.name, healthy)
    return healthy.name


def assert_healthy(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "arriving.pcap"
    live = start_live(lab, 4, "--json")
    with arrivals(lab, path):
        traffic(lab)
        assert tcp_arrives(lab, TCP_BYTES)
    assert longest(path) > MTU, "nothing was merged: the test says nothing"
    code, document = check(lab.receiver, "--receiver", str(path))
    assert (code, document["findings"]) == (0, [])
    assert document["summary"]["gso"] > 0
    assert not document["not_judged"]
    out, _ = live.communicate(timeout=20)
    watched = json.loads(out)
    assert (live.returncode, watched["findings"]) == (0, [])
    assert watched["summary"]["gso"] > 0


@FAMILIES
def test_merged_packets_of_a_healthy_receiver_are_no_fault(ipv6: bool, tmp_path: Path) -> None:
    with lab_of("none", ipv6=ipv6) as lab:
        assert_healthy(lab, tmp_path)


def test_merged_packets_without_outer_checksum_are_no_fault(
    no_outer_checksum: str, tmp_path: Path
) -> None:
    with lab_of(no_outer_checksum) as lab:
        assert_healthy(lab, tmp_path)


@pytest.mark.parametrize("cause", ["nic", "nic-udpcsum"])
@FAMILIES
def test_a_lying_nic_is_seen_at_the_receiver(cause: str, ipv6: bool, tmp_path: Path) -> None:
    """With outer checksum 0, and with one that was filled in ahead."""
    path = tmp_path / "arriving.pcap"
    with lab_of(cause, ipv6=ipv6) as lab:
        live = start_live(lab, 4, "--json")
        with arrivals(lab, path):
            traffic(lab)
        sender = address(lab, spec.SENDER)
        out, _ = live.communicate(timeout=20)
        documents = [
            check(lab.receiver, "--receiver", str(path)),
            (live.returncode, json.loads(out)),
        ]
        local = check(lab.receiver, "--local", address(lab, spec.RECEIVER), str(path))
        undecided = check(lab.receiver, str(path))
    for code, document in [*documents, local]:
        assert (code, causes(document)) == (1, {"not_finished": "nic"})
        assert list(document["findings"][0]["senders"]) == [sender]
    assert (undecided[0], causes(undecided[1])) == (0, {"undecided": "nic"})


@FAMILIES
def test_a_relay_is_seen_at_the_receiver(ipv6: bool, tmp_path: Path) -> None:
    path = tmp_path / "arriving.pcap"
    with lab_of("relay", ipv6=ipv6) as lab:
        with arrivals(lab, path):
            traffic(lab)
        code, document = check(lab.receiver, str(path))
    assert (code, causes(document)) == (1, {"relayed": "relay"})


def twice_the_address_difference(lab: Lab) -> int:
    """What the kernel adds, where it should subtract half of it."""
    new, old = (
        checksum(ip_address(address(lab, end)).packed)
        for end in (spec.RECEIVER, spec.VIRTUAL_VTEP)
    )
    return 2 * (new - old) % 0xFFFF


@pytest.mark.parametrize("cause", ["dnat", "stateless"])
@FAMILIES
def test_a_new_address_is_told_by_its_difference(cause: str, ipv6: bool, tmp_path: Path) -> None:
    path = tmp_path / "arriving.pcap"
    with lab_of(cause, ipv6=ipv6) as lab:
        with arrivals(lab, path):
            traffic(lab)
        code, document = check(lab.receiver, str(path))
        expected = twice_the_address_difference(lab)
    assert (code, causes(document)) == (1, {"rewritten": "new_address"})
    found = [one for one in document["packets"] if one["diagnosis"] == "rewritten"]
    assert {one["difference"] for one in found} == {expected}


@pytest.mark.parametrize("cause", ["snat", "cni"])
@FAMILIES
def test_a_new_port_is_told_by_its_difference(cause: str, ipv6: bool, tmp_path: Path) -> None:
    path = tmp_path / "arriving.pcap"
    with lab_of(cause, ipv6=ipv6) as lab:
        with arrivals(lab, path):
            traffic(lab)
        code, document = check(lab.receiver, str(path))
    assert (code, causes(document)) == (1, {"rewritten": "new_port"})


def test_damage_on_the_way_gets_no_cause_that_it_has_not(tmp_path: Path) -> None:
    path = tmp_path / "arriving.pcap"
    with lab_of("forwarded") as lab:
        with arrivals(lab, path):
            traffic(lab)
        code, document = check(lab.receiver, str(path))
    assert (code, causes(document)) == (1, {"rewritten": "unknown"})


def wait_for_tcpdump(process: Process) -> None:
    stream = process.stderr
    assert stream
    until(lambda: "listening" in stream.readline(), 5, lambda: "no tcpdump")


def tcpdump(node: Node, device: str, path: Path) -> Process:
    """Start tcpdump; return when it captures."""
    process = node.popen(
        ["tcpdump", "-Z", "root", "-U", "-i", device, "-w", str(path), "udp port 8472"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for_tcpdump(process)
    return process


@FAMILIES
def test_a_healthy_sender_is_healthy_however_it_is_captured(ipv6: bool, tmp_path: Path) -> None:
    """tcpdump -i any tells the direction itself; a device's capture needs to be told."""
    paths = {"any": tmp_path / "any.pcap", "eth0": tmp_path / "eth0.pcap"}
    with lab_of("none", ipv6=ipv6) as lab:
        running = [tcpdump(lab.sender, device, path) for device, path in paths.items()]
        traffic(lab)
        assert tcp_arrives(lab, TCP_BYTES)
        settle(paths["any"])
        for process in running:
            process.send_signal(signal.SIGINT)
            process.wait(5)
        local = ("--local", address(lab, spec.SENDER))
        answers = [
            check(lab.sender, str(paths["any"])),
            check(lab.sender, *local, str(paths["eth0"])),
            check(lab.sender, "--sender", str(paths["eth0"])),
        ]
        untold = check(lab.sender, str(paths["eth0"]))
    for code, document in answers:
        assert (code, document["findings"]) == (0, [])
        assert document["summary"]["partial"] > 0
        assert document["summary"]["gso"] > 0
    assert (untold[0], causes(untold[1])) == (0, {"undecided": "nic"})


def test_a_pipe_is_judged_when_its_writer_ends(tmp_path: Path) -> None:
    """Ctrl-C reaches both: tcpdump then writes the rest, which must be read."""
    with lab_of("dnat") as lab:
        both = (
            "import subprocess, sys\n"
            "cut = sys.argv.index('--')\n"
            "one = subprocess.Popen(sys.argv[1:cut], stdout=subprocess.PIPE)\n"
            "two = subprocess.Popen(sys.argv[cut + 1 :], stdin=one.stdout)\n"
            "sys.stdin.readline()\n"
            "two.send_signal(2); one.send_signal(2)\n"
            "sys.exit(two.wait(10))\n"
        )
        # Without -U, tcpdump writes nothing before it ends.
        writer = ["tcpdump", "-Z", "root", "--immediate-mode", "-i", "eth0", "-w", "-"]
        process = lab.receiver.popen(
            [sys.executable, "-c", both, *writer, "--", *CSUMFIX, "check", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_for_tcpdump(process)
        time.sleep(1)  # csumfix starts
        send(lab, 20, 200, flows=FLOWS)
        out, _ = process.communicate("\n", timeout=20)
    assert process.returncode == 1, out
    assert "NAT changed an outer address" in out


def test_live_knows_the_ports_of_the_tunnels() -> None:
    with Lab("dnat", port=4790) as lab:
        live = start_live(lab, 3, "eth0", "--json")
        traffic(lab)
        out, _ = live.communicate(timeout=20)
    document = json.loads(out)
    assert (live.returncode, causes(document)) == (1, {"rewritten": "new_address"})
    assert (document["findings"][0]["port"], document["other_ports"]) == (4790, {})


def test_a_device_that_does_not_exist(lab: Lab) -> None:
    result = lab.receiver.run([*CSUMFIX, "check", "--live", "nope\x1b[1m"], check=False)
    assert result.returncode == 2
    assert result.stderr == "csumfix: --live: there is no device nope\\x1b[1m; see 'ip link'\n"
