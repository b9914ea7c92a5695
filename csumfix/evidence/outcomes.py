"""The kinds of probes, how much a round of them asks, and what became of them. Pure.

========================  ==================================================================
PING, PING_OFFLOADED      echo request of 56 bytes; inner checksum complete, left to offload
PING_OUTER                PING with the outer checksum complete, too; for the service
PING_LARGE                echo request as long as the tunnel's MTU, complete
SYN, SYN_OFFLOADED        TCP SYN; complete, left to offload
DATA, GSO                 TCP data of no connection: a segment, complete; a GSO packet of two
WRAPPED                   echo request in a tunnel datagram of our own; both checksums complete
WRAPPED_OFFLOADED         the same by a UDP socket, which leaves the outer checksum to offload
CONNECT                   connect() of an ordinary socket, from a new port each time
MARKED                    the same with the mark of kube-proxy for packets to be masqueraded
MARKED_HOST               the same from the host's main address, as a query to a service has it
========================  ==================================================================
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from csumfix.core import Inspection
from csumfix.evidence.arrivals import Diagnosis
from csumfix.evidence.departures import Departure
from csumfix.host.conntrack import OuterTuple
from csumfix.host.remotes import Remote


class Kind(enum.IntEnum):
    """A kind of probe, by its number; see the table above."""

    PING = 65301
    PING_OFFLOADED = 65302
    PING_LARGE = 65303
    SYN = 65304
    SYN_OFFLOADED = 65305
    WRAPPED = 65306
    WRAPPED_OFFLOADED = 65307
    CONNECT = 65308
    MARKED = 65309
    MARKED_HOST = 65310
    DATA = 65311
    GSO = 65312
    PING_OUTER = 65313


FRAMES = (
    *(Kind.PING, Kind.PING_OFFLOADED, Kind.PING_LARGE),
    *(Kind.SYN, Kind.SYN_OFFLOADED, Kind.DATA, Kind.GSO, Kind.PING_OUTER),
)
DATAGRAMS = (Kind.WRAPPED, Kind.WRAPPED_OFFLOADED)
SOCKETS = (Kind.CONNECT, Kind.MARKED, Kind.MARKED_HOST)

MARKS = frozenset({Kind.MARKED, Kind.MARKED_HOST})

FLOWS = {Kind.SYN: 2, Kind.SYN_OFFLOADED: 2}
"""How many flows of a kind there are; 1 of all others."""

OFFLOADED = frozenset({Kind.SYN_OFFLOADED, Kind.PING_OFFLOADED})
"""Frames whose inner checksum is left to offload."""


@dataclass
class KindOutcome:
    """What became of the packets of one kind to one remote end.

    sent, answered: packets, without the first one of each flow; of SOCKETS every packet is a
        flow of its own, and counts.
    left: how they left, as the underlay saw them.
    ports, dests: outer source ports and destination addresses with which they left.
    wrong: some of those that left wrong, by outer source port.
    flows: outer flows as they left.
    arrived: answers as they arrived at the underlay. They may be wrong, and so not count as
        answered, but they show that the question got there.
    sources: outer source ports of the answers.
    lost_flows: flows of which series.LOST_FLOW packets or more were sent and none answered.
    fault: why nothing could be sent.
    sent_at: when the packets that count in `sent` were sent, in seconds of CLOCK_MONOTONIC.
    answered_at: when those of them were sent that have been answered.
    """

    sent: int = 0
    answered: int = 0
    left: Counter[Departure] = field(default_factory=Counter)
    ports: set[int] = field(default_factory=set)
    dests: set[str] = field(default_factory=set)
    wrong: dict[int, Inspection] = field(default_factory=dict)
    flows: set[OuterTuple] = field(default_factory=set)
    arrived: Counter[Diagnosis] = field(default_factory=Counter)
    sources: set[int] = field(default_factory=set)
    lost_flows: int = 0
    fault: str = ""
    sent_at: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)

    @property
    def wrong_flows(self) -> set[OuterTuple]:
        """Those outer flows of which packets left wrong."""
        return {flow for flow in self.flows if flow.source_port in self.wrong}

    def add_departed(
        self, seen: Inspection, departure: Departure, addresses: tuple[str, str]
    ) -> None:
        """Note a packet that left; addresses: its outer source and destination."""
        source, dest = addresses
        self.left[departure] += 1
        self.ports.add(seen.source)
        self.dests.add(dest)
        self.flows.add(OuterTuple(source, seen.source, dest, seen.dest))
        if departure is Departure.WRONG:
            self.wrong[seen.source] = seen


Outcomes = Mapping[Kind, KindOutcome]
"""Of one remote end."""


@dataclass(frozen=True)
class Extent:
    """How much a round of probes asks; the default is what the doctor asks.

    kinds: that are sent.
    flows: how many flows of a kind there are, if there are several.
    watch: whether the underlay is watched, too.
    wanted: returns the kinds that the next packets to a remote end should be of, given the number
        of the round; None if each kind is sent until it has been answered often enough.
    decided: tells whether nothing more need be known of a remote end.
    """

    kinds: frozenset[Kind] = frozenset(Kind) - {Kind.PING_OUTER}
    flows: Mapping[Kind, int] = field(default_factory=lambda: FLOWS)
    watch: bool = True
    wanted: Callable[[Outcomes, int], Collection[Kind]] | None = None
    decided: Callable[[Outcomes], bool] = lambda _: False


@dataclass
class Probed:
    """What one remote end was asked, by kind."""

    remote: Remote
    outcomes: dict[Kind, KindOutcome] = field(default_factory=dict)


@dataclass
class Probes:
    """All that came of a round of probes.

    blind: why the underlay could not be watched, or no frames be sent; empty if they could.
    """

    probed: list[Probed] = field(default_factory=list)
    blind: str = ""
