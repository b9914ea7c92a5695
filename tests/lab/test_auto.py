"""Plain ``csumfix run`` finds out by probes what does not show on this host, and cures it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from csumfix_lab import Lab, faults
from csumfix_lab.rules import LOADERS, snat
from csumfix_lab.spec import RECEIVER
from tests.lab.harness import (
    CSUMFIX,
    Service,
    assert_all_arrives,
    checksum_errors,
    send,
    service,
    until,
)

UNSEEN = ("nic", "nic-udpcsum", "relay")
"""Causes that show only beyond this host."""

CURED_WITHIN = 5.0
"""Seconds from the start of the process."""

PORT = 8472


def port(daemon: Service) -> dict[str, Any]:
    (only,) = daemon.status()["service"]["lanes"]
    assert isinstance(only, dict)
    return only


def first_line(lab: Lab) -> str:
    return lab.sender.run([*CSUMFIX, "status"]).stdout.splitlines()[0]


def follow_connections(lab: Lab) -> None:
    """Have conntrack follow connections, as on a node of Kubernetes.

    The kernel lane then completes only the first packet of each flow.
    """
    rule = "-A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT"
    for tool in ("iptables", "ip6tables"):
        lab.sender.run([tool, *rule.split()])


def rounds(daemon: Service, number: int) -> int:
    """Have it send probes so many times more; a reload has them sent at once."""
    seen = daemon.status()["service"]["probe_rounds"]
    for _ in range(number):
        wanted = seen + 1
        daemon.process.send_signal(signal.SIGHUP)

        def more(wanted: int = wanted) -> int | None:
            now = int(daemon.status()["service"]["probe_rounds"])
            return now if now >= wanted else None

        seen = until(more, 6.0, lambda: str(daemon.lines()))
    return int(seen)


@pytest.fixture
def lab(cause: str, ipv6: bool) -> Iterator[Lab]:
    with Lab(cause=cause, ipv6=ipv6, mtu=9000) as lab:
        yield lab


@pytest.mark.parametrize(
    ("ipv6", "conntrack"),
    [(False, False), (False, True), (True, True)],
    ids=["ipv4-plain", "ipv4-conntrack", "ipv6-conntrack"],
)
@pytest.mark.parametrize("cause", UNSEEN)
def test_what_nobody_sees_here_is_cured_within_seconds_of_the_start(
    lab: Lab, conntrack: bool
) -> None:
    if conntrack:
        follow_connections(lab)
    errors = checksum_errors(lab)
    assert not send(lab, 10, 64).whole
    assert checksum_errors(lab) > errors
    began = time.monotonic()
    with service(lab.sender) as daemon:
        # On a machine that is busy with other tests, the start alone takes seconds.
        limit = max(CURED_WITHIN, 4 * (time.monotonic() - began))
        daemon.wait_for("warning: port 8472: now in the queue lane: to ", 2 * limit)
        assert time.monotonic() - began < limit
        assert_all_arrives(lab)
        kept = daemon.wait_for("port 8472: stays in the queue lane")
        assert kept.endswith("in the queue lane they are answered")
        rounds(daemon, 1)
        assert (port(daemon)["lane"], port(daemon)["probe_lost"]) == ("queue", False)
        assert first_line(lab).startswith("all is well")


@pytest.mark.parametrize("cause", ["none"])
@pytest.mark.parametrize(
    ("ipv6", "trouble"), [(False, ""), (True, ""), (False, "loss"), (False, "black_hole")]
)
def test_where_nothing_lies_the_kernel_lane_stays(lab: Lab, trouble: str) -> None:
    fault: AbstractContextManager[None] = nullcontext()
    if trouble == "loss":
        fault = lab.fault(lab.wire, faults.loss(PORT, 20))
    elif trouble:
        fault = lab.fault(lab.wire, faults.black_hole(PORT))
    errors = checksum_errors(lab)
    with fault, service(lab.sender) as daemon:
        assert rounds(daemon, 3) >= 3
        status = daemon.status()["service"]
        assert (port(daemon)["lane"], status["lane_changes"]) == ("kernel", 0)
        assert port(daemon)["probe_lost"] is (None if trouble == "black_hole" else False)
    assert checksum_errors(lab) == errors


REFUSED = 'iifname "flannel.1" tcp dport {65305, 65312} drop'
"""SYN_OFFLOADED and GSO, whatever their checksums: as if something ate them in either lane."""


def test_what_the_queue_lane_cannot_cure_goes_back_and_says_so() -> None:
    with Lab("none") as lab:
        rule = faults.table("inet", "input", REFUSED)
        with lab.fault(lab.receiver, rule), service(lab.sender) as daemon:
            daemon.wait_for("warning: port 8472: now in the queue lane")
            back = daemon.wait_for("warning: port 8472: now in the kernel lane")
            assert "the queue lane did not help: to 10.244.1.0 (VTEP 192.0.2.2)" in back
            rounds(daemon, 1)
            assert first_line(lab).startswith("warning: the kernel lane does not cure port 8472")
            assert daemon.status()["service"]["lane_changes"] == 2


def test_a_cause_that_the_queue_lane_sees_keeps_the_port_for_its_time_only() -> None:
    """Without the tap, probes find a cause that the repairs of the queue lane show as well."""
    with Lab("stateless") as lab, service(lab.sender, "--tap-pause=0", "--hold=5") as daemon:
        daemon.wait_for("warning: port 8472: now in the queue lane: to ")
        daemon.wait_for("port 8472: is in the queue lane for a time only: ")
        assert send(lab, 800, 64, rate=100).whole
        assert port(daemon)["lane"] == "queue", "repairs begin the hold time anew"
        entry = f"{lab.spec.receiver.mac} dev {lab.device} dst {RECEIVER.ip(False)}"
        lab.sender.run(["bridge", "fdb", "replace", *entry.split(), "self", "permanent"])
        daemon.wait_for("warning: port 8472: now in the kernel lane: nothing was wrong")
        assert send(lab, 50, 64).whole


def test_both_ends_are_sick() -> None:
    """No answer arrives intact, but the underlay shows those that do not."""
    with Lab("nic-udpcsum") as lab:
        follow_connections(lab)
        for tool, rules in snat(lab.spec).items():
            lab.receiver.run(LOADERS[tool], input=rules)
        with service(lab.sender) as daemon:
            daemon.wait_for("warning: port 8472: now in the queue lane: to ")
            daemon.wait_for("port 8472: stays in the queue lane")


def test_a_successor_keeps_the_lane_and_off_sends_nothing() -> None:
    with Lab("relay") as lab, service(lab.sender) as first:
        first.wait_for("port 8472: stays in the queue lane")
        second = Service(lab.sender, "--take-over", "--probe=off")
        try:
            second.wait_for("ready")
            assert first.process.wait(10) == 0
            assert "they are answered" in port(second)["why"]
            assert port(second)["lane"] == "queue"
            assert send(lab, 50, 1400).whole
            second.process.send_signal(signal.SIGHUP)
            second.wait_for("reloaded")
            assert second.status()["service"]["probe_rounds"] == 0
            assert second.stop() == 0
        finally:
            second.process.kill()
            second.log.unlink()
