"""A vxlan device in another namespace than its socket, as Docker Swarm makes it."""

import json
import subprocess
import sys
from typing import Any

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab
from tests.lab.harness import (
    CSUMFIX,
    HEALTHY,
    LANES,
    PEER,
    PORT,
    Delivery,
    Sink,
    checksum_errors,
    link,
    service,
    trickle,
    wait_for_rules,
)

COUNT = 30
FOUND_WITHIN = 8.0
"""Seconds: service.SOCKETS_EVERY, and what it takes to load rules."""

INSIDE = ["nsenter", "--net=/run/netns/hidden"]


def hide(lab: Lab) -> None:
    """Move the device away, and set it up there; its socket goes and comes again meanwhile."""
    here, there = lab.spec.client, lab.spec.receiver
    vtep = there.vtep.ip(False)
    script = f"""
ip netns add hidden
ip link set {lab.device} netns hidden
nsenter --net=/run/netns/hidden sh -eu <<'END'
ip link set {lab.device} up
ip addr add {here.vtep.v4} dev {lab.device}
ip neigh replace {vtep} lladdr {there.mac} dev {lab.device} nud permanent
ip route add {there.pod_net.v4} via {vtep} dev {lab.device} onlink
bridge fdb replace {there.mac} dev {lab.device} dst {lab.spec.remote_vtep} self permanent
END
"""
    lab.sender.run(["sh", "-eu"], input=script)


def send(lab: Lab, size: int) -> Delivery:
    sink = Sink(lab, COUNT)
    command = [sys.executable, PEER, "send", lab.pod_ip, str(PORT), f"--count={COUNT}"]
    lab.sender.run([*INSIDE, *command, f"--size={size}", "--flows=5"])
    return sink.delivery()


@LANES
@pytest.mark.parametrize("lab", ["none", "snat", "dnat"], indirect=True)
def test_a_device_that_is_hidden_later_is_still_served(lab: Lab, lane: str) -> None:
    with service(lab.sender, lane) as daemon:
        wait_for_rules(lab.sender, "8472")
        hide(lab)
        wait_for_rules(lab.sender, "8472", timeout=FOUND_WITHIN)
        daemon.wait_for("changed: port 8472 (no device here)", FOUND_WITHIN)
        errors = checksum_errors(lab)
        for size in (64, 1400):
            assert send(lab, size).whole, size
        assert checksum_errors(lab) == errors


def test_a_device_that_was_hidden_before_is_served_from_the_start(lab: Lab) -> None:
    hide(lab)
    assert send(lab, 64).arrived == 0
    with service(lab.sender) as daemon:
        assert daemon.lines() == ["ready: port 8472 (no device here) in the kernel lane"]
        assert send(lab, 64).whole
        (lane,) = daemon.status()["service"]["lanes"]
        assert lane["port"] == 8472


def test_a_hidden_socket_is_found_by_polling_and_forgotten_when_it_goes(lab: Lab) -> None:
    link(lab, f"del {lab.device}")
    with service(lab.sender) as daemon:
        daemon.wait_for("ready: no vxlan or geneve device yet")
        lab.sender.run(["ip", "netns", "add", "hidden"])
        link(lab, "add vx0 type vxlan id 9 dstport 4789 local 192.0.2.1")
        link(lab, "set vx0 netns hidden")
        wait_for_rules(lab.sender, "CSUMFIX", present=False)
        lab.sender.run([*INSIDE, "ip", "link", "set", "vx0", "up"])  # no event of it is seen here
        wait_for_rules(lab.sender, "4789", timeout=FOUND_WITHIN)
        lab.sender.run([*INSIDE, "ip", "link", "del", "vx0"])  # nor of this
        wait_for_rules(lab.sender, "CSUMFIX", present=False, timeout=FOUND_WITHIN)


def doctor(lab: Lab) -> dict[str, Any]:
    shown = lab.sender.run([*CSUMFIX, "doctor", "--json"], check=False)
    document: dict[str, Any] = json.loads(shown.stdout)
    assert document["exit_code"] == shown.returncode
    return document


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
def test_trace_shows_what_leaves(lab: Lab) -> None:
    hide(lab)
    tracer = lab.sender.popen(
        [*CSUMFIX, "trace", "--count=1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert tracer.stderr
    assert "tracing port 8472" in tracer.stderr.readline()
    send(lab, 64)
    assert "WRONG" in tracer.communicate(timeout=10)[0]


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
def test_doctor_says_where_the_device_is_and_judges_what_leaves(lab: Lab) -> None:
    hide(lab)
    document = doctor(lab)
    assert document["exit_code"] == Exit.BROKEN
    assert "port 8472 may be that of a vxlan or geneve device in another" in document["trouble"]
    assert "while the tunnel is used" in document["trouble"]
    with trickle(lab.sender, lab.pod_ip, prefix=INSIDE):
        document = doctor(lab)
        (finding,) = document["findings"]
        assert document["exit_code"] == Exit.NEGATIVE
        assert (finding["tunnel"], finding["verdict"]) == ("port 8472", "snat")
        assert any("conntrack: the flow" in line for line in finding["evidence"])
        assert "MASQUERADE" in finding["rules"][0]["text"]
        with service(lab.sender):
            assert "None of" in doctor(lab)["trouble"]


@HEALTHY
def test_doctor_judges_hidden_devices_beside_those_that_are_here(lab: Lab) -> None:
    link(lab, "add vx0 type vxlan id 9 dstport 4789 local 192.0.2.1")
    lab.sender.run(["ip", "netns", "add", "hidden"])
    link(lab, "set vx0 netns hidden")
    lab.sender.run([*INSIDE, "ip", "link", "set", "vx0", "up"])
    document = doctor(lab)
    assert document["exit_code"] == Exit.OK
    assert [one["verdict"] for one in document["findings"]] == ["healthy"]
    assert "port 4789 may be that of" in document["notes"][0]
