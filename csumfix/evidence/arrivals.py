"""Diagnoses a tunnel packet that was captured, here or elsewhere. Pure.

The same bytes can be healthy on the sender and a fault on the receiver. A sender's capture shows
packets before its NIC has computed their checksums. On the receiver such a packet means that the
NIC never did. There is one exception: GRO merges packets whose checksums it has verified, and
leaves pseudo-header sums in the checksum fields of the result (tcp_gro_complete() in
net/ipv4/tcp_offload.c, udp_gro_complete() in net/ipv4/udp_offload.c).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from csumfix.core import Inner, Inspection, Outer
from csumfix.evidence.tapsocket import Direction


class Diagnosis(enum.StrEnum):
    """The state of a packet's checksums, and what it means."""

    RIGHT = "right"
    ZERO = "zero"
    """No outer checksum; the inner packet is whole, or has none either, or cannot be checked."""
    PARTIAL = "partial"
    """Partial, and leaving: the device computes it."""
    GSO = "gso"
    """A GSO packet that leaves, or one that GRO has merged on arrival. Both are healthy."""
    UNDECIDED = "undecided"
    """Partial, in unknown direction: healthy if it leaves, NOT_FINISHED if it arrives."""
    NOT_FINISHED = "not_finished"
    """Arrived with a checksum that the sender's NIC should have computed."""
    RELAYED = "relayed"
    """A right outer checksum over an inner one that is partial and will never be computed."""
    REWRITTEN = "rewritten"
    """A wrong outer checksum over an intact inner packet."""
    CORRUPT = "corrupt"
    """A wrong outer checksum over a damaged inner packet."""
    INNER_CORRUPT = "inner_corrupt"
    """A damaged inner packet under an outer checksum that does not show the damage."""
    UNJUDGED = "unjudged"


WRONG = frozenset(
    {
        Diagnosis.NOT_FINISHED,
        Diagnosis.RELAYED,
        Diagnosis.REWRITTEN,
        Diagnosis.CORRUPT,
        Diagnosis.INNER_CORRUPT,
    }
)
"""The diagnoses that are certainly faults."""


class Reason(enum.StrEnum):
    """Why a packet was not judged."""

    CUT_SHORT = "cut short by the capture"
    FRAGMENT = "a fragment of an IP packet"
    NO_LENGTH = "a GSO packet with length field 0 (BIG TCP)"
    MERGED = "longer than an Ethernet packet and not right: a NIC may have merged it (LRO)"
    NO_TUNNEL = "not in the tunnel's format"
    REROUTED = "a source route hides the addresses that the checksum covers"
    MALFORMED = "malformed"
    INNER_MALFORMED = "the inner packet is shorter than its own length fields"
    INNER_UNKNOWN = "the tunnel carries something that csumfix cannot check"


class Judgement(NamedTuple):
    """A diagnosis; for UNJUDGED with the reason."""

    diagnosis: Diagnosis
    reason: Reason | None = None


class Circumstances(NamedTuple):
    """What is known about a packet besides its checksums.

    direction: of the packet at the device where it was captured; None if unknown.
    complete: whether the receiver's kernel considers its checksums computed; None if unknown. If
        not, the packet comes from GRO, which has verified it, or from the same machine. The kernel
        accepts it without verifying (skb_csum_unnecessary() in include/linux/skbuff.h).
    tcp_data: whether the inner packet is a TCP segment that GRO would merge: with data, without
        SYN and RST.
    length: bytes of the outer IP packet.
    """

    direction: Direction | None = None
    complete: bool | None = None
    tcp_data: bool = False
    length: int = 0


ETHERNET_MTU = 1500
JUMBO_MTU = 9216
"""No current Ethernet device carries more: a longer packet was never on a wire."""

INTACT = frozenset({Inner.RIGHT, Inner.UNPROVEN, Inner.UNKNOWN})


def judge(seen: Inspection, how: Circumstances) -> Judgement:
    """Judge a tunnel packet whose status is OK."""
    if how.complete is False:
        return Judgement(Diagnosis.GSO)
    if seen.inner is Inner.CORRUPT:
        return _damaged(seen, how)
    if seen.outer is Outer.WRONG and seen.inner is Inner.UNKNOWN:
        return Judgement(Diagnosis.UNJUDGED, Reason.INNER_UNKNOWN)
    if seen.outer is Outer.WRONG:
        malformed = seen.inner is Inner.MALFORMED
        return Judgement(Diagnosis.CORRUPT if malformed else Diagnosis.REWRITTEN)
    if seen.inner is Inner.MALFORMED:
        return Judgement(Diagnosis.UNJUDGED, Reason.INNER_MALFORMED)
    return Judgement(_intact(seen, how))


def _damaged(seen: Inspection, how: Circumstances) -> Judgement:
    """Judge a packet whose inner checksum is neither right nor partial."""
    if seen.outer is not Outer.RIGHT and how.tcp_data and how.length > ETHERNET_MTU:
        return Judgement(Diagnosis.UNJUDGED, Reason.MERGED)
    wrong = seen.outer is Outer.WRONG
    return Judgement(Diagnosis.CORRUPT if wrong else Diagnosis.INNER_CORRUPT)


def _intact(seen: Inspection, how: Circumstances) -> Diagnosis:
    """Judge a packet that shows no damage."""
    if seen.inner in INTACT and seen.outer is Outer.RIGHT:
        return Diagnosis.RIGHT
    if seen.inner in INTACT and seen.outer is Outer.ZERO:
        return Diagnosis.ZERO
    if seen.outer is Outer.RIGHT:
        return Diagnosis.RELAYED
    if how.complete is None and _may_be_merged(seen, how):
        return Diagnosis.GSO
    return _partial(how.direction)


def _may_be_merged(seen: Inspection, how: Circumstances) -> bool:
    """Tell whether this can be a GSO packet, or merged by GRO."""
    if how.length > JUMBO_MTU:
        return True
    return how.tcp_data and seen.inner is Inner.PARTIAL and seen.outer is not Outer.LCO


def _partial(direction: Direction | None) -> Diagnosis:
    if direction is None:
        return Diagnosis.UNDECIDED
    return Diagnosis.PARTIAL if direction is Direction.OUT else Diagnosis.NOT_FINISHED
