"""Concludes from probes, rules and devices which cause a tunnel suffers from, if any. Pure.

Each remote end is judged separately. The questions, in order:

1. Did a probe leave with a wrong outer checksum? Then this host's NAT causes it, whether or not
   anything was answered. rewriting.py says which NAT.
2. Which probes reached the other end? Even a damaged answer shows that its probe did.
   The same packet, once with and once without offload, separates checksums from other causes.
3. Did answers arrive with wrong checksums? Then the other end, or something before it, is faulty.
"""

from __future__ import annotations

from collections.abc import Sequence

from csumfix.evidence.arrivals import WRONG
from csumfix.evidence.bulk import Bulk
from csumfix.evidence.case import HEALTHY, NONE_AT_ALL, OWN_PORTS, Case, Conclusion, Facts, Verdict
from csumfix.evidence.drops import told
from csumfix.evidence.outcomes import MARKS, Kind, Probed
from csumfix.evidence.rewriting import rewriting_rules, what_rewrites
from csumfix.host.nics import Nic
from csumfix.text import listing

LOSS, LOST = 0.05, 3
"""Share, and number, of missing pings from which on the path counts as lossy."""


def conclude(probed: Probed, facts: Facts) -> list[Conclusion]:
    """Return the conclusions about one remote end, the most certain first."""
    case = Case(probed, facts)
    own = what_rewrites(case) or _reaches(case)
    remote = _remote(case)
    if remote and own.verdict in HEALTHY | {Verdict.UNDECIDED, Verdict.LOSS}:
        return [remote]
    return [own, remote] if remote else [own]


# ---------------------------------------------------------------------------- 2. what arrives


def _reaches(case: Case) -> Conclusion:
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


def _unsent(case: Case) -> Conclusion:
    faults = {one.fault for one in case.probed.outcomes.values()} - {""}
    reason = listing(sorted(faults)) or "none was requested"
    return Conclusion(
        Verdict.UNDECIDED,
        (),
        (f"no probe was sent: {reason}",),
        "run this as root, without --probe off",
    )


def _stays_here(case: Case) -> bool:
    outcomes = case.probed.outcomes.values()
    seen = sum(one.left.total() for one in outcomes)
    return not case.facts.blind and not seen and sum(one.sent for one in outcomes) > NONE_AT_ALL


def _lost(case: Case) -> Conclusion:
    """Ordinary packets are lost, or seem to be: compare them with packets that we made."""
    syn, ping = case.is_reached(Kind.SYN), case.is_reached(Kind.PING)
    if case.offloaded is None:
        return _too_lossy(case)
    if syn:
        return _inner(case, (Kind.SYN, Kind.SYN_OFFLOADED))
    if ping:
        return _behind_firewall(case)
    return _all_lost(case)


def _inner(case: Case, kinds: tuple[Kind, Kind]) -> Conclusion:
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
    if case.probed.remote.has_outer_checksum:
        against.append(
            "the tunnel computes outer checksums, so a program between the nodes that resends "
            "the datagrams would look the same"
        )
    return Conclusion(Verdict.NIC, tuple(evidence), tuple(against))


def _left(case: Case) -> int:
    return sum(one.left.total() for one in case.probed.outcomes.values())


def _cured_in_vain(case: Case) -> tuple[str, ...]:
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


def _behind_firewall(case: Case) -> Conclusion:
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


def _all_lost(case: Case) -> Conclusion:
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


def _dropped(case: Case) -> list[str]:
    """Say who dropped packets for their checksum meanwhile."""
    return [f"meanwhile {dropped}" for dropped in told(case.facts.drops)]


def _lost_without_frames(case: Case) -> Conclusion:
    evidence = [case.shown(kind) for kind in (Kind.CONNECT, Kind.PING)]
    why = case.facts.blind or "doctor cannot send frames of its own making into this tunnel"
    return Conclusion(
        Verdict.UNDECIDED,
        tuple(evidence),
        (f"only ordinary sockets could be used: {why}", *_dropped(case)),
        "run this as root: without root, a wrong checksum and a firewall look the same",
    )


def _too_lossy(case: Case) -> Conclusion:
    shown = tuple(case.shown(kind) for kind in (Kind.PING, Kind.SYN, Kind.SYN_OFFLOADED))
    return Conclusion(
        Verdict.UNDECIDED,
        shown,
        ("so many packets or whole flows are lost that checksums may not be the cause",),
        "find what loses packets or flows of every kind, then run this again",
    )


def _works(case: Case) -> Conclusion:
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


def _gso(case: Case) -> Conclusion:
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


def _marked_lost(case: Case, marked: list[Kind]) -> Conclusion:
    """Marked packets are lost; if their departure was seen, it was not wrong."""
    shown = (case.shown(Kind.CONNECT), *(case.shown(kind) for kind in marked))
    if not case.facts.blind:
        return Conclusion(
            Verdict.UNDECIDED,
            shown,
            ("the marked packets left with right checksums: a rule or route may drop them",),
            f"look for rules and routes that match mark {case.mark}",
        )
    rules = case.facts.after
    verdict = Verdict.CNI if rules.clears_mark else Verdict.KUBE_PROXY
    return Conclusion(verdict, shown, (f"packets were not seen leaving: {case.facts.blind}",))


def _is_lossy(case: Case) -> bool:
    pings = case.outcome(Kind.PING)
    lost = pings.sent - pings.answered
    return pings.answered > 0 and lost >= LOST and lost > LOSS * pings.sent


def _healthy(case: Case) -> Conclusion:
    kind = Kind.SYN_OFFLOADED if case.outcome(Kind.SYN_OFFLOADED).sent else Kind.CONNECT
    evidence = [case.shown(one) for one in (Kind.PING, kind) if case.outcome(one).sent]
    evidence += [case.shown(one) for one in sorted(MARKS) if case.outcome(one).sent]
    if not case.facts.blind and _left(case):
        evidence.append(f"none of {_left(case)} probes left with a wrong outer checksum")
    rewritten = _rewrites(case)
    lanes = listing(sorted(case.facts.lanes))
    if rewritten and case.facts.lanes:
        evidence.append(f"{rewritten}, and csumfix's {lanes} lane keeps the checksums right")
        return Conclusion(Verdict.CURED, tuple(evidence), (), "", rewriting_rules(case, "source"))
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


def _rewrites(case: Case) -> str:
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


# ------------------------------------------------------------------- 3. what comes from there


def _remote(case: Case) -> Conclusion | None:
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
