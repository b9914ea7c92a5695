"""Latency loads: sockperf sends a request, waits for the answer, and sends the next."""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections.abc import Callable

from bench.clock import Window, busy_share
from bench.programs import START, TIMEOUT, on_core, running
from bench.stats import Sample
from csumfix_lab import Lab

SPACING_US = 500
"""Microseconds between two requests of the spaced load."""

PORT = 11111
REQUEST_BYTES = 64
IDLE = 2.0  # seconds that sockperf waits before its test
WARM_UP = 0.45  # seconds at its beginning and end that it does not count
MICRO = 1e6

_PERCENTILE = re.compile(r"percentile +([\d.]+) = +([\d.]+)")
_VALID = re.compile(r"\[Valid Duration\] RunTime=([\d.]+) sec; .*ReceivedMessages=(\d+)")


def parse(text: str, busy: float) -> Sample:
    """Parse percentiles of the round trip, in microseconds, from sockperf's output."""
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


def load(*options: str) -> Callable[[Lab, float], Sample]:
    """Return a function that measures the round trip for a number of seconds.

    Client and server are pinned to different cores, as they would be on two nodes. Without that
    they share a core in some runs and not in others, and results differ by a factor of ten.
    """

    def run(lab: Lab, seconds: float) -> Sample:
        whole = math.ceil(WARM_UP + seconds)
        where = ["-i", lab.pod_ip, "-p", str(PORT)]
        with running(lab.receiver, [*on_core(1), "sockperf", "server", *where]):
            time.sleep(START)
            ask = [*on_core(0), "sockperf", "ping-pong", *where, "--full-rtt", "-t", str(whole)]
            window = Window.after(START + IDLE + WARM_UP, whole - 0.75)
            with running(lab.sender, [*ask, "-m", str(REQUEST_BYTES), *options]) as client:
                busy = busy_share(window)
                try:
                    text, _ = client.communicate(timeout=TIMEOUT)
                except subprocess.TimeoutExpired:
                    return Sample(None)
        return parse(text, busy)

    return run
