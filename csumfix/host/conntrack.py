"""What conntrack knows of outer flows: how they were sent, before NAT rewrote them.

One entry is looked up per flow, because a node's table can have a million. Nothing is asked while
conntrack tracks nothing: the question would load its modules.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from csumfix.host.rtnetlink import NetlinkError
from csumfix.host.rules import conntrack_is_on
from csumfix.lean import parts_of

MOST = 100
"""Flows that are looked up."""


class OuterTuple(NamedTuple):
    """The ends of an outer UDP flow: addresses as text, ports in host order."""

    source: str
    source_port: int
    dest: str
    dest_port: int

    def __str__(self) -> str:
        return f"{self.source} port {self.source_port} to {self.dest} port {self.dest_port}"

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return int(socket.AF_INET6 if ":" in self.source else socket.AF_INET)


@dataclass(frozen=True)
class Tracked:
    """What conntrack knows of some flows.

    sent: the flow as it was sent, by the flow as it leaves; None if conntrack has no entry.
    trouble: why nothing could be asked; empty if it could.
    """

    sent: Mapping[OuterTuple, OuterTuple | None] = field(default_factory=dict)
    trouble: str = ""

    @property
    def rewritten(self) -> dict[OuterTuple, OuterTuple]:
        """The flows that NAT rewrites: as they leave, and as they were sent."""
        return {leaves: sent for leaves, sent in self.sent.items() if sent and sent != leaves}

    def of(self, flows: Collection[OuterTuple]) -> Tracked:
        """Return what conntrack knows of these flows."""
        return Tracked(
            {flow: self.sent[flow] for flow in flows if flow in self.sent}, self.trouble
        )

    @property
    def knows_none(self) -> bool:
        """Whether flows were looked up, and conntrack has an entry of none of them."""
        return bool(self.sent) and not any(self.sent.values())


async def look_up(flows: Sequence[OuterTuple]) -> Tracked:
    """Look up the first flows of this network namespace, given as they leave."""
    some = flows[:MOST]
    if not conntrack_is_on():
        return Tracked(dict.fromkeys(some))
    try:
        return Tracked(await asyncio.to_thread(_look_up, some))
    except (NetlinkError, OSError) as error:
        return Tracked(trouble=f"conntrack cannot be asked: {error}")


def _look_up(flows: Collection[OuterTuple]) -> dict[OuterTuple, OuterTuple | None]:
    with parts_of("pyroute2"):  # late, because the service never needs it
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

    found: dict[OuterTuple, OuterTuple | None] = {}
    for family in {flow.family for flow in flows}:
        with NFCTSocket(nfgen_family=family) as kernel:
            found |= {flow: _ask(kernel, flow) for flow in flows if flow.family == family}
    return found


def _ask(kernel: Any, flow: OuterTuple) -> OuterTuple | None:
    with parts_of("pyroute2"):
        from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    # NAT makes the direction of replies the mirror of what leaves (nf_nat_setup_info() in
    # net/netfilter/nf_nat_core.c).
    reply = NFCTAttrTuple(
        family=flow.family,
        saddr=flow.dest,
        daddr=flow.source,
        proto=socket.IPPROTO_UDP,
        sport=flow.dest_port,
        dport=flow.source_port,
    )
    try:
        answers = kernel.entry("get", tuple_reply=reply)
    except NetlinkError as error:
        if error.code == errno.ENOENT:
            return None
        raise
    for answer in answers:
        sent = answer.get_attr("CTA_TUPLE_ORIG")
        if sent:
            one = NFCTAttrTuple.from_netlink(flow.family, sent)
            return OuterTuple(one.saddr, one.sport, one.daddr, one.dport)
    return None
