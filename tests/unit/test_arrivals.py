"""What a captured packet's checksums mean, by the side on which it was captured."""

from __future__ import annotations

from itertools import product

import pytest

from csumfix.core import Inner, Inspection, Outer, Status
from csumfix.evidence.arrivals import (
    ETHERNET_MTU,
    JUMBO_MTU,
    WRONG,
    Circumstances,
    Diagnosis,
    Judgement,
    Reason,
    judge,
)
from csumfix.evidence.tapsocket import Direction

IN, OUT = Direction.IN, Direction.OUT
SMALL = 100


def seen(outer: Outer, inner: Inner) -> Inspection:
    return Inspection(Status.OK, outer=outer, inner=inner)


def diagnosis(outer: Outer, inner: Inner, direction: Direction | None = None) -> Diagnosis:
    return judge(seen(outer, inner), Circumstances(direction, length=SMALL)).diagnosis


# What does not depend on the side, for a small packet.
PLAIN = {
    (Outer.RIGHT, Inner.RIGHT): Diagnosis.RIGHT,
    (Outer.RIGHT, Inner.UNPROVEN): Diagnosis.RIGHT,
    (Outer.RIGHT, Inner.PARTIAL): Diagnosis.RELAYED,
    (Outer.RIGHT, Inner.CORRUPT): Diagnosis.INNER_CORRUPT,
    (Outer.ZERO, Inner.RIGHT): Diagnosis.ZERO,
    (Outer.ZERO, Inner.UNPROVEN): Diagnosis.ZERO,
    (Outer.ZERO, Inner.CORRUPT): Diagnosis.INNER_CORRUPT,
    (Outer.PARTIAL, Inner.CORRUPT): Diagnosis.INNER_CORRUPT,
    (Outer.WRONG, Inner.RIGHT): Diagnosis.REWRITTEN,
    (Outer.WRONG, Inner.UNPROVEN): Diagnosis.REWRITTEN,
    (Outer.WRONG, Inner.PARTIAL): Diagnosis.REWRITTEN,
    (Outer.WRONG, Inner.CORRUPT): Diagnosis.CORRUPT,
    (Outer.WRONG, Inner.MALFORMED): Diagnosis.CORRUPT,
    (Outer.RIGHT, Inner.MALFORMED): Diagnosis.UNJUDGED,
    (Outer.ZERO, Inner.MALFORMED): Diagnosis.UNJUDGED,
    (Outer.PARTIAL, Inner.MALFORMED): Diagnosis.UNJUDGED,
    (Outer.RIGHT, Inner.UNKNOWN): Diagnosis.RIGHT,
    (Outer.ZERO, Inner.UNKNOWN): Diagnosis.ZERO,
    (Outer.WRONG, Inner.UNKNOWN): Diagnosis.UNJUDGED,
}

# What a sender shows before its NIC has computed the checksums.
UNFINISHED = [
    (Outer.ZERO, Inner.PARTIAL),
    (Outer.PARTIAL, Inner.RIGHT),
    (Outer.PARTIAL, Inner.UNPROVEN),
    (Outer.PARTIAL, Inner.UNKNOWN),
    (Outer.PARTIAL, Inner.PARTIAL),
    (Outer.LCO, Inner.PARTIAL),
]


def test_every_combination_is_in_a_table() -> None:
    possible = set(product(set(Outer) - {Outer.NONE, Outer.LCO}, Inner))
    assert possible | {(Outer.LCO, Inner.PARTIAL)} == {*PLAIN, *UNFINISHED}


@pytest.mark.parametrize("direction", [None, IN, OUT])
@pytest.mark.parametrize(("outer", "inner"), PLAIN)
def test_what_is_the_same_on_both_sides(
    outer: Outer, inner: Inner, direction: Direction | None
) -> None:
    assert diagnosis(outer, inner, direction) is PLAIN[outer, inner]


@pytest.mark.parametrize(("outer", "inner"), UNFINISHED)
def test_the_side_decides_what_an_uncomputed_checksum_means(outer: Outer, inner: Inner) -> None:
    assert diagnosis(outer, inner, OUT) is Diagnosis.PARTIAL
    assert diagnosis(outer, inner, IN) is Diagnosis.NOT_FINISHED
    assert diagnosis(outer, inner, None) is Diagnosis.UNDECIDED


@pytest.mark.parametrize("direction", [None, IN, OUT])
@pytest.mark.parametrize("outer", [Outer.ZERO, Outer.PARTIAL])
def test_what_gso_or_gro_has_made_is_healthy_on_both_sides(
    outer: Outer, direction: Direction | None
) -> None:
    """Small ones, too: GRO merges two segments of any size."""
    for length in (SMALL, ETHERNET_MTU + 1):
        how = Circumstances(direction, tcp_data=True, length=length)
        assert judge(seen(outer, Inner.PARTIAL), how) == Judgement(Diagnosis.GSO)


def test_gro_leaves_no_outer_checksum_that_was_filled_in_ahead() -> None:
    how = Circumstances(IN, tcp_data=True, length=ETHERNET_MTU)
    assert judge(seen(Outer.LCO, Inner.PARTIAL), how).diagnosis is Diagnosis.NOT_FINISHED


@pytest.mark.parametrize(("outer", "inner"), UNFINISHED)
def test_a_packet_too_long_for_any_wire_was_merged(outer: Outer, inner: Inner) -> None:
    how = Circumstances(IN, length=JUMBO_MTU + 1)
    assert judge(seen(outer, inner), how) == Judgement(Diagnosis.GSO)


@pytest.mark.parametrize("outer", [Outer.ZERO, Outer.PARTIAL, Outer.WRONG])
def test_long_tcp_with_odd_checksums_may_have_been_merged_by_a_nic(outer: Outer) -> None:
    how = Circumstances(IN, tcp_data=True, length=ETHERNET_MTU + 1)
    judgement = judge(seen(outer, Inner.CORRUPT), how)
    assert judgement == Judgement(Diagnosis.UNJUDGED, Reason.MERGED)


@pytest.mark.parametrize(("outer", "inner"), [*PLAIN, *UNFINISHED])
def test_what_the_kernel_vouches_for_is_healthy(outer: Outer, inner: Inner) -> None:
    how = Circumstances(IN, complete=False, length=SMALL)
    assert judge(seen(outer, inner), how).diagnosis not in WRONG


@pytest.mark.parametrize(("outer", "inner"), UNFINISHED)
def test_what_the_kernel_is_about_to_verify_cannot_be_merged(outer: Outer, inner: Inner) -> None:
    how = Circumstances(IN, complete=True, tcp_data=True, length=JUMBO_MTU + 1)
    assert judge(seen(outer, inner), how).diagnosis is Diagnosis.NOT_FINISHED


def test_why_an_inner_packet_is_not_judged() -> None:
    judgement = judge(seen(Outer.RIGHT, Inner.MALFORMED), Circumstances())
    assert judgement == Judgement(Diagnosis.UNJUDGED, Reason.INNER_MALFORMED)


def test_only_what_depends_on_nothing_is_surely_wrong() -> None:
    assert not WRONG & {
        Diagnosis.UNDECIDED,
        Diagnosis.UNJUDGED,
        Diagnosis.GSO,
        Diagnosis.PARTIAL,
        Diagnosis.ZERO,
        Diagnosis.RIGHT,
    }
    assert len(WRONG) + 6 == len(Diagnosis)
