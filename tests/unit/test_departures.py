"""What is said of a packet that leaves, row by row."""

from itertools import product

import pytest

from csumfix.core import Inner, Inspection, Outer, Status
from csumfix.evidence.departures import Departure, judge

OK = Inspection(Status.OK)


@pytest.mark.parametrize(
    ("outer", "inner", "complete", "departure"),
    [
        (Outer.RIGHT, Inner.RIGHT, True, Departure.RIGHT),
        (Outer.RIGHT, Inner.CORRUPT, True, Departure.RIGHT),
        (Outer.ZERO, Inner.RIGHT, True, Departure.ZERO),
        (Outer.PARTIAL, Inner.RIGHT, False, Departure.PARTIAL),
        (Outer.LCO, Inner.PARTIAL, False, Departure.PARTIAL),
        # Nobody will complete what the kernel considers complete.
        (Outer.PARTIAL, Inner.RIGHT, True, Departure.WRONG),
        (Outer.PARTIAL, Inner.PARTIAL, True, Departure.CORRUPT),
        (Outer.LCO, Inner.PARTIAL, True, Departure.CORRUPT),
        (Outer.WRONG, Inner.RIGHT, True, Departure.WRONG),
        (Outer.WRONG, Inner.UNPROVEN, True, Departure.WRONG),
        # NAT has rewritten the header of a packet whose inner checksum the device completes.
        (Outer.WRONG, Inner.PARTIAL, False, Departure.WRONG),
        (Outer.WRONG, Inner.PARTIAL, True, Departure.CORRUPT),
        (Outer.WRONG, Inner.CORRUPT, False, Departure.CORRUPT),
        (Outer.WRONG, Inner.MALFORMED, True, Departure.CORRUPT),
    ],
)
def test_departure(outer: Outer, inner: Inner, complete: bool, departure: Departure) -> None:
    seen = OK._replace(outer=outer, inner=inner)
    assert judge(seen, complete=complete) is departure


def test_what_is_no_tunnel_packet_is_not_judged() -> None:
    for status, complete in product(Status, (False, True)):
        if status is not Status.OK:
            seen = Inspection(status)
            assert judge(seen, complete=complete) is Departure.NOT_JUDGED
