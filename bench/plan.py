"""Which cells a run measures, and how often and how long."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bench import cures, loads
from bench.stats import CEILING, Key

CAUSES = {"snat": "snat", "dnat": "dnat", "healthy": "none"}
"""Causes as they are reported, and what the lab calls them."""

_UDP = [name for name in loads.NAMES if name.startswith("udp-saturating")]
_ONE_FLOW = [name for name in _UDP if name.endswith("-1")]
_SIXTEEN = "udp-saturating-512-16"
_FIXED = "udp-fixed-512-1"

_NO_CURE_DNAT = ["checksum-target", "accept-only"]
_CSUMFIX = ["csumfix-nat", "csumfix-packets", "csumfix-all"]
_HEALTHY = ["none", "ethtool-off", "csumfix-nat", "csumfix-packets"]


@dataclass(frozen=True)
class Block:
    """All cures of `cures` under all of `loads`."""

    cause: str
    loads: Collection[str]
    cures: Collection[str]


@dataclass(frozen=True)
class Plan:
    """A run: rounds, seconds counted in each cell, and the cells."""

    rounds: int
    seconds: float
    blocks: Collection[Block]

    def cells(
        self,
        causes: Collection[str] = (),
        only_loads: Collection[str] = (),
        only_cures: Collection[str] = (),
    ) -> list[Key]:
        """Return the cells in the order of the report; an empty filter lets everything pass."""
        wanted = {
            Key(block.cause, load, cure)
            for block in self.blocks
            for load in block.loads
            for cure in block.cures
            if (not causes or block.cause in causes)
            and (not only_loads or load in only_loads)
            and (not only_cures or cure in only_cures)
        }
        return sorted(wanted, key=_rank)


def _rank(key: Key) -> tuple[int, int, int]:
    return (
        list(CAUSES).index(key.cause),
        loads.NAMES.index(key.load),
        cures.NAMES.index(key.cure),
    )


def station(key: Key) -> tuple[str, str, int]:
    """Return the lab in which a cell is measured: the lab's cause, cure, MTU.

    A tunnel without the bug is the same under every cause, and is measured once for all.
    """
    cause = "none" if key.cure == CEILING else CAUSES[key.cause]
    return cause, key.cure, loads.BY_NAME[key.load].mtu


FULL = Plan(
    rounds=5,
    seconds=0.55,
    blocks=(
        Block("snat", loads.NAMES, cures.NAMES),
        Block(
            "dnat",
            [*_ONE_FLOW, _SIXTEEN, _FIXED, "tcp-bulk", "latency-spaced"],
            ["none", "ethtool-off", "netfilterqueue", *_CSUMFIX, *_NO_CURE_DNAT],
        ),
        Block("dnat", ["udp-saturating-512-1"], ["scapy"]),
        Block("healthy", [*_ONE_FLOW, "tcp-bulk"], _HEALTHY),
    ),
)

_QUICK_LOADS = ["udp-saturating-512-1", _SIXTEEN, "tcp-bulk"]
_QUICK_TIMED = ["none", "ethtool-off", "netfilterqueue", "csumfix-packets"]

QUICK = Plan(
    rounds=2,
    seconds=0.5,
    blocks=(
        Block("snat", _QUICK_LOADS, cures.NAMES),
        Block("snat", ["latency-spaced"], _QUICK_TIMED),
        Block(
            "dnat",
            ["udp-saturating-512-1"],
            ["none", "ethtool-off", "netfilterqueue", "csumfix-packets", *_NO_CURE_DNAT],
        ),
        Block("healthy", ["udp-saturating-512-1", "tcp-bulk"], _HEALTHY[:3]),
    ),
)

EVERYTHING = tuple(Block(cause, loads.NAMES, cures.NAMES) for cause in CAUSES)
"""What the filters choose from when they name what the plan leaves out."""
