"""What is known of one remote end, and what can be concluded about it. Pure.

A kind of probe counts as lost only if chance cannot have lost all of it, given how many of the
others were answered.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from csumfix.evidence.bulk import Bulk
from csumfix.evidence.departures import Departure
from csumfix.evidence.drops import Drops
from csumfix.evidence.outcomes import Kind, KindOutcome, Probed
from csumfix.host.conntrack import Tracked
from csumfix.host.natrules import NatRule, NatRules
from csumfix.host.nics import Nic

CHANCE = 1e-4
"""If the probability that chance lost all packets of a kind is lower, something else did."""

NONE_AT_ALL = 20
"""Packets of a kind that must have gone unanswered if nothing at all was answered."""

OWN_PORTS = frozenset({Kind.WRAPPED, Kind.WRAPPED_OFFLOADED})
"""Kinds whose outer source ports are of our choice and not the device's."""

NAMES = {
    Kind.PING: "pings",
    Kind.PING_OFFLOADED: "pings, checksum left to offload",
    Kind.PING_LARGE: "pings as long as the MTU",
    Kind.SYN: "TCP SYN, checksum complete",
    Kind.SYN_OFFLOADED: "TCP SYN, checksum left to offload",
    Kind.WRAPPED: "tunnel packets made by doctor, both checksums complete",
    Kind.WRAPPED_OFFLOADED: "the same, outer checksum left to offload",
    Kind.CONNECT: "ordinary TCP connections",
    Kind.MARKED: "connections with kube-proxy's mark",
    Kind.MARKED_HOST: "the same from the host's main address",
    Kind.DATA: "TCP data, checksum complete",
    Kind.GSO: "GSO packets of TCP data",
}


class Verdict(enum.StrEnum):
    """The possible conclusions about a tunnel, worst first."""

    KUBE_PROXY = "kube_proxy"
    """kube-proxy's mark survives encapsulation."""
    CNI = "cni"
    """The same, because the CNI masquerades before kube-proxy can clear the mark."""
    SNAT = "snat"
    DNAT = "dnat"
    IPVS = "ipvs"
    STATELESS = "stateless"
    NAT = "nat"
    """Something unknown rewrites the outer header."""
    ZERO_NAT = "zero_nat"
    """NAT turns a checksum of 0 into a wrong one."""
    NIC = "nic"
    """Inner checksums are never computed."""
    NIC_OUTER = "nic_outer"
    """Outer checksums are not computed either."""
    NIC_GSO = "nic_gso"
    """GSO packets only."""
    RELAY = "relay"
    FORWARDED = "forwarded"
    """Packets that this host forwards for others leave it wrong."""
    REMOTE = "remote"
    """The other end sends wrong checksums."""
    MTU = "mtu"
    NOT_LEAVING = "not_leaving"
    BLACK_HOLE = "black_hole"
    LOSS = "loss"
    UNDECIDED = "undecided"
    CURED = "cured"
    HEALTHY = "healthy"


NO_RULES = NatRules()
UNTRACKED = Tracked()

HEALTHY = frozenset({Verdict.HEALTHY, Verdict.CURED})


@dataclass(frozen=True)
class Facts:
    """What is known of this host.

    before, after: its rules before and after the probes.
    lanes: the lanes of csumfix whose rules are loaded for the tunnel's port, such as "kernel".
    tracked: what conntrack knows of the outer flows of probes.
    drops: packets that the kernel dropped for their checksum while the probes were sent.
    blind: why neither frames could be sent nor departures seen; empty if they could.
    """

    before: NatRules = NO_RULES
    after: NatRules = NO_RULES
    nics: Sequence[Nic] = ()
    kernel: tuple[int, ...] = ()
    lanes: frozenset[str] = frozenset()
    tracked: Tracked = UNTRACKED
    drops: Sequence[Drops] = ()
    blind: str = ""
    bulk: Bulk = Bulk.NOT_TRIED


@dataclass(frozen=True)
class Conclusion:
    """A verdict and its evidence.

    evidence: for the verdict. against: what does not fit, or was not seen.
    experiment: what to try next, if the verdict is not certain.
    rules: those that rewrite packets.
    """

    verdict: Verdict
    evidence: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    experiment: str = ""
    rules: tuple[NatRule, ...] = ()


@dataclass
class Case:
    """One remote end, and questions about it."""

    probed: Probed
    facts: Facts
    rate: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.rate = _rate(self.probed.outcomes.values())

    def outcome(self, kind: Kind) -> KindOutcome:
        """Return what became of the probes of a kind."""
        return self.probed.outcomes.get(kind) or KindOutcome()

    def is_reached(self, kind: Kind) -> bool | None:
        """Tell whether packets of a kind reach the other end; None if that is not known."""
        outcome = self.outcome(kind)
        if outcome.answered or outcome.arrived:
            # A wrong checksum can be right by chance, in all packets of a flow alike.
            return None if outcome.lost_flows else True
        if not outcome.sent or outcome.fault:
            return None
        if self.rate is None:
            return False if outcome.sent >= NONE_AT_ALL // 2 else None
        return False if (1 - self.rate) ** outcome.sent < CHANCE else None

    @property
    def offloaded(self) -> bool | None:
        """Whether ordinary packets reach the other end."""
        if self.outcome(Kind.SYN_OFFLOADED).sent:
            return self.is_reached(Kind.SYN_OFFLOADED)
        return self.is_reached(Kind.CONNECT)

    @property
    def has_frames(self) -> bool:
        """Whether frames of our own were sent."""
        return bool(self.outcome(Kind.SYN).sent)

    @property
    def mark(self) -> str:
        """kube-proxy's mark."""
        mark = self.facts.after.mark
        return f"{mark:#x}" if mark is not None else "0x4000"

    def wrong(self, *kinds: Kind) -> dict[Kind, KindOutcome]:
        """Return the outcomes of those kinds of which some left wrong."""
        found = {kind: self.outcome(kind) for kind in kinds or Kind}
        return {kind: one for kind, one in found.items() if one.left[Departure.WRONG]}

    def tracked(self, *, wrong: bool) -> Tracked:
        """Return what conntrack knows of the outer flows of these probes.

        wrong: of those only that left with a wrong outer checksum.
        """
        # Our own datagrams do not come from the device, so NAT may treat them differently.
        outcomes = [one for kind, one in self.probed.outcomes.items() if kind not in OWN_PORTS]
        return self.facts.tracked.of(
            {flow for one in outcomes for flow in (one.wrong_flows if wrong else one.flows)}
        )

    def shown(self, kind: Kind) -> str:
        """Say how many packets of a kind were answered."""
        outcome = self.outcome(kind)
        return f"{NAMES[kind]}: {outcome.answered} of {outcome.sent} answered"


def _rate(outcomes: Collection[KindOutcome]) -> float | None:
    """Return a cautious estimate of the share of packets that the path answers."""
    rates = [one.answered / (one.sent + 1) for one in outcomes if one.answered]
    return max(rates) * 0.8 if rates else None
