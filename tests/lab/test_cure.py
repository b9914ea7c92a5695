"""Every cause of wrong checksums: the bug without the service, and nothing lost with it."""

from collections.abc import Iterator

import pytest

from csumfix_lab import CAUSES, Lab
from tests.lab.harness import (
    QUEUE,
    SIZES,
    Service,
    assert_all_arrives,
    checksum_errors,
    send,
    service,
)

NAT = ("kube-proxy", "cni", "snat", "dnat")
"""Causes that the kernel lane cures: conntrack rewrites the outer header."""

SEEN_LEAVING = ("stateless", "forwarded")
"""Causes that it does not cure, and that the egress tap sees."""

UNSEEN = ("nic", "nic-udpcsum", "relay")
"""Causes that show only beyond this host, in probes; see test_auto.py."""

NEEDS_MODULES = ("ipvs",)
"""What this machine's kernel may lack; tests/kernels has it."""

HERE = [cause for cause in CAUSES if cause not in NEEDS_MODULES]

OPTIONS = {
    # The tunnel ends in a guest behind this host, which therefore shows no device.
    "forwarded": ("--port", "8472"),
}


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def ipv6(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def lab(cause: str, ipv6: bool) -> Iterator[Lab]:
    with Lab(cause=cause, ipv6=ipv6, mtu=9000) as lab:
        yield lab


def assert_bug(lab: Lab, cause: str) -> None:
    broken = cause != "none"
    errors = checksum_errors(lab)
    assert send(lab, 10, 64).whole is not broken
    assert (checksum_errors(lab) > errors) is broken


def lane(daemon: Service) -> str:
    (port,) = daemon.status()["service"]["lanes"]
    return str(port["lane"])


def test_no_cause_is_forgotten() -> None:
    assert {"none", *NAT, *SEEN_LEAVING, *UNSEEN, *NEEDS_MODULES} == set(CAUSES)


@pytest.mark.parametrize("cause", ["none", *NAT])
def test_the_default_cures_what_nat_does_without_a_queue(lab: Lab, cause: str) -> None:
    assert_bug(lab, cause)
    with service(lab.sender) as daemon:
        assert_all_arrives(lab)
        assert lane(daemon) == "kernel"
        assert sum(daemon.reasons().values()) == 0
    # The service, and nothing else, was the cure.
    assert_bug(lab, cause)


@pytest.mark.parametrize("cause", SEEN_LEAVING)
def test_the_default_cures_what_it_sees_leaving(lab: Lab, cause: str) -> None:
    assert_bug(lab, cause)
    with service(lab.sender, *OPTIONS.get(cause, ())) as daemon:
        send(lab, 1, 64)  # the first packet is the evidence
        daemon.wait_for("warning: port 8472: now in the queue lane")
        assert_all_arrives(lab)
        assert lane(daemon) == "queue"
        assert daemon.reasons()["recomputed"] >= 50 * len(SIZES)
    assert_bug(lab, cause)


@pytest.mark.parametrize("cause", HERE)
def test_the_queue_lane_cures_everything_by_itself(lab: Lab, cause: str) -> None:
    assert_bug(lab, cause)
    with service(lab.sender, QUEUE, *OPTIONS.get(cause, ())) as daemon:
        assert_all_arrives(lab)
        reasons = daemon.reasons()
    assert (reasons["recomputed"] >= 50 * len(SIZES)) is (cause in ("dnat", *SEEN_LEAVING))
    assert_bug(lab, cause)


@pytest.mark.parametrize("cause", ["dnat"])
def test_several_queues(lab: Lab) -> None:
    with service(lab.sender, QUEUE, "--queues", "3", "--queue-base", "40") as daemon:
        assert send(lab, 600, 1400, flows=30).whole
        queues = daemon.status()["service"]["queues"]
    assert set(queues) == {"40", "41", "42"}
    assert all(queue["packets"] for queue in queues.values())
