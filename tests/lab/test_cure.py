"""Every cause of wrong checksums: the bug without the service, and nothing lost with it."""

from collections.abc import Iterator

import pytest

from csumfix_lab import CAUSES, Lab
from tests.lab.shim import checksum_errors, send, service, tcp_arrives

SIZES = (64, 1400, 8000)
COUNT = 50
TCP_BYTES = 2_000_000

OPTIONS = {
    # GSO packets of a NIC that lies must be segmented in software; the other bugs spare them.
    "nic": ("--divert", "all"),
    # The tunnel ends in a guest behind this host, which therefore shows no device.
    "forwarded": ("--port", "8472"),
}

# A packet whose checksum was wrong before it met this host is not touched by NAT.
NAT_CAUSES = ("kube-proxy", "snat", "dnat")


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def ipv6(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def lab(cause: str, ipv6: bool) -> Iterator[Lab]:
    with Lab(cause=cause, ipv6=ipv6, mtu=9000) as lab:
        yield lab


@pytest.mark.parametrize("cause", CAUSES)
def test_every_payload_arrives(lab: Lab, cause: str) -> None:
    broken = cause != "none"
    errors = checksum_errors(lab)
    assert send(lab, 10, 64).whole is not broken
    assert (checksum_errors(lab) > errors) is broken

    with service(lab.sender, *OPTIONS.get(cause, ())) as shim:
        errors = checksum_errors(lab)
        for size in SIZES:
            assert send(lab, COUNT, size).whole, size
        assert tcp_arrives(lab, TCP_BYTES)
        assert checksum_errors(lab) == errors
        reasons = shim.reasons()
    assert (reasons["recomputed"] >= COUNT * len(SIZES)) is (cause in ("dnat", "forwarded"))

    # The service, and nothing else, was the cure.
    assert send(lab, 10, 64).whole is not broken


@pytest.mark.parametrize("cause", NAT_CAUSES)
def test_diverting_only_what_nat_touches_suffices(lab: Lab) -> None:
    with service(lab.sender, "--divert", "nat"):
        errors = checksum_errors(lab)
        for size in SIZES:
            assert send(lab, COUNT, size).whole, size
        assert tcp_arrives(lab, TCP_BYTES)
        assert checksum_errors(lab) == errors


@pytest.mark.parametrize("cause", ["dnat"])
def test_several_queues(lab: Lab) -> None:
    with service(lab.sender, "--queues", "3", "--queue-base", "40") as shim:
        assert send(lab, 600, 1400, flows=30).whole
        queues = shim.status()["service"]["queues"]
    assert set(queues) == {"40", "41", "42"}
    assert all(queue["packets"] for queue in queues.values())
