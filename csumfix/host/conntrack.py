"""What conntrack knows of outer flows: how they were sent, before NAT rewrote them.

One entry is looked up per flow, because a node's table can have a million. Nothing is asked while
conntrack tracks nothing: the question would load its modules.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from csumfix.host.rtnetlink import NetlinkError
from csumfix.host.rules import conntrack_is_on
from csumfix.lean import parts_of

MOST = 8
"""Flows that are looked up; the kernel answers each in well under a millisecond."""


class OuterTuple(NamedTuple):
    """The ends of an outer UDP flow: addresses as text, ports in host order."""

    source: str
    source_port: int
    dest: str
    dest_port: int

    def __str__(self) -> str:
        return f"{self.source} port {self.source_port} to {self.dest} port {self.dest_port}"

    @property
    def is_v6(self) -> bool:
        """Whether it is of IPv6."""
        return ":" in self.source


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

    @property
    def knows_none(self) -> bool:
        """Whether flows were looked up, and conntrack has an entry of none of them."""
        return bool(self.sent) and not any(self.sent.values())


async def look_up(flows: Collection[OuterTuple]) -> Tracked:
    """Look up flows of this network namespace, given as they leave."""
    some = sorted(flows)[:MOST]
    if not conntrack_is_on():
        return Tracked(dict.fromkeys(some))
    try:
        return Tracked(await asyncio.to_thread(_look_up, some))
    except (NetlinkError, OSError) as error:
        return Tracked(trouble=f"conntrack cannot be asked: {error}")


def _look_up(flows: Collection[OuterTuple]) -> dict[OuterTuple, OuterTuple | None]:
    with parts_of("pyroute2"):  # late, because the service never needs it
        from pyroute2.netlink.nfnetlink import nfctsocket

    found: dict[OuterTuple, OuterTuple | None] = {}
    for flow in flows:
        family = socket.AF_INET6 if flow.is_v6 else socket.AF_INET
        # NAT makes the direction of replies the mirror of what leaves (nf_nat_setup_info() in
        # net/netfilter/nf_nat_core.c).
        reply = nfctsocket.NFCTAttrTuple(
            family=family,
            saddr=flow.dest,
            daddr=flow.source,
            proto=socket.IPPROTO_UDP,
            sport=flow.dest_port,
            dport=flow.source_port,
        )
        found[flow] = None
        with nfctsocket.NFCTSocket(nfgen_family=family) as conntrack:
            try:
                answers = conntrack.entry("get", tuple_reply=reply)
            except NetlinkError as error:
                if error.code != errno.ENOENT:
                    raise
                continue
        for answer in answers:
            sent = answer.get_attr("CTA_TUPLE_ORIG")
            if sent:
                one = nfctsocket.NFCTAttrTuple.from_netlink(family, sent)
                found[flow] = OuterTuple(one.saddr, one.sport, one.daddr, one.dport)
    return found
