"""What is to be said of a tunnel packet that was captured, here or elsewhere. Pure.

The same bytes can be healthy on the sender and a fault on the receiver. A sender's capture shows
packets before its NIC has computed their checksums. On the receiver such a packet means that the
NIC never did, with one exception: GRO merges packets whose checksums it has verified, and leaves
the pseudo-header sums in the fields of what it made of them (tcp_gro_complete() in
net/ipv4/tcp_offload.c, udp_gro_complete() in net/ipv4/udp_offload.c).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from csumfix.core import Inner, Inspection, Outer
from csumfix.evidence.tapsocket import Direction


class Diagnosis(enum.StrEnum):
    """What is the matter with a packet."""

    RIGHT = "right"
    ZERO = "zero"
    """No outer checksum; the inner packet is whole, or has none of its own."""
    PARTIAL = "partial"
    """Leaves here, and the device completes it."""
    GSO = "gso"
    """A GSO packet that leaves, or one that GRO made of packets that arrived; both are healthy."""
    UNDECIDED = "undecided"
    """Partial: healthy where it leaves, NOT_FINISHED where it arrives, and nobody knows which."""
    NOT_FINISHED = "not_finished"
    """Arrived with a checksum that the sender's NIC should have computed."""
    RELAYED = "relayed"
    """A right outer checksum over an inner one that nobody will compute any more."""
    REWRITTEN = "rewritten"
    """A wrong outer checksum over an intact inner packet."""
    CORRUPT = "corrupt"
    """A wrong outer checksum over a damaged inner packet."""
    INNER_CORRUPT = "inner_corrupt"
    """A damaged inner packet below an outer checksum that does not tell."""
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
"""What is surely wrong."""


class Reason(enum.StrEnum):
    """Why a packet was not judged."""

    CUT_SHORT = "cut short by the capture"
    FRAGMENT = "a fragment of an IP packet"
    NO_LENGTH = "a GSO packet whose length field says 0, as BIG TCP has it"
    MERGED = "longer than an Ethernet packet and not right: a NIC may have merged it (LRO)"
    NO_TUNNEL = "not the tunnel's format"
    REROUTED = "a source route hides the addresses that the checksum covers"
    MALFORMED = "malformed"
    INNER_MALFORMED = "the inner packet ends before its own lengths say"


class Verdict(NamedTuple):
    """A diagnosis; with the reason if it is that there is none."""

    diagnosis: Diagnosis
    reason: Reason | None = None


class Circumstances(NamedTuple):
    """What is known of a packet beside its checksums.

    direction: which way it went at the device where it was captured; None if nobody knows.
    complete: whether the kernel of the receiver considers its checksums computed; None if nobody
        asked. If not, the packet comes from GRO, which has verified it, or from the same machine.
        The kernel accepts it as it is (skb_csum_unnecessary() in include/linux/skbuff.h).
    tcp_data: the inner packet is a TCP segment such as GRO merges: with data, without SYN and RST.
    """

    direction: Direction | None = None
    complete: bool | None = None
    tcp_data: bool = False
    length: int = 0


ETHERNET_MTU = 1500
JUMBO_MTU = 9216
"""No Ethernet device of today carries more: what is longer was never on a wire."""

INTACT = frozenset({Inner.RIGHT, Inner.UNPROVEN})


def judge(seen: Inspection, how: Circumstances) -> Verdict:
    """Judge a tunnel packet whose status is OK."""
    if how.complete is False:
        return Verdict(Diagnosis.GSO)
    if seen.inner is Inner.CORRUPT:
        return _damaged(seen, how)
    if seen.outer is Outer.WRONG:
        malformed = seen.inner is Inner.MALFORMED
        return Verdict(Diagnosis.CORRUPT if malformed else Diagnosis.REWRITTEN)
    if seen.inner is Inner.MALFORMED:
        return Verdict(Diagnosis.UNJUDGED, Reason.INNER_MALFORMED)
    return Verdict(_intact(seen, how))


def _damaged(seen: Inspection, how: Circumstances) -> Verdict:
    """Judge a packet whose inner checksum is neither right nor partial."""
    if seen.outer is not Outer.RIGHT and how.tcp_data and how.length > ETHERNET_MTU:
        return Verdict(Diagnosis.UNJUDGED, Reason.MERGED)
    wrong = seen.outer is Outer.WRONG
    return Verdict(Diagnosis.CORRUPT if wrong else Diagnosis.INNER_CORRUPT)


def _intact(seen: Inspection, how: Circumstances) -> Diagnosis:
    """Judge a packet of which nothing contradicts that it is whole."""
    if seen.inner in INTACT and seen.outer is Outer.RIGHT:
        return Diagnosis.RIGHT
    if seen.inner in INTACT and seen.outer is Outer.ZERO:
        return Diagnosis.ZERO
    if seen.outer is Outer.RIGHT:
        return Diagnosis.RELAYED
    if how.complete is None and _may_be_merged(seen, how):
        return Diagnosis.GSO
    return _unfinished(how.direction)


def _may_be_merged(seen: Inspection, how: Circumstances) -> bool:
    """Tell whether GSO or GRO can have made this of several packets."""
    if how.length > JUMBO_MTU:
        return True
    return how.tcp_data and seen.inner is Inner.PARTIAL and seen.outer is not Outer.LCO


def _unfinished(direction: Direction | None) -> Diagnosis:
    if direction is None:
        return Diagnosis.UNDECIDED
    return Diagnosis.PARTIAL if direction is Direction.OUT else Diagnosis.NOT_FINISHED
