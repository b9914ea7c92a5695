"""Concludes what rewrites the outer headers of packets that leave with a wrong checksum. Pure.

The kinds of probes that left wrong, and the differences of their checksums, show which NAT did it.
"""

from __future__ import annotations

from collections.abc import Iterator

from csumfix.core import Inspection
from csumfix.evidence import causes
from csumfix.evidence.case import Case, Conclusion, Facts, Verdict
from csumfix.evidence.causes import Flow, PacketCause
from csumfix.evidence.departures import Departure
from csumfix.evidence.outcomes import MARKS, Kind, KindOutcome, Probed
from csumfix.host.conntrack import Tracked
from csumfix.host.natrules import NatRule, NatRules
from csumfix.host.remotes import Remote
from csumfix.text import listing

FIXED_KERNELS = ((5, 7), (5, 4, 41), (4, 19, 123), (4, 14, 181))
"""Kernels whose NAT leaves a checksum of 0 alone: "netfilter: nat: never update the UDP checksum
when it's 0" (ea64d8d6c675 in Linux 5.7), and the stable series that have it."""

REWRITERS = {
    PacketCause.NEW_PORT: Verdict.SNAT,
    PacketCause.NEW_ADDRESS: Verdict.DNAT,
    PacketCause.ZERO: Verdict.ZERO_NAT,
}


def what_rewrites(case: Case) -> Conclusion | None:
    """Say what rewrites probes that left wrong; None if none did."""
    marked = case.wrong(*MARKS)
    unmarked = case.wrong(*(kind for kind in Kind if kind not in MARKS))
    # A flow without the mark is hit as well if NAT has given its port to a marked flow.
    plain = case.outcome(Kind.CONNECT).left
    if marked and plain[Departure.WRONG] <= plain.total() / 2:
        return _marked(case, marked)
    return _rewritten(case, unmarked, _counts(unmarked)) if unmarked else None


def conclude_from_departures(remote: Remote, seen: KindOutcome, facts: Facts) -> Conclusion:
    """Say what rewrites packets that were seen leaving wrong, and that are no probes."""
    wrong, total = seen.left[Departure.WRONG], seen.left.total()
    case = Case(Probed(remote, {Kind.CONNECT: seen}), facts)
    counts = f"{wrong} of {total} packets left this host with a wrong outer checksum"
    return _rewritten(case, case.wrong(), counts)


def _counts(wrong: dict[Kind, KindOutcome]) -> str:
    number = sum(one.left[Departure.WRONG] for one in wrong.values())
    return f"{number} probes left this host with a wrong outer checksum"


def _marked(case: Case, wrong: dict[Kind, KindOutcome]) -> Conclusion:
    """Tell kube-proxy's own fault from that of a CNI before it."""
    rules = case.facts.after
    sent = sum(one.sent for one in wrong.values())
    number = sum(one.left[Departure.WRONG] for one in wrong.values())
    evidence = [
        f"{number} of {sent} probes with kube-proxy's mark {case.mark} left this host with a "
        "wrong outer checksum",
        f"without the mark: {case.shown(Kind.CONNECT)}",
        *_from_conntrack(case.tracked(wrong=True)),
    ]
    culprits = rewriting_rules(case, "source", inner=True)
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


def _rewritten(case: Case, wrong: dict[Kind, KindOutcome], counts: str) -> Conclusion:
    """Say what rewrites the outer header of packets without any mark.

    counts: how many left wrong, as evidence.
    """
    evidence = [counts]
    flows = {port: _flow(seen) for one in wrong.values() for port, seen in one.wrong.items()}
    cause = causes.name(flows)
    verdict = REWRITERS.get(cause, Verdict.NAT)
    if verdict is Verdict.ZERO_NAT and case.probed.remote.has_outer_checksum:
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
    culprits = rewriting_rules(case, "destination" if verdict is Verdict.DNAT else "source")
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


def _difference(cause: PacketCause, flows: dict[int, Flow]) -> Iterator[str]:
    port, flow = next(iter(flows.items()))
    off = causes.difference(flow)
    if cause is PacketCause.NEW_PORT:
        old = (port - off) % causes.MODULUS
        yield f"the checksum is off by the new minus the old source port, such as {old} -> {port}"
    elif cause is PacketCause.NEW_ADDRESS:
        yield f"every checksum is off by {off}, which is twice the new minus the old address"


def rewriting_rules(case: Case, rewrites: str, *, inner: bool = False) -> tuple[NatRule, ...]:
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


def has_zero_checksum_bug(version: tuple[int, ...]) -> bool:
    """Tell whether this kernel's NAT turns an outer checksum of 0 into garbage."""
    if version >= FIXED_KERNELS[0]:
        return False
    series = [fixed for fixed in FIXED_KERNELS[1:] if fixed[:2] == version[:2]]
    return not any(version >= fixed for fixed in series)
