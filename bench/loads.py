"""The loads: what is sent through the tunnel, by which tool, and what is counted.

Delivered is what a receiver got: the UDP receiver's own count of datagrams whose content it has
verified, iperf3's count on the server's side, sockperf's answered requests.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clock import Window, busy_share
from bench.stats import Sample
from csumfix_lab import Lab
from csumfix_lab.process import Process
from csumfix_lab.sandbox import require

WARM_UP = 0.25
"""Seconds of traffic before anything is counted: ARP, conntrack, caches, TCP's slow start."""

FIXED_RATE = 40_000
"""Packets per second of the fixed-rate loads, over all flows: far below any C cure's limit."""

SPACING_US = 500
"""Microseconds between two requests of the spaced latency load."""

NO_ARRIVAL = 0.01  # of what was sent: less means that the traffic does not arrive
START = 0.15  # seconds for sender and receiver to start
TIMEOUT = 8.0  # seconds beyond a tool's own run until it is killed
UDP_PORT, SOCKPERF_PORT = 5300, 11111
REQUEST_BYTES = 64
BITS, MEGA, MICRO = 8, 1e6, 1e6

_ROOT = Path(__file__).parents[1]
_SOURCE = _ROOT / "bench" / "load.c"
_BINARY = _ROOT / "build" / "bench-load"


@dataclass(frozen=True)
class Load:
    """One kind of traffic.

    unit: of the value; cpu_unit: what the CPU cost is divided by.
    mtu: the underlay's in bytes.
    higher_is_better: whether a larger value is the better one.
    """

    name: str
    title: str
    unit: str
    cpu_unit: str
    run: Callable[[Lab, float], Sample]
    mtu: int = 1500
    higher_is_better: bool = True


def prepare() -> None:
    """See that the tools are there, and build our own."""
    require("iperf3", "sockperf", "taskset")
    build_udp()


def build_udp() -> None:
    """Build the sender and receiver of the UDP load, unless they are there."""
    if _BINARY.exists() and _BINARY.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return
    require("gcc")
    _BINARY.parent.mkdir(exist_ok=True)
    fresh = _BINARY.with_suffix(".new")
    subprocess.run(
        ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", str(_SOURCE), "-o", str(fresh)],
        check=True,
    )
    fresh.replace(_BINARY)


@contextlib.contextmanager
def _ending(process: Process) -> Iterator[Process]:
    """Have a process gone at the end, and its streams closed."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _start(node: Any, argv: list[str]) -> Process:
    process: Process = node.popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return process


# ------------------------------------------------------------------------------ UDP


@dataclass(frozen=True)
class Count:
    """What one end of the UDP load counted, in packets; see load.c."""

    window: int
    total: int
    bad: int
    overflows: int


def parse_count(text: str) -> Count:
    """Read what one end of the UDP load has printed."""
    lines = [line for line in text.splitlines() if line != "ready"]
    return Count(*map(int, lines[-1].split()))


def judge_udp(sent: Count, got: Count, drops: int, seconds: float, busy: float) -> Sample:
    """Turn counts into a sample.

    drops: checksum errors that the receiver's kernel counted meanwhile.
    busy: core-seconds per second of both cores.
    """
    if got.total == 0 or (got.total < NO_ARRIVAL * sent.total and drops > got.total):
        return Sample(None)
    rate = got.window / seconds
    return Sample(
        value=rate / 1e3,
        cpu_us=busy * MICRO / rate if rate else None,
        loss=max(0.0, 1 - got.total / sent.total) if sent.total else None,
    )


@contextlib.contextmanager
def udp_traffic(
    lab: Lab, size: int, flows: int, rate: int, window: Window
) -> Iterator[tuple[Process, Process]]:
    """Run sender and receiver through the tunnel; each prints its Count when the window ends."""
    times = [str(window.start_ns), str(window.end_ns)]
    target = [lab.pod_ip, str(UDP_PORT), str(size)]
    with _ending(_start(lab.receiver, [str(_BINARY), "recv", *target, *times])) as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()  # ready
        flow = [str(flows), str(rate)]
        with _ending(_start(lab.sender, [str(_BINARY), "send", *target, *flow, *times])) as sender:
            yield sender, receiver


def _udp(size: int, flows: int, rate: int) -> Callable[[Lab, float], Sample]:
    def run(lab: Lab, seconds: float) -> Sample:
        before = lab.receiver.counters()
        window = Window.after(START + WARM_UP, seconds)
        with udp_traffic(lab, size, flows, rate, window) as (sender, receiver):
            busy = busy_share(window)
            sent = parse_count(sender.communicate(timeout=TIMEOUT)[0])
            got = parse_count(receiver.communicate(timeout=TIMEOUT)[0])
        after = lab.receiver.counters()
        return judge_udp(sent, got, after.udp_drops - before.udp_drops, seconds, busy)

    return run


# ------------------------------------------------------------------------------ TCP


def parse_iperf(report: dict[str, Any], skip: float) -> float | None:
    """Return what the server's report says of the time after `skip` seconds, in Gbit/s."""
    sums = [interval["sum"] for interval in report.get("intervals", ())]
    counted = [one for one in sums if one["start"] >= skip - 0.01 and not one.get("omitted")]
    seconds = sum(one["seconds"] for one in counted)
    total = sum(one["bytes"] for one in counted)
    return total * BITS / seconds / 1e9 if seconds and total else None


def _tcp(lab: Lab, seconds: float) -> Sample:
    whole = math.ceil(WARM_UP + seconds)
    serve = ["iperf3", "-s", "-1", "-J", "-i", str(WARM_UP), "-B", lab.pod_ip]
    with _ending(_start(lab.receiver, serve)) as server:
        time.sleep(START)
        window = Window.after(START + WARM_UP, whole - START - WARM_UP)
        ask = ["iperf3", "-c", lab.pod_ip, "-t", str(whole), "--connect-timeout", "1000"]
        with _ending(_start(lab.sender, ask)) as client:
            busy = busy_share(window)
            try:
                client.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                return Sample(None)
        if client.returncode:
            return Sample(None)
        report = json.loads(server.communicate(timeout=TIMEOUT)[0])
    gbit = parse_iperf(report, WARM_UP)
    if gbit is None:
        return Sample(None)
    return Sample(value=gbit, cpu_us=busy * MICRO / (gbit * 1e9 / BITS / MEGA))


# ------------------------------------------------------------------------------ latency

_PERCENTILE = re.compile(r"percentile +([\d.]+) = +([\d.]+)")
_VALID = re.compile(r"\[Valid Duration\] RunTime=([\d.]+) sec; .*ReceivedMessages=(\d+)")
SOCKPERF_IDLE = 2.0  # seconds that sockperf waits before its test
SOCKPERF_WARM_UP = 0.45  # seconds at its beginning and end that it leaves out


def parse_sockperf(text: str, busy: float) -> Sample:
    """Read percentiles of the round trip, in microseconds, from what sockperf printed."""
    percentiles = {float(p): float(us) for p, us in _PERCENTILE.findall(text)}
    valid = _VALID.search(text)
    if not percentiles or not valid or not int(valid[2]):
        return Sample(None)
    return Sample(
        value=percentiles[50.0],
        p99=percentiles[99.0],
        p999=percentiles[99.9],
        cpu_us=busy * MICRO * float(valid[1]) / int(valid[2]),
    )


def _on_core(number: int) -> list[str]:
    """Return what a command line begins with to stay on one core, if there is a choice.

    Client and server would be on two nodes. Left to the scheduler they share a core in some runs
    and not in others, which makes a factor of ten.
    """
    return ["taskset", "-c", str(number)] if (os.cpu_count() or 1) > 1 else []


def _latency(*options: str) -> Callable[[Lab, float], Sample]:
    def run(lab: Lab, seconds: float) -> Sample:
        whole = math.ceil(SOCKPERF_WARM_UP + seconds)
        where = ["-i", lab.pod_ip, "-p", str(SOCKPERF_PORT)]
        with _ending(_start(lab.receiver, [*_on_core(1), "sockperf", "server", *where])):
            time.sleep(START)
            ask = [*_on_core(0), "sockperf", "ping-pong", *where, "--full-rtt", "-t", str(whole)]
            window = Window.after(START + SOCKPERF_IDLE + SOCKPERF_WARM_UP, whole - 0.75)
            client = _start(lab.sender, [*ask, "-m", str(REQUEST_BYTES), *options])
            with _ending(client):
                busy = busy_share(window)
                try:
                    text, _ = client.communicate(timeout=TIMEOUT)
                except subprocess.TimeoutExpired:
                    return Sample(None)
        return parse_sockperf(text, busy)

    return run


# ------------------------------------------------------------------------------ all of them

SIZES = (64, 512, 1400)
FLOWS = {1: "one flow", 16: "sixteen flows"}


def _udp_load(size: int, flows: int, rate: int) -> Load:
    kind, how = ("fixed", f"{rate // 1000} kpkt/s") if rate else ("saturating", "saturating")
    return Load(
        name=f"udp-{kind}-{size}-{flows}",
        title=f"UDP {size} B, {FLOWS[flows]}, {how}",
        unit="kpkt/s",
        cpu_unit="us/packet",
        run=_udp(size, flows, rate),
    )


_ALL = (
    *(
        _udp_load(size, flows, rate)
        for rate in (0, FIXED_RATE)
        for flows in FLOWS
        for size in SIZES
    ),
    Load("tcp-bulk", "TCP bulk", "Gbit/s", "us/MB", _tcp),
    Load("tcp-bulk-9000", "TCP bulk, MTU 9000", "Gbit/s", "us/MB", _tcp, mtu=9000),
    Load(
        "latency", "Round trip, back to back", "us", "us/request", _latency(),
        higher_is_better=False,
    ),
    Load(
        "latency-spaced", f"Round trip, every {SPACING_US} us", "us", "us/request",
        _latency(f"--mps={1_000_000 // SPACING_US}"),
        higher_is_better=False,
    ),
)  # fmt: skip

BY_NAME = {load.name: load for load in _ALL}
NAMES = tuple(BY_NAME)
UNITS = {load.name: (load.unit, load.cpu_unit) for load in _ALL}
