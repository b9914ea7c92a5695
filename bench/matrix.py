"""Which cells a run measures, and how often and how long."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bench import cures, loads
from bench.stats import CEILING, Key

HEALTHY, UNTRACKED = "healthy", "untracked"
CAUSES = {"snat": "snat", "dnat": "dnat", HEALTHY: "none", UNTRACKED: "none"}
"""Causes by their names in the report, with their names in the lab. `healthy` is a tunnel without
the bug on a node that tracks connections, `untracked` one on a node that does not."""

FIXED = f"udp-fixed-{loads.FIXED_SIZE}-1"
ONE_FLOW = [f"udp-saturating-{size}-1" for size in loads.SIZES]
SIXTEEN = "udp-saturating-512-16"
GSO = f"udp-gso-{loads.GSO_SIZE}-1"

_KERNEL = ["none", "ethtool-off", "kernel-rules", "csumfix"]
_CSUMFIX = [*_KERNEL, "csumfix-queue"]
_QUEUES = ["netfilterqueue", *_CSUMFIX]


@dataclass(frozen=True)
class Block:
    """All cures of `cures` under all of `loads`."""

    cause: str
    loads: Collection[str]
    cures: Collection[str]


@dataclass(frozen=True)
class Matrix:
    """What a run measures: rounds, counted seconds per cell, and blocks of cells."""

    rounds: int
    seconds: float
    blocks: Collection[Block]

    def cells(
        self,
        causes: Collection[str] = (),
        only_loads: Collection[str] = (),
        only_cures: Collection[str] = (),
    ) -> list[Key]:
        """Return the cells in the order of the report; an empty filter selects everything."""
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


def lab_key(key: Key) -> tuple[str, str, int]:
    """Return the lab in which a cell is measured: its cause, cure and MTU.

    A tunnel without the bug is the same under every cause, so all causes share its measurement.
    """
    shared = key.cure == CEILING and key.cause != UNTRACKED
    return HEALTHY if shared else key.cause, key.cure, loads.BY_NAME[key.load].mtu


FULL = Matrix(
    rounds=5,
    seconds=0.55,
    blocks=(
        Block(
            "snat",
            [FIXED, *ONE_FLOW, SIXTEEN, GSO, "tcp-messages", "tcp-bulk"],
            cures.NAMES,
        ),
        Block("snat", ["tcp-bulk-9000", "latency-spaced"], [*_QUEUES, "checksum-target"]),
        Block("snat", ["latency-spaced"], ["scapy"]),
        Block("dnat", [FIXED, ONE_FLOW[1], SIXTEEN, "tcp-messages", "tcp-bulk"], _QUEUES),
        # These do not cure dnat, so they are tried in one round only.
        Block("dnat", [FIXED, ONE_FLOW[1]], ["checksum-target", "accept-only"]),
        Block(HEALTHY, [FIXED, *ONE_FLOW, "tcp-messages", "tcp-bulk"], _CSUMFIX),
        Block(HEALTHY, ["latency-spaced"], _KERNEL),
        Block(UNTRACKED, [FIXED, ONE_FLOW[1]], _KERNEL),
    ),
)

_QUICK = ["none", "ethtool-off", "csumfix", "csumfix-queue"]

QUICK = Matrix(
    rounds=2,
    seconds=0.5,
    blocks=(
        Block("snat", [FIXED, ONE_FLOW[1], "tcp-messages", "tcp-bulk"], _QUEUES),
        Block("snat", ["tcp-bulk"], ["checksum-target"]),
        Block("dnat", [FIXED], _QUICK),
        Block(HEALTHY, [FIXED, "tcp-messages"], _KERNEL),
    ),
)

EVERYTHING = tuple(Block(cause, loads.NAMES, cures.NAMES) for cause in CAUSES)
"""The cells from which filters choose; they include combinations that a full run leaves out."""
