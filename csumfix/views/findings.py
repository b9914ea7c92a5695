"""The output of ``csumfix check``: a line per packet, and a summary of at most one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import Any

from csumfix.core import Outer
from csumfix.evidence.arrivals import WRONG, Diagnosis, Reason
from csumfix.evidence.captures import Judged, address_text
from csumfix.evidence.causes import (
    SOURCE_PORTS,
    CaptureFinding,
    Flow,
    PacketCause,
    Tally,
    difference,
)
from csumfix.protocols import GENEVE_PORT, TITLES, Protocol, Protocols
from csumfix.text import counted

HEADLINES = {
    Diagnosis.REWRITTEN: "The outer checksum is wrong; the inner packet is intact.",
    Diagnosis.NOT_FINISHED: "The packets arrived with checksums that were never computed.",
    Diagnosis.RELAYED: "The outer checksum is right; the inner one was never computed.",
    Diagnosis.CORRUPT: "The outer checksum is wrong, and the inner packet is damaged.",
    Diagnosis.INNER_CORRUPT: "The inner checksum is wrong; the outer one does not show it.",
    Diagnosis.UNDECIDED: "The checksums are not computed: not yet, or never.",
}

CAUSES = {
    PacketCause.NEW_PORT: "NAT changed the outer source port: SNAT, MASQUERADE, kube-proxy's "
    "mark.",
    PacketCause.NEW_ADDRESS: "NAT changed an outer address: DNAT, IPVS, or stateless nft rules.",
    PacketCause.NAT: "NAT changed the outer header: its source port or an address.",
    PacketCause.ZERO: "NAT changed a packet that had no outer checksum (kernels before 5.7).",
    PacketCause.NIC: "the sender's NIC or hypervisor offers checksum offload, but does not do it.",
    PacketCause.RELAY: "a program between the nodes resends the datagrams (slirp4netns, pasta).",
    PacketCause.DAMAGE: "a NIC, a driver or memory damages packets.",
    PacketCause.INNER_DAMAGE: "damage before the tunnel or, without an outer checksum, inside it.",
    PacketCause.UNKNOWN: "not known; the differences fit no single port or address.",
}

SENDER_REMEDY = "run csumfix on the sender."
DAMAGE_REMEDY = "find the source of the damage; csumfix does not change such packets."

REMEDIES = {
    PacketCause.NEW_PORT: SENDER_REMEDY,
    PacketCause.NEW_ADDRESS: SENDER_REMEDY,
    PacketCause.NAT: SENDER_REMEDY,
    PacketCause.ZERO: "run csumfix with --lane queue on the sender.",
    PacketCause.NIC: SENDER_REMEDY,
    PacketCause.RELAY: "run csumfix on the node behind that program.",
    PacketCause.DAMAGE: DAMAGE_REMEDY,
    PacketCause.INNER_DAMAGE: DAMAGE_REMEDY,
    PacketCause.UNKNOWN: "run csumfix on the sender, or on a host that forwards the damaged "
    "packets.",
}

HEALTHY = {
    Diagnosis.RIGHT: "right",
    Diagnosis.ZERO: "without outer checksum (0), inner packet whole",
    Diagnosis.PARTIAL: "partial: captured on the sender before its NIC computes them; harmless",
    Diagnosis.GSO: "GSO packets of a sender, or merged by GRO of a receiver; harmless",
}

SENDERS_WIDTH = 50  # columns
DETAILED, NAMED, SENDERS, REASONS, OTHER_PORTS = 2, 3, 3, 3, 2
"""Largest numbers of findings with and without details, of senders, reasons and other ports."""


def line(judged: Judged) -> str:
    """Return a line about one packet; checksums are hexadecimal."""
    diagnosis, reason = judged.judgement
    text = f"packet {judged.number}: {diagnosis}"
    source, dest = address_text(judged.source), address_text(judged.dest)
    if reason and not judged.seen.dest:
        return f"{text} ({reason}) {source} > {dest} port {judged.port}"
    seen = judged.seen
    text += (
        f" {source} port {seen.source} > {dest} port {seen.dest} {judged.tunnel} VNI {seen.vni}"
    )
    if seen.outer is Outer.WRONG:
        text += f" {_comparison(judged)} (difference {seen.difference})"
    return f"{text} outer {seen.outer.name.lower()} inner {seen.inner.name.lower()}"


def _comparison(judged: Judged) -> str:
    seen = judged.seen
    return f"checksum {seen.found:#06x} should be {seen.expected:#06x}"


def as_json(judged: Judged) -> dict[str, Any]:
    """Return one packet as plain data; enumerations by name."""
    plain = judged.seen._asdict()
    plain |= {key: v.name.lower() for key, v in plain.items() if isinstance(v, Enum)}
    return {
        "number": judged.number,
        "diagnosis": judged.judgement.diagnosis,
        "reason": judged.judgement.reason.name.lower() if judged.judgement.reason else None,
        "tunnel": judged.tunnel,
        "direction": judged.direction.name.lower() if judged.direction else None,
        "source_address": address_text(judged.source),
        "dest_address": address_text(judged.dest),
        **plain,
    }


def finding_as_json(finding: CaptureFinding) -> dict[str, Any]:
    """Return a finding as plain data."""
    return {
        "diagnosis": finding.diagnosis,
        "sure": finding.diagnosis in WRONG,
        "cause": finding.cause,
        "tunnel": finding.tunnel,
        "port": finding.port,
        "packets": finding.packets,
        "first": finding.first.number,
        "senders": {address_text(at): number for at, number in finding.senders.most_common()},
        "evidence": _evidence(finding),
        "remedy": _remedy(finding),
    }


def summary(tally: Tally) -> Iterator[str]:
    """Yield the lines of the summary, the worst first."""
    found = tally.findings()
    for finding in found[:DETAILED]:
        yield from _detailed(finding)
    for finding in found[DETAILED : DETAILED + NAMED]:
        yield f"{_subject(finding)}. {HEADLINES[finding.diagnosis]}"
    if len(found) > DETAILED + NAMED:
        yield f"and {len(found) - DETAILED - NAMED} more findings; --json lists all"
    yield from _healthy(tally)
    yield from _unjudged(tally.reasons)


def _detailed(finding: CaptureFinding) -> Iterator[str]:
    yield f"{_subject(finding)} from {_senders(finding.senders)}"
    yield f"  {HEADLINES[finding.diagnosis]}"
    evidence = _evidence(finding)
    if evidence:
        yield f"  {evidence}"
    if finding.diagnosis is Diagnosis.UNDECIDED:
        yield "  Captured on their sender, they are harmless: its NIC computes them later."
        yield f"  Captured elsewhere, the cause is: {CAUSES[finding.cause]}"
        yield "  To decide, give the address of the capturing host: --local ADDRESS."
        return
    yield f"  Cause: {CAUSES[finding.cause]}"
    if finding.diagnosis is Diagnosis.NOT_FINISHED and finding.first.complete is None:
        yield "  If the sender is a VM or container on the same machine, this is harmless."
    yield f"  Remedy: {_remedy(finding)}"


def _subject(finding: CaptureFinding) -> str:
    word = "WRONG" if finding.diagnosis in WRONG else "UNDECIDED"
    packets = counted(finding.packets, f"{finding.tunnel} packet")
    return f"{word}: {packets} to port {finding.port}"


def _senders(senders: Counter[bytes]) -> str:
    """Name the senders with the most packets, at least one and as many as fit in the line."""
    if len(senders) == 1:
        return address_text(next(iter(senders)))
    named: list[str] = []
    for address, number in senders.most_common(SENDERS):
        text = f"{address_text(address)} ({number})"
        if named and len(", ".join([*named, text])) > SENDERS_WIDTH:
            break
        named.append(text)
    more = len(senders) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")


def _remedy(finding: CaptureFinding) -> str:
    return REMEDIES[finding.cause]


def _evidence(finding: CaptureFinding) -> str:
    """Return the evidence for the cause."""
    first = finding.first
    if finding.cause in (PacketCause.NIC, PacketCause.RELAY):
        return f"The fields hold only a pseudo-header sum: see packet {first.number}."
    if finding.diagnosis is Diagnosis.INNER_CORRUPT:
        return f"See packet {first.number}: {_inner(first)}."
    if finding.cause is PacketCause.NEW_PORT:
        return _ports(finding.flows)
    if finding.cause is PacketCause.NEW_ADDRESS:
        off = difference(next(iter(finding.flows.values())))
        return f"Every flow is off by {off}, which is twice new minus old address."
    if finding.cause is PacketCause.NAT:
        return _one_flow(finding.flows, SOURCE_PORTS[finding.tunnel])
    return f"See packet {first.number}: {_comparison(first)}."


def _inner(judged: Judged) -> str:
    seen = judged.seen
    if seen.inner_found == seen.inner_expected:
        return "the inner IP header is damaged"
    return f"inner checksum {seen.inner_found:#06x} should be {seen.inner_expected:#06x}"


def _ports(flows: dict[int, Flow]) -> str:
    some = list(flows.items())[:2]
    old = ", ".join(f"{(port - difference(flow)) % 0xFFFF} -> {port}" for port, flow in some)
    return f"Each flow is off by new minus old port: {old}."


def _one_flow(flows: dict[int, Flow], source_ports: range) -> str:
    port, flow = next(iter(flows.items()))
    off = difference(flow)
    old = (port - off) % 0xFFFF
    guess = f"; that port may have been {old}" if old in source_ports else ""
    return f"The flow from port {port} is off by {off}{guess}."


def _healthy(tally: Tally) -> Iterator[str]:
    for diagnosis, words in HEALTHY.items():
        number = tally.diagnoses[diagnosis]
        if number:
            yield f"{number:8}  {words}"
    if tally.zero_over_ipv6:
        yield (
            f"{tally.zero_over_ipv6:8}  of those over IPv6: "
            "only receivers with udp6zerocsumrx accept them"
        )


def _unjudged(reasons: Counter[Reason]) -> Iterator[str]:
    for reason, number in reasons.most_common(REASONS):
        yield f"{number:8}  not judged: {reason}"
    others = reasons.total() - sum(number for _, number in reasons.most_common(REASONS))
    if others:
        yield f"{others:8}  not judged for other reasons; --json lists all"


def tunnels(tally: Tally, ports: Protocols) -> str:
    """Name the tunnels in the capture."""
    if tally.ports:
        found = [
            f"{number} of {tunnel} port {port}"
            for (tunnel, port), number in tally.ports.most_common(NAMED)
        ]
        return ", ".join(found)
    everything: Protocols = {GENEVE_PORT: "geneve", **ports}
    missing = [
        f"{title} packets to port {' or '.join(map(str, named))}"
        for protocol, title in TITLES.items()
        if (named := [port for port, carried in everything.items() if carried == protocol])
    ]
    return f"no {', nor '.join(missing)}"


def other_ports(ports: Counter[tuple[int, Protocol]]) -> Iterator[str]:
    """Name other ports with packets that look like a tunnel's."""
    for (port, protocol), number in ports.most_common(OTHER_PORTS):
        looks = "look" if number > 1 else "looks"
        option = "--geneve-port" if protocol == "geneve" else "--port"
        yield (
            f"{counted(number, 'packet')} to port {port} {looks} like {TITLES[protocol]}: "
            f"{option} {port}"
        )
