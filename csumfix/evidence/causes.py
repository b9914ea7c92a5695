"""Finds causes from judged packets: counts per sender, and differences of checksums. Pure.

If the inner checksum of a packet is partial, NAT updates the outer one as if it were partial as
well (inet_proto_csum_replace4() and inet_proto_csum_replace2() in net/core/utils.c). A new source
port is then ignored, and the checksum is off by new minus old port. A new address is added instead
of subtracted, and the checksum is off by twice new minus old address, the same for all
flows to one remote end. These differences were measured in the lab (tests/lab/test_check.py), on
Linux 6.18 over IPv4 and IPv6.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from csumfix.evidence.arrivals import WRONG, Diagnosis, Reason
from csumfix.evidence.captures import Judged

MODULUS = 0xFFFF  # one's complement arithmetic
SOURCE_PORTS = {"VXLAN": range(32768, 61000), "Geneve": range(1, 65535)}
"""Source ports that devices use by default: net.ipv4.ip_local_port_range; all of them (see
host/tunnels.py)."""

MANY_SENDERS = 1000
MANY_PAIRS = 10_000
MANY_FLOWS = 64
"""Flows of a sender whose differences are kept; more would add no evidence."""

MANY_VALUES = 4

PROVEN = 2
"""Number of flows or packets that must agree on a cause."""


class PacketCause(enum.StrEnum):
    """Why checksums are wrong, as packets show it."""

    NEW_PORT = "new_port"
    NEW_ADDRESS = "new_address"
    NAT = "nat"
    """A new port or a new address: a single flow cannot distinguish them."""
    ZERO = "zero"
    """NAT of a packet without outer checksum."""
    NIC = "nic"
    RELAY = "relay"
    DAMAGE = "damage"
    INNER_DAMAGE = "inner_damage"
    """Damage before the tunnel, if there is an outer checksum."""
    UNKNOWN = "unknown"


FIXED = {
    Diagnosis.NOT_FINISHED: PacketCause.NIC,
    Diagnosis.UNDECIDED: PacketCause.NIC,
    Diagnosis.RELAYED: PacketCause.RELAY,
    Diagnosis.CORRUPT: PacketCause.DAMAGE,
    Diagnosis.INNER_CORRUPT: PacketCause.INNER_DAMAGE,
}


@dataclass
class Flow:
    """Some values of the packets from one source port.

    differences: by how much the outer checksums were off.
    found: the outer checksums.
    complete: the right outer checksums.
    """

    differences: set[int] = field(default_factory=set)
    found: set[int] = field(default_factory=set)
    complete: set[int] = field(default_factory=set)

    def add(self, judged: Judged) -> None:
        """Add the values of a packet."""
        seen = judged.seen
        if len(self.differences) < MANY_VALUES:
            self.differences.add(seen.difference)
        if len(self.complete) < MANY_VALUES:
            self.found.add(seen.found)
            self.complete.add((seen.found - seen.difference) % MODULUS)


def name(flows: dict[int, Flow], tunnel: str = "VXLAN") -> PacketCause:
    """Name what rewrote the outer headers of one sender's packets, by source port."""
    if _is_rewritten_zero(flows):
        return PacketCause.ZERO
    if any(len(flow.differences) > 1 for flow in flows.values()):
        return PacketCause.UNKNOWN
    if len(flows) < PROVEN:
        return PacketCause.NAT
    if len({difference(flow) for flow in flows.values()}) == 1:
        return PacketCause.NEW_ADDRESS
    old = {(port - difference(flow)) % MODULUS for port, flow in flows.items()}
    fits = old.issubset(SOURCE_PORTS[tunnel])
    return PacketCause.NEW_PORT if fits else PacketCause.UNKNOWN


def _is_rewritten_zero(flows: dict[int, Flow]) -> bool:
    """Tell whether all packets have the same checksum where different ones would be right.

    Then NAT has updated a checksum of 0.
    """
    found = {value for flow in flows.values() for value in flow.found}
    complete = {value for flow in flows.values() for value in flow.complete}
    return len(found) == 1 and len(complete) >= PROVEN


def difference(flow: Flow) -> int:
    """Return one of a flow's differences."""
    return min(flow.differences)


@dataclass
class Sender:
    """The packets with one diagnosis from one sender to one address and port."""

    first: Judged
    packets: int = 0
    flows: dict[int, Flow] = field(default_factory=dict)

    def add(self, judged: Judged) -> None:
        """Count a packet."""
        self.packets += 1
        flow = self.flows.get(judged.seen.source)
        if flow is None and len(self.flows) < MANY_FLOWS:
            flow = self.flows[judged.seen.source] = Flow()
        if flow:
            flow.add(judged)


@dataclass
class CaptureFinding:
    """The packets with one diagnosis and one cause, to one port.

    first: the first of them.
    senders: packets by source address.
    flows: some of the flows, by source port.
    """

    diagnosis: Diagnosis
    cause: PacketCause
    tunnel: str
    port: int
    first: Judged
    senders: Counter[bytes] = field(default_factory=Counter)
    flows: dict[int, Flow] = field(default_factory=dict)

    @property
    def packets(self) -> int:
        """The number of packets."""
        return self.senders.total()


Key = tuple[Diagnosis, str, int, bytes, bytes]


class Tally:
    """Counts judged packets, in bounded memory.

    assumed: whether the direction of all packets was assumed; see settle().
    is_contradicted: whether settle() has refuted that assumption.
    diagnoses: all packets by diagnosis.
    reasons: packets that were not judged, by reason.
    ports: all packets by tunnel and port.
    """

    def __init__(self, *, assumed: bool = False) -> None:
        self._assumed = assumed
        self.diagnoses: Counter[Diagnosis] = Counter()
        self.reasons: Counter[Reason] = Counter()
        self.ports: Counter[tuple[str, int]] = Counter()
        self.zero_over_ipv6 = 0
        self.is_contradicted = False
        self._senders: dict[Key, Sender] = {}
        self._pairs: set[tuple[bytes, bytes]] = set()

    def add(self, judged: Judged) -> None:
        """Count a packet."""
        diagnosis, reason = judged.judgement
        self.diagnoses[diagnosis] += 1
        self.ports[judged.tunnel, judged.port] += 1
        if self._assumed and len(self._pairs) < MANY_PAIRS:
            self._pairs.add((judged.source, judged.dest))
        if reason:
            self.reasons[reason] += 1
        elif diagnosis in FIXED or diagnosis in (Diagnosis.REWRITTEN, Diagnosis.PARTIAL):
            self._sender(judged).add(judged)
        elif diagnosis is Diagnosis.ZERO and len(judged.source) > 4:  # noqa: PLR2004 - IPv4's
            self.zero_over_ipv6 += 1

    def _sender(self, judged: Judged) -> Sender:
        """Return the entry of a packet's sender; senders beyond the limit share one."""
        key = (judged.judgement.diagnosis, judged.tunnel, judged.port, judged.source, judged.dest)
        if key not in self._senders and len(self._senders) >= MANY_SENDERS:
            key = (*key[:3], b"", b"")
        return self._senders.setdefault(key, Sender(judged))

    def settle(self) -> None:
        """Withdraw diagnoses that depend on an assumed direction which cannot be true.

        A capture that shows both directions between two hosts was made on one of them. The
        packets of this host leave and the others arrive, but without its address the direction of
        each packet is unknown.
        """
        if not self._assumed:
            return
        for key in [key for key in self._senders if self._is_contradicted(key)]:
            self.is_contradicted = True
            sender = self._senders.pop(key)
            self._senders[(Diagnosis.UNDECIDED, *key[1:])] = sender
            self.diagnoses[key[0]] -= sender.packets
            self.diagnoses[Diagnosis.UNDECIDED] += sender.packets
        self.diagnoses = +self.diagnoses

    def _is_contradicted(self, key: Key) -> bool:
        diagnosis, tunnel, port, source, dest = key
        if diagnosis is Diagnosis.NOT_FINISHED:
            return (dest, source) in self._pairs
        # A sender's capture shows partial packets from one of the two only.
        both = (diagnosis, tunnel, port, dest, source) in self._senders
        return diagnosis is Diagnosis.PARTIAL and both

    @property
    def is_wrong(self) -> bool:
        """Whether any packet is certainly wrong."""
        return bool(WRONG & self.diagnoses.keys())

    def findings(self) -> list[CaptureFinding]:
        """Return the findings: certain faults first, then by number of packets."""
        found: dict[tuple[Diagnosis, PacketCause, str, int], CaptureFinding] = {}
        for (diagnosis, tunnel, port, source, _), sender in self._senders.items():
            if diagnosis is Diagnosis.PARTIAL:
                continue
            cause = FIXED.get(diagnosis) or name(sender.flows, tunnel)
            key = (diagnosis, cause, tunnel, port)
            finding = found.setdefault(key, CaptureFinding(*key, sender.first))
            finding.senders[source] += sender.packets
            if len(finding.flows) < MANY_FLOWS:
                finding.flows |= sender.flows
        return sorted(found.values(), key=_weight)


def _weight(finding: CaptureFinding) -> tuple[bool, int]:
    return finding.diagnosis not in WRONG, -finding.packets
