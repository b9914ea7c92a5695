"""UDP loads: load.c sends and receives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from bench.clock import Window, busy_share
from bench.programs import START, TIMEOUT, WARM_UP, Count, binary, parse_count, running
from bench.stats import Sample
from csumfix_lab import Lab
from csumfix_lab.process import Process

FIXED_RATE = 40_000
"""Packets per second of the fixed-rate loads, over all flows: far below any C cure's limit."""

GSO_SEGMENTS = 10
"""Datagrams in each GSO packet of the GSO load."""

NO_ARRIVAL = 0.01  # share of what was sent; less means that the traffic does not arrive
PORT = 5300
MICRO = 1e6


def judge(sent: Count, got: Count, drops: int, seconds: float, busy: float) -> Sample:
    """Turn counts into a sample.

    drops: checksum errors that the receiver's kernel counted during the load.
    busy: core-seconds per second of all cores.
    """
    if got.total == 0 or (got.total < NO_ARRIVAL * sent.total and drops > got.total):
        return Sample(None)
    rate = got.window / seconds
    return Sample(
        value=rate / 1e3,
        cpu_us=busy * MICRO / rate if rate else None,
        loss=max(0.0, 1 - got.total / sent.total) if sent.total else None,
        out_of_order=got.late / seconds,
    )


@contextlib.contextmanager
def traffic(
    lab: Lab, size: int, flows: int, rate: int, window: Window, segments: int = 1
) -> Iterator[tuple[Process, Process]]:
    """Run sender and receiver through the tunnel; each prints its Count when the window ends."""
    times = [str(window.start_ns), str(window.end_ns)]
    target = [lab.pod_ip, str(PORT), str(size)]
    how = [str(flows), str(rate), str(segments)]
    receive, send = ([binary("load"), verb, *target] for verb in ("recv", "send"))
    with (
        running(lab.receiver, [*receive, *times], ready=True) as receiver,
        running(lab.sender, [*send, *how, *times]) as sender,
    ):
        yield sender, receiver


def load(size: int, flows: int, rate: int, segments: int = 1) -> Callable[[Lab, float], Sample]:
    """Return a function that measures one UDP load for a number of seconds."""

    def run(lab: Lab, seconds: float) -> Sample:
        before = lab.receiver.counters()
        window = Window.after(START + WARM_UP, seconds)
        with traffic(lab, size, flows, rate, window, segments) as (sender, receiver):
            busy = busy_share(window)
            sent = parse_count(sender.communicate(timeout=TIMEOUT)[0])
            got = parse_count(receiver.communicate(timeout=TIMEOUT)[0])
        after = lab.receiver.counters()
        return judge(sent, got, after.udp_drops - before.udp_drops, seconds, busy)

    return run
