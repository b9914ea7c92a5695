"""The kernel bugs that the self-test looks for, and what the result of an exchange means. Pure.

Each bug is one way to rewrite the outer header of a packet whose inner checksum is partial. See
csumfix_lab.causes for the causes, and the design of the kernel's checksum code there.
"""

import enum
from dataclasses import dataclass
from typing import Any

KERNEL_LANE, QUEUE_LANE = "kernel lane", "queue lane"
IPVS = "ipvs"


@dataclass(frozen=True)
class Bug:
    """One bug.

    name: as shown to the operator.
    cause: of csumfix_lab.causes, whose rules provoke it.
    outer_checksum: whether the vxlan device computes outer checksums, over IPv4.
    tracked: conntrack rewrites the header, which then must be seen by its rules.
    ipv6: whether it also exists over IPv6.
    ruins_gso: it ruins GSO packets as well, which the kernel lane leaves to the device. The
        datagrams of the self-test are not long enough to show that.
    """

    name: str
    cause: str
    outer_checksum: bool = True
    tracked: bool = True
    ipv6: bool = True
    ruins_gso: bool = False


# IPVS comes before nft: its virtual server stays, and the nft rule is ahead of it (table raw).
BUGS = (
    Bug("kube-proxy's mark (up to 1.18.5)", "kube-proxy"),
    Bug("kube-proxy's mark, CNI masquerades", "cni"),
    Bug("source NAT", "snat"),
    Bug("destination NAT", "dnat"),
    Bug("source NAT, outer checksum 0", "snat", outer_checksum=False, ipv6=False),
    Bug("destination NAT, outer checksum 0", "dnat", outer_checksum=False, ipv6=False),
    Bug("IPVS", IPVS, tracked=False, ipv6=False),
    Bug(
        "IPVS, outer checksum 0",
        IPVS,
        outer_checksum=False,
        tracked=False,
        ipv6=False,
        ruins_gso=True,
    ),
    Bug("stateless nft rules", "stateless", tracked=False),
)


@dataclass(frozen=True)
class BugCase:
    """A bug over one family of underlay."""

    bug: Bug
    ipv6: bool = False


CASES = tuple(BugCase(bug, ipv6) for ipv6 in (False, True) for bug in BUGS if bug.ipv6 or not ipv6)


@dataclass(frozen=True)
class Exchange:
    """What became of some datagrams that were sent through the tunnel.

    errors: by how much the receiver's UdpInCsumErrors and Udp6InCsumErrors rose.
    rewritten: packets that conntrack NAT is seen to have rewritten.
    """

    sent: int
    answered: int
    errors: int
    rewritten: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether all arrived."""
        return self.answered == self.sent and not self.errors


class BugState(enum.StrEnum):
    """Whether this kernel has a bug."""

    LIVE = "live"
    FIXED = "fixed"
    NOT_TESTABLE = "not testable"


@dataclass(frozen=True)
class BugOutcome:
    """What is known about one case.

    reason: why it could not be tested.
    exchange: None if there was none.
    cured: the same with the kernel lane's rules loaded; None if that was not tried.
    """

    case: BugCase
    state: BugState
    reason: str = ""
    exchange: Exchange | None = None
    cured: Exchange | None = None

    @property
    def cure(self) -> str:
        """The lane that cures it; empty if there is nothing to cure."""
        if self.state is not BugState.LIVE:
            return ""
        is_cured = self.cured and self.cured.is_whole and not self.case.bug.ruins_gso
        return KERNEL_LANE if is_cured else QUEUE_LANE

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "bug": self.case.bug.name,
            "cause": self.case.bug.cause,
            "underlay": "IPv6" if self.case.ipv6 else "IPv4",
            "outer_checksum": self.case.bug.outer_checksum,
            "state": self.state,
            "reason": self.reason or None,
            "cure": self.cure or None,
            "datagrams": _numbers(self.exchange),
            "with_kernel_lane": _numbers(self.cured),
        }


def _numbers(exchange: Exchange | None) -> dict[str, int] | None:
    if exchange is None:
        return None
    return {
        "sent": exchange.sent,
        "answered": exchange.answered,
        "checksum_errors": exchange.errors,
    }


def not_testable(case: BugCase, reason: str) -> BugOutcome:
    """Return the outcome of a case that could not be tried."""
    return BugOutcome(case, BugState.NOT_TESTABLE, reason)


def judge(case: BugCase, exchange: Exchange, cured: Exchange | None) -> BugOutcome:
    """Say what an exchange means; cured: the same with the kernel lane, if that was tried.

    A checksum error at the receiver proves the bug. That the kernel is right is proven only if
    every datagram was answered and the outer headers really were rewritten. Where the tunnel's
    remote end is a virtual address, the answers prove that as well.
    """
    if exchange.errors:
        return BugOutcome(case, BugState.LIVE, exchange=exchange, cured=cured)
    if not exchange.is_whole:
        lost = f"{exchange.sent - exchange.answered} of {exchange.sent} datagrams"
        reason = f"{lost} were lost, and no checksum error says why"
    elif case.bug.tracked and not exchange.rewritten:
        reason = "NAT rewrote no outer header"
    else:
        return BugOutcome(case, BugState.FIXED, exchange=exchange)
    return BugOutcome(case, BugState.NOT_TESTABLE, reason, exchange)
