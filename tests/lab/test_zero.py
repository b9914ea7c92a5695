"""Outer checksums of 0: kept unless the operator wants them filled, and then all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from csumfix_lab import Lab
from csumfix_lab.spec import SENDER
from tests.lab.harness import (
    CSUMFIX,
    SILENT,
    Service,
    assert_all_arrives,
    gso,
    send,
    service,
    tcp_arrives,
)
from tests.lab.tunnel import rebuild

FILL = "--zero=fill"

COUNTERS = """
table inet arrivals {
    chain first {
        type filter hook prerouting priority -400;
        udp dport 8472 counter
        udp dport 8472 udp checksum 0 counter
    }
}
"""

NAT = "-t nat -A POSTROUTING -o eth0 -p udp --dport 8472 -j MASQUERADE --random-fully"


@pytest.fixture(params=[False, True], ids=["IPv4", "IPv6"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose sender leaves the outer checksum 0. Over IPv6 the receiver refuses that."""
    with Lab(cause="none", ipv6=request.param) as lab:
        rebuild(lab, f"{without_checksum(lab)} local {SENDER.ip(lab.spec.ipv6)} dev eth0")
        lab.receiver.run(["nft", "-f", "-"], input=COUNTERS)
        yield lab


def without_checksum(lab: Lab) -> str:
    return "udp6zerocsumtx" if lab.spec.ipv6 else "noudpcsum"


def arrived(lab: Lab) -> tuple[int, int]:
    """Return how many tunnel packets have arrived, and how many of them with a checksum of 0."""
    text = lab.receiver.run(["nft", "list", "table", "inet", "arrivals"]).stdout
    everything, zero = map(int, re.findall(r"counter packets (\d+)", text))
    return everything, zero


def lane(daemon: Service) -> tuple[str, str]:
    (one,) = daemon.status()["service"]["lanes"]
    return one["lane"], one["why"]


@pytest.mark.parametrize("nat", [False, True], ids=["no NAT", "NAT"])
def test_no_packet_leaves_with_zero_if_zero_is_filled(lab: Lab, nat: bool) -> None:
    if nat:
        tool = "ip6tables" if lab.spec.ipv6 else "iptables"
        lab.sender.run([tool, *NAT.split()])
    with service(lab.sender, FILL, SILENT) as daemon:
        assert_all_arrives(lab)  # TCP in GSO packets included
        late = gso(lab, 20, 100)
        assert (late.late, late.missing) == (0, 0)
        everything, zero = arrived(lab)
        assert everything > 300
        assert zero == 0
        reasons = daemon.reasons()
        assert reasons["zero_filled"] > 1000
        assert reasons["zero_filled"] == sum(reasons.values())
        assert lane(daemon) == ("queue", "setting zero = fill")
        assert (
            "in the queue lane: setting zero = fill" in lab.sender.run([*CSUMFIX, "status"]).stdout
        )


def test_zero_is_kept_by_default(lab: Lab) -> None:
    with service(lab.sender, SILENT) as daemon:
        assert send(lab, 50, 64).whole is not lab.spec.ipv6
        assert tcp_arrives(lab, 200_000) is not lab.spec.ipv6
        everything, zero = arrived(lab)
        assert everything == zero > 50
        assert lane(daemon) == ("kernel", "default")
