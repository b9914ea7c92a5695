"""Concludes from probes, rules and devices which cause a tunnel suffers from, if any. Pure.

Each remote end is judged separately. The questions, in order:

1. Did a probe leave with a wrong outer checksum? Then this host's NAT causes it, whether or not
   anything was answered. The kinds of these probes, and the differences of their checksums, show
   which NAT.
2. Which probes reached the other end? Even a damaged answer shows that its probe did.
   The same packet, once with and once without offload, separates checksums from other causes.
3. Did answers arrive with wrong checksums? Then the other end, or something before it, is faulty.

A kind of probe counts as lost only if chance cannot have lost all of it, given how many of the
others were answered.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from csumfix.core import Inspection
from csumfix.evidence import causes
from csumfix.evidence.arrivals import WRONG
from csumfix.evidence.bulk import Bulk
from csumfix.evidence.causes import Cause, Flow
from csumfix.evidence.departures import Departure
from csumfix.evidence.drops import Drops, told
from csumfix.evidence.outcomes import MARKS, Kind, Outcome, Probed
from csumfix.host.conntrack import Tracked
from csumfix.host.natrules import NatRule, NatRules
from csumfix.host.nics import Nic
from csumfix.host.remotes import Remote
from csumfix.text import listing

CHANCE = 1e-4
"""If the probability that chance lost all packets of a kind is lower, something else did."""

NONE_AT_ALL = 20
"""Packets of a kind that must have gone unanswered if nothing at all was answered."""

LOSS, LOST = 0.05, 3
"""Share, and number, of missing pings from which on the path counts as lossy."""

FIXED_KERNELS = ((5, 7), (5, 4, 41), (4, 19, 123), (4, 14, 181))
"""Kernels whose NAT leaves a checksum of 0 alone: "netfilter: nat: never update the UDP checksum
when it's 0" (ea64d8d6c675 in Linux 5.7), and the stable series that have it."""


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
CHECKSUMS = frozenset(list(Verdict)[: list(Verdict).index(Verdict.REMOTE) + 1])
"""The verdicts that are about checksums."""


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
class _Case:
    """One remote end, and questions about it."""

    probed: Probed
    facts: Facts
    rate: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.rate = _rate(self.probed.outcomes.values())

    def outcome(self, kind: Kind) -> Outcome:
        return self.probed.outcomes.get(kind) or Outcome()

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
    def outer_checksum(self) -> bool:
        """Whether the tunnel has outer checksums."""
        tunnel = self.probed.remote.tunnel
        return tunnel.checksum6 if ":" in self.probed.remote.vtep else tunnel.checksum

    def wrong(self, *kinds: Kind) -> dict[Kind, Outcome]:
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


def _rate(outcomes: Collection[Outcome]) -> float | None:
    """Return a cautious estimate of the share of packets that the path answers."""
    rates = [(one.answered + 0.0) / (one.sent + 1) for one in outcomes if one.answered]
    return max(rates) * 0.8 if rates else None


def conclude(probed: Probed, facts: Facts) -> list[Conclusion]:
    """Return the conclusions about one remote end, the most certain first."""
    case = _Case(probed, facts)
    own = _leaves_wrong(case) or _reaches(case)
    remote = _remote(case)
    if remote and own.verdict in HEALTHY | {Verdict.UNDECIDED, Verdict.LOSS}:
        return [remote]
    return [own, remote] if remote else [own]


# ----------------------------------------------------------------------------- 1. what leaves


def _leaves_wrong(case: _Case) -> Conclusion | None:
    marked = case.wrong(*MARKS)
    unmarked = case.wrong(*(kind for kind in Kind if kind not in MARKS))
    # A flow without the mark is hit as well if NAT has given its port to a marked flow.
    plain = case.outcome(Kind.CONNECT).left
    if marked and plain[Departure.WRONG] <= plain.total() / 2:
        return _marked(case, marked)
    return _rewritten(case, unmarked, _counts(unmarked)) if unmarked else None


def conclude_from_departures(remote: Remote, seen: Outcome, facts: Facts) -> Conclusion:
    """Say what rewrites packets that were seen leaving wrong, and that are no probes."""
    wrong, total = seen.left[Departure.WRONG], seen.left.total()
    case = _Case(Probed(remote, {Kind.CONNECT: seen}), facts)
    counts = f"{wrong} of {total} packets left this host with a wrong outer checksum"
    return _rewritten(case, case.wrong(), counts)


def _counts(wrong: dict[Kind, Outcome]) -> str:
    number = sum(one.left[Departure.WRONG] for one in wrong.values())
    return f"{number} probes left this host with a wrong outer checksum"


def _marked(case: _Case, wrong: dict[Kind, Outcome]) -> Conclusion:
    """Tell kube-proxy's own fault from that of a CNI before it."""
    rules = case.facts.after
    sent = sum(one.sent for one in wrong.values())
    number = sum(one.left[Departure.WRONG] for one in wrong.values())
    evidence = [
        f"{number} of {sent} probes with kube-proxy's mark {_mark(rules)} left this host with a "
        "wrong outer checksum",
        f"without the mark: {case.shown(Kind.CONNECT)}",
        *_from_conntrack(case.tracked(wrong=True)),
    ]
    culprits = _culprits(case, "source", inner=True)
    if not rules.clears_mark:
        evidence.append("KUBE-POSTROUTING masquerades marked packets without clearing the mark")
        return Conclusion(Verdict.KUBE_PROXY, tuple(evidence), (), "", culprits)
    evidence.append(
        "KUBE-POSTROUTING clears the mark, but an earlier rule ends the traversal of table nat"
    )
    against: tuple[str, ...] = ()
    if Kind.MARKED in wrong:
        against = ("packets from the tunnel's own address are affected as well, which is unusual",)
    firsts = tuple(rule for rule in culprits if rule.owner != "kube-proxy")
    return Conclusion(Verdict.CNI, tuple(evidence), against, "", firsts or culprits)


def _mark(rules: NatRules) -> str:
    return f"{rules.mark:#x}" if rules.mark is not None else "0x4000"


REWRITERS = {
    Cause.NEW_PORT: Verdict.SNAT,
    Cause.NEW_ADDRESS: Verdict.DNAT,
    Cause.ZERO: Verdict.ZERO_NAT,
}


def _rewritten(case: _Case, wrong: dict[Kind, Outcome], counts: str) -> Conclusion:
    """Say what rewrites the outer header of packets without any mark.

    counts: how many left wrong, as evidence.
    """
    evidence = [counts]
    flows = {port: _flow(seen) for one in wrong.values() for port, seen in one.wrong.items()}
    cause = causes.name(flows)
    verdict = REWRITERS.get(cause, Verdict.NAT)
    if verdict is Verdict.ZERO_NAT and case.outer_checksum:
        verdict = Verdict.NAT
    vtep, port = case.probed.remote.vtep, case.probed.remote.tunnel.port
    dests = {dest for one in wrong.values() for dest in one.dests}
    if dests and vtep and vtep not in dests:
        evidence.append(f"probes to {vtep} left for {listing(sorted(dests))} instead")
        verdict = Verdict.DNAT if verdict is not Verdict.ZERO_NAT else verdict
    tracked = case.tracked(wrong=True)
    evidence += [*_difference(cause, flows), *_from_conntrack(tracked)]
    verdict = _tracked_verdict(tracked) if verdict is Verdict.NAT else verdict
    rules = case.facts.after
    culprits = _culprits(case, "destination" if verdict is Verdict.DNAT else "source")
    if verdict is Verdict.DNAT:
        stateless = tuple(rule for rule in rules.rules if rule.rewrites == "stateless")
        if (vtep, port) in rules.ipvs:
            evidence.append(f"{vtep} port {port} is a virtual UDP service of IPVS")
            return Conclusion(Verdict.IPVS, tuple(evidence))
        if stateless and (tracked.knows_none or not culprits):
            return Conclusion(Verdict.STATELESS, tuple(evidence), (), "", stateless)
    against = [] if culprits else [f"no rule that does this was found{_unread(rules)}"]
    if verdict is Verdict.ZERO_NAT:
        evidence.append("the tunnel sends no outer checksum (0), and NAT has changed the 0")
        _compare_kernel(case.facts.kernel, evidence, against)
    elif tracked.knows_none:
        against.append("NAT needs conntrack, and conntrack does not know these flows")
    return Conclusion(verdict, tuple(evidence), tuple(against), "", culprits)


def _from_conntrack(tracked: Tracked) -> list[str]:
    """Show a flow that NAT rewrites, as conntrack has it."""
    return [
        f"conntrack: the flow from {sent} leaves from {leaves}"
        for leaves, sent in list(tracked.rewritten.items())[:1]
    ]


def _tracked_verdict(tracked: Tracked) -> Verdict:
    """Tell by conntrack's entries which NAT it is that the checksums do not tell."""
    rewritten = tracked.rewritten.items()
    if any((sent.dest, sent.dest_port) != (out.dest, out.dest_port) for out, sent in rewritten):
        return Verdict.DNAT
    return Verdict.SNAT if rewritten else Verdict.NAT


def _compare_kernel(kernel: tuple[int, ...], evidence: list[str], against: list[str]) -> None:
    """Say whether this kernel's version is known to have the bug with a checksum of 0."""
    if not kernel:
        return
    version = ".".join(map(str, kernel))
    if has_zero_checksum_bug(kernel):
        evidence.append(f"Linux {version} has this bug; Linux 5.7, 5.4.41 and later do not")
    else:
        against.append(f"Linux {version} is not known to have this bug: it was fixed in 5.7")


def _unread(rules: NatRules) -> str:
    return f" (not all rules could be read: {rules.trouble})" if rules.trouble else ""


def _flow(seen: Inspection) -> Flow:
    complete = (seen.found - seen.difference) % causes.MODULUS
    return Flow({seen.difference}, {seen.found}, {complete})


def _difference(cause: Cause, flows: dict[int, Flow]) -> Iterator[str]:
    port, flow = next(iter(flows.items()))
    off = causes.difference(flow)
    if cause is Cause.NEW_PORT:
        old = (port - off) % causes.MODULUS
        yield f"the checksum is off by the new minus the old source port, such as {old} -> {port}"
    elif cause is Cause.NEW_ADDRESS:
        yield f"every checksum is off by {off}, which is twice the new minus the old address"


def _culprits(case: _Case, rewrites: str, *, inner: bool = False) -> tuple[NatRule, ...]:
    """Return the rules that may have rewritten the probes, the likeliest first.

    Table nat sees the first packet of each flow, so their counters have risen.
    inner: rules of the inner packets' address family count as well.
    """
    before = {rule.key: rule.packets or 0 for rule in case.facts.before.rules}
    remote = case.probed.remote
    family = "6" if ":" in remote.vtep else "4"
    families = {family, "both", *(str(remote.version) if inner else "")}
    found = []
    for rule in case.facts.after.rules:
        rise = None if rule.packets is None else rule.packets - before.get(rule.key, 0)
        if rule.rewrites != rewrites or rule.family not in families:
            continue
        if " tcp " in f" {rule.text} " or rise == 0:
            continue
        named = f"{remote.tunnel.port}" in rule.text or "mark" in rule.text
        found.append((not named, -(rise or 0), rule))
    return tuple(rule for *_, rule in sorted(found, key=lambda one: one[:2]))[:3]


# ---------------------------------------------------------------------------- 2. what arrives


def _reaches(case: _Case) -> Conclusion:
    offloaded = case.offloaded
    if not any(one.sent for one in case.probed.outcomes.values()):
        return _unsent(case)
    if offloaded:
        return _works(case)
    if _stays_here(case):
        return Conclusion(
            Verdict.NOT_LEAVING,
            ("no probe reached the device that carries the tunnel",),
            (),
            "look for a rule that drops them, and run 'ip route get' for the VTEP",
        )
    if case.has_frames:
        return _lost(case)
    return _lost_without_frames(case)


def _unsent(case: _Case) -> Conclusion:
    faults = {one.fault for one in case.probed.outcomes.values()} - {""}
    reason = listing(sorted(faults)) or "none was requested"
    return Conclusion(
        Verdict.UNDECIDED,
        (),
        (f"no probe was sent: {reason}",),
        "run this as root, without --probe off",
    )


def _stays_here(case: _Case) -> bool:
    outcomes = case.probed.outcomes.values()
    seen = sum(one.left.total() for one in outcomes)
    return not case.facts.blind and not seen and sum(one.sent for one in outcomes) > NONE_AT_ALL


def _lost(case: _Case) -> Conclusion:
    """Ordinary packets are lost, or seem to be: compare them with packets that we made."""
    syn, ping = case.is_reached(Kind.SYN), case.is_reached(Kind.PING)
    if case.offloaded is None:
        return _too_lossy(case)
    if syn:
        return _inner(case, (Kind.SYN, Kind.SYN_OFFLOADED))
    if ping:
        return _behind_firewall(case)
    return _all_lost(case)


def _inner(case: _Case, kinds: tuple[Kind, Kind]) -> Conclusion:
    """Only packets with an offloaded inner checksum are lost, and they left as they should."""
    evidence = [case.shown(kind) for kind in kinds]
    evidence.append(f"none of {_left(case)} probes left with a wrong outer checksum")
    sources = {port for one in case.probed.outcomes.values() for port in one.sources}
    # Each answer to TCP is a flow; the answers to all pings are one flow.
    if len(sources) == 1 and case.outcome(Kind.SYN).sources:
        port = next(iter(sources))
        evidence.append(
            f"all answers come from outer source port {port}, where a tunnel device "
            "would choose a different one for each flow"
        )
        return Conclusion(Verdict.RELAY, tuple(evidence), _cured_in_vain(case))
    evidence += _devices(case.facts.nics)
    against = list(_cured_in_vain(case))
    if case.outer_checksum:
        against.append(
            "the tunnel computes outer checksums, so a program between the nodes that resends "
            "the datagrams would look the same"
        )
    return Conclusion(Verdict.NIC, tuple(evidence), tuple(against))


def _left(case: _Case) -> int:
    return sum(one.left.total() for one in case.probed.outcomes.values())


def _cured_in_vain(case: _Case) -> tuple[str, ...]:
    if not case.facts.lanes:
        return ()
    lanes = listing(sorted(case.facts.lanes))
    return (f"csumfix's rules are loaded ({lanes} lane) and do not repair these packets",)


def _devices(nics: Sequence[Nic]) -> list[str]:
    shown = [
        f"{nic.name} (driver {nic.driver or 'unknown'}) offers "
        f"{listing(sorted(nic.features)) or 'no checksum offload'}"
        for nic in nics
    ]
    return shown[:3]


def _behind_firewall(case: _Case) -> Conclusion:
    """SYN packets are lost in either form, and pings are not."""
    reached = case.is_reached(Kind.PING_OFFLOADED)
    firewall = f"{case.shown(Kind.SYN)}, but pings are answered: a firewall drops TCP"
    if reached is False:
        found = _inner(case, (Kind.PING, Kind.PING_OFFLOADED))
        return Conclusion(found.verdict, (*found.evidence, firewall), found.against)
    # If a device lacks this feature, the kernel computes ICMP checksums, and pings do not test it.
    generic = all("tx-checksum-ip-generic" in nic.features for nic in case.facts.nics[:1])
    if reached and generic and case.facts.nics:
        found = _works(case)
        return Conclusion(
            found.verdict,
            (case.shown(Kind.PING_OFFLOADED), firewall, *found.evidence),
            found.against,
        )
    return Conclusion(
        Verdict.UNDECIDED,
        (firewall,),
        ("pings do not show whether the NIC computes TCP checksums",),
        "name an open port: csumfix doctor --tcp POD-ADDRESS:PORT",
    )


def _all_lost(case: _Case) -> Conclusion:
    """Nothing that the tunnel's device sends is answered."""
    evidence = [case.shown(kind) for kind in (Kind.PING, Kind.SYN, Kind.WRAPPED)]
    wrapped = case.is_reached(Kind.WRAPPED)
    if wrapped:
        evidence += _devices(case.facts.nics)
        plain = case.is_reached(Kind.WRAPPED_OFFLOADED)
        if plain is not None:
            works = "answered" if plain else "lost"
            evidence.append(
                f"with the outer checksum left to offload, these tunnel packets are {works}"
            )
        return Conclusion(Verdict.NIC_OUTER, tuple(evidence), _cured_in_vain(case))
    if wrapped is None:
        return Conclusion(
            Verdict.UNDECIDED,
            tuple(evidence),
            ("doctor could not send tunnel packets of its own making",),
            "run 'csumfix check --live' at the other end while this runs here",
        )
    evidence.append("these tunnel packets left with both checksums complete and right")
    damage = "something that damages every packet on the way would look the same from here"
    return Conclusion(
        Verdict.BLACK_HOLE,
        tuple(evidence),
        (damage, *_dropped(case)),
        "run 'csumfix check --live' at the other end while this runs here",
    )


def _dropped(case: _Case) -> list[str]:
    """Say who dropped packets for their checksum meanwhile."""
    return [f"meanwhile {dropped}" for dropped in told(case.facts.drops)]


def _lost_without_frames(case: _Case) -> Conclusion:
    evidence = [case.shown(kind) for kind in (Kind.CONNECT, Kind.PING)]
    why = case.facts.blind or "doctor cannot send frames of its own making into this tunnel"
    return Conclusion(
        Verdict.UNDECIDED,
        tuple(evidence),
        (f"only ordinary sockets could be used: {why}", *_dropped(case)),
        "run this as root: without root, a wrong checksum and a firewall look the same",
    )


def _too_lossy(case: _Case) -> Conclusion:
    shown = tuple(case.shown(kind) for kind in (Kind.PING, Kind.SYN, Kind.SYN_OFFLOADED))
    return Conclusion(
        Verdict.UNDECIDED,
        shown,
        ("so many packets or whole flows are lost that checksums may not be the cause",),
        "find what loses packets or flows of every kind, then run this again",
    )


def _works(case: _Case) -> Conclusion:
    """Ordinary packets arrive; see whether others do."""
    marked = [kind for kind in MARKS if case.is_reached(kind) is False]
    known = case.facts.after.mark is not None
    if marked and known and case.is_reached(Kind.CONNECT):
        return _marked_lost(case, marked)
    bulk = case.facts.bulk is Bulk.STUCK
    if case.is_reached(Kind.PING_LARGE) is False:
        length = case.probed.remote.mtu
        return Conclusion(
            Verdict.MTU,
            (f"{case.shown(Kind.PING)}, those of {length} bytes: none",),
            ("the answers may be what is lost: also run csumfix doctor at the other end",),
        )
    if case.is_reached(Kind.GSO) is False and case.is_reached(Kind.DATA):
        return _gso(case)
    if bulk:
        return Conclusion(
            Verdict.NIC_GSO,
            ("1 MB over TCP got stuck, but single packets of every length arrive",),
            ("a slow receiver would look the same",),
            f"ethtool -K {_first(case.facts.nics)} tx-udp_tnl-segmentation off, then try again",
        )
    if _is_lossy(case):
        shown = tuple(case.shown(kind) for kind in (Kind.PING, Kind.SYN, Kind.SYN_OFFLOADED))
        return Conclusion(Verdict.LOSS, shown, ("packets of all kinds are lost equally",))
    return _healthy(case)


def _gso(case: _Case) -> Conclusion:
    """GSO packets are lost, and single packets arrive."""
    against: tuple[str, ...] = ()
    if "kernel" in case.facts.lanes:
        against = (
            "csumfix's kernel lane completes single packets but leaves GSO packets to the NIC, so "
            "without csumfix the NIC may ruin both",
        )
    shown = [case.shown(kind) for kind in (Kind.SYN_OFFLOADED, Kind.DATA, Kind.GSO)]
    return Conclusion(Verdict.NIC_GSO, (*shown, *_devices(case.facts.nics)), against)


def _first(nics: Sequence[Nic]) -> str:
    return nics[0].name if nics else "DEVICE"


def _marked_lost(case: _Case, marked: list[Kind]) -> Conclusion:
    """Marked packets are lost; if their departure was seen, it was not wrong."""
    shown = (case.shown(Kind.CONNECT), *(case.shown(kind) for kind in marked))
    if not case.facts.blind:
        return Conclusion(
            Verdict.UNDECIDED,
            shown,
            ("the marked packets left with right checksums: a rule or route may drop them",),
            f"look for rules and routes that match mark {_mark(case.facts.after)}",
        )
    rules = case.facts.after
    verdict = Verdict.CNI if rules.clears_mark else Verdict.KUBE_PROXY
    return Conclusion(verdict, shown, (f"packets were not seen leaving: {case.facts.blind}",))


def _is_lossy(case: _Case) -> bool:
    pings = case.outcome(Kind.PING)
    lost = pings.sent - pings.answered
    return pings.answered > 0 and lost >= LOST and lost > LOSS * pings.sent


def _healthy(case: _Case) -> Conclusion:
    kind = Kind.SYN_OFFLOADED if case.outcome(Kind.SYN_OFFLOADED).sent else Kind.CONNECT
    evidence = [case.shown(one) for one in (Kind.PING, kind) if case.outcome(one).sent]
    evidence += [case.shown(one) for one in sorted(MARKS) if case.outcome(one).sent]
    if not case.facts.blind and _left(case):
        evidence.append(f"none of {_left(case)} probes left with a wrong outer checksum")
    rewritten = _rewrites(case)
    lanes = listing(sorted(case.facts.lanes))
    if rewritten and case.facts.lanes:
        evidence.append(f"{rewritten}, and csumfix's {lanes} lane keeps the checksums right")
        return Conclusion(Verdict.CURED, tuple(evidence), (), "", _culprits(case, "source"))
    if rewritten:
        evidence.append(f"{rewritten}, but the checksums are right")
    elif case.facts.lanes:
        evidence.append(f"csumfix's rules are loaded ({lanes} lane)")
    against = []
    if case.facts.blind:
        against.append(f"packets were not seen leaving: {case.facts.blind}")
    if not case.has_frames:
        against.append("only the first packet of each flow was tried")
    for dropped in _dropped(case):
        against.append(f"{dropped}; csumfix doctor --receiver shows who sends them")
    return Conclusion(Verdict.HEALTHY, tuple(evidence), tuple(against))


def _rewrites(case: _Case) -> str:
    """Say how NAT rewrites the outer header of probes; empty if it does not."""
    remote = case.probed.remote
    low, high = remote.tunnel.source_ports
    # The ports of our own datagrams are not the device's.
    outcomes = {k: v for k, v in case.probed.outcomes.items() if k not in OWN_PORTS}
    ports = {port for one in outcomes.values() for port in one.ports}
    dests = {dest for one in outcomes.values() for dest in one.dests}
    others = {port for port in ports if not low <= port <= high}
    tracked = case.tracked(wrong=False).rewritten.items()
    others |= {flow.source_port for flow, sent in tracked if flow.source_port != sent.source_port}
    if remote.vtep and dests and remote.vtep not in dests:
        return f"NAT sends packets for {remote.vtep} to {listing(sorted(dests))}"
    if others:
        return f"NAT gives flows new outer ports such as {min(others)}"
    return ""


OWN_PORTS = frozenset({Kind.WRAPPED, Kind.WRAPPED_OFFLOADED})


# ------------------------------------------------------------------- 3. what comes from there


def _remote(case: _Case) -> Conclusion | None:
    wrong = {kind: one for kind, one in case.probed.outcomes.items() if WRONG & one.arrived.keys()}
    if not wrong:
        return None
    number = sum(n for one in wrong.values() for what, n in one.arrived.items() if what in WRONG)
    total = sum(one.arrived.total() for one in case.probed.outcomes.values())
    kinds = sorted({str(what) for one in wrong.values() for what in one.arrived if what in WRONG})
    return Conclusion(
        Verdict.REMOTE,
        (
            f"{number} of {total} answers arrived with wrong checksums ({listing(kinds)})",
            *_dropped(case),
        ),
        (),
        f"run csumfix doctor at {case.probed.remote.vtep or 'the other end'}",
    )


# ------------------------------------------------------------------------------------ kernels


def has_zero_checksum_bug(version: tuple[int, ...]) -> bool:
    """Tell whether this kernel's NAT turns an outer checksum of 0 into garbage."""
    if version >= FIXED_KERNELS[0]:
        return False
    series = [fixed for fixed in FIXED_KERNELS[1:] if fixed[:2] == version[:2]]
    return not any(version >= fixed for fixed in series)
