"""The loads: the traffic through the tunnel, and the units of its results.

Results count delivered traffic: what our receivers have verified, what iperf3's server has
counted, and requests that sockperf got answered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import latency, programs, tcp, udp
from bench.stats import Sample
from csumfix_lab import Lab
from csumfix_lab.sandbox import require

FIXED_SECONDS = 2.0


@dataclass(frozen=True)
class Load:
    """One kind of traffic.

    unit: of the value; cpu_unit: of the CPU cost.
    mtu: the underlay's in bytes.
    least_seconds: least counted time of a cell, whatever the run counts in others.
    """

    name: str
    title: str
    unit: str
    cpu_unit: str
    run: Callable[[Lab, float], Sample]
    mtu: int = 1500
    least_seconds: float = 0.0


def prepare() -> None:
    """Check that the tools are installed, and build our own."""
    require("iperf3", "sockperf", "taskset")
    programs.build("load", "messages")


SIZES = (64, 512, 1400)
FIXED_SIZE = 600
GSO_SIZE = 1200
FLOWS = {1: "one flow", 16: "sixteen flows"}


def _saturating(size: int, flows: int) -> Load:
    return Load(
        name=f"udp-saturating-{size}-{flows}",
        title=f"UDP {size:,} B, {FLOWS[flows]}, saturating",
        unit="kpkt/s",
        cpu_unit="us/packet",
        run=udp.load(size, flows, 0),
    )


def _fixed(flows: int) -> Load:
    return Load(
        name=f"udp-fixed-{FIXED_SIZE}-{flows}",
        title=f"UDP {FIXED_SIZE} B, {FLOWS[flows]}, {udp.FIXED_RATE:,} packets/s",
        unit="kpkt/s",
        cpu_unit="us/packet",
        run=udp.load(FIXED_SIZE, flows, udp.FIXED_RATE),
        # CPU time is counted in steps of 10 ms, and one percent of it should be visible.
        least_seconds=FIXED_SECONDS,
    )


_ALL = (
    *map(_fixed, FLOWS),
    *(_saturating(size, flows) for flows in FLOWS for size in SIZES),
    Load(
        f"udp-gso-{GSO_SIZE}-1", f"UDP {GSO_SIZE:,} B, GSO and single datagrams, saturating",
        "kpkt/s", "us/packet", udp.load(GSO_SIZE, 1, 0, udp.GSO_SEGMENTS),
    ),
    Load("tcp-messages", "TCP, pipelined messages", "Gbit/s", "us/MB", tcp.messages),
    Load("tcp-bulk", "TCP bulk", "Gbit/s", "us/MB", tcp.bulk),
    Load("tcp-bulk-9000", "TCP bulk, MTU 9000", "Gbit/s", "us/MB", tcp.bulk, mtu=9000),
    Load("latency", "Round trip, back to back", "us", "us/request", latency.load()),
    Load(
        "latency-spaced", f"Round trip, every {latency.SPACING_US} us", "us", "us/request",
        latency.load(f"--mps={1_000_000 // latency.SPACING_US}"),
    ),
)  # fmt: skip

BY_NAME = {load.name: load for load in _ALL}
NAMES = tuple(BY_NAME)
UNITS = {load.name: (load.unit, load.cpu_unit) for load in _ALL}
