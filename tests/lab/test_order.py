"""A flow stays in order: csumfix reorders no more than the network does without it.

A flow that goes two ways through the sender is reordered where one way is slower. So the loads
here mix packets of the MTU with GSO packets in one flow, as any request and answer does.

How noise is told from effect: the load has a fixed rate far below what the machine can carry, so
that nothing is lost and nothing comes late by itself. It runs three times with csumfix and three
times without, in turn, and the medians are compared. Measured of 2,000 pairs (Linux 6.18, two
processors, other tests running at the same time; six runs each, with queues twelve):

                                         out of order   retransmitted    UDP late
    without csumfix                               0-1             0-3           0
    a CHECKSUM rule in mangle/OUTPUT                0             0-3           0
    every packet through a queue                    0             0-2           0
    only small packets through a queue      848-1,563       238-1,208   545-1,365

NOISE lies between the two. Under a bug nothing passes without csumfix, so the network without bug
is what every cause is compared with.
"""

from collections.abc import Callable, Iterator
from statistics import median

import pytest

from csumfix_lab import Lab
from tests.lab.harness import ALONE, gso, pipeline, service

pytestmark = ALONE

ROUNDS = 3
PAIRS = 2_000
RATE = 2_000  # pairs a second
NOISE = 50  # packets out of order, retransmitted or late


@pytest.fixture(scope="module")
def network() -> Iterator[Lab]:
    """A network without bug and without csumfix."""
    with Lab("none") as lab:
        yield lab


@pytest.fixture(scope="module", params=["none", "snat"])
def cured(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A network with csumfix as it is by default."""
    with Lab(request.param) as lab, service(lab.sender):
        yield lab


def more(load: Callable[[Lab], dict[str, int]], cured: Lab, network: Lab) -> dict[str, float]:
    """Return by how much the medians of a load's counts are higher with csumfix."""
    rounds = [(load(cured), load(network)) for _ in range(ROUNDS)]
    return {
        name: median(mine[name] for mine, _ in rounds) - median(other[name] for _, other in rounds)
        for name in rounds[0][0]
    }


def tcp(lab: Lab) -> dict[str, int]:
    order = pipeline(lab, PAIRS / RATE, RATE)
    assert order.intact
    return {"out of order": order.out_of_order, "retransmitted": order.retransmitted}


def udp(lab: Lab) -> dict[str, int]:
    lateness = gso(lab, PAIRS, RATE)
    assert (lateness.missing, lateness.duplicates) == (0, 0)
    return {"late": lateness.late}


@pytest.mark.parametrize("load", [tcp, udp])
def test_csumfix_reorders_no_more_than_the_network(
    load: Callable[[Lab], dict[str, int]], cured: Lab, network: Lab
) -> None:
    added = more(load, cured, network)
    assert all(count <= NOISE for count in added.values()), added
