"""Time windows, and the CPU time used in them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_STAT = Path("/proc/stat")
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_UTIME, _STIME = 11, 12  # in /proc/PID/stat, behind the name
_NOT_WORKED = (3, 4, 7)  # idle, iowait, and steal: time that the hypervisor gave to others
_CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Window:
    """A period of CLOCK_MONOTONIC in nanoseconds."""

    start_ns: int
    end_ns: int

    @classmethod
    def after(cls, delay: float, seconds: float) -> Self:
        """Return the window of `seconds` that begins in `delay` seconds."""
        start = time.monotonic_ns() + int(delay * 1e9)
        return cls(start, start + int(seconds * 1e9))


def sleep_until(at_ns: int) -> None:
    """Sleep until a time of CLOCK_MONOTONIC."""
    time.sleep(max(0.0, (at_ns - time.monotonic_ns()) / 1e9))


def parse_stat(text: str) -> float:
    """Return the core-seconds that all cores were not used, from /proc/stat."""
    fields = text.split("\n", 1)[0].split()[1:]
    return sum(int(fields[index]) for index in _NOT_WORKED) * _TICK


def _not_worked() -> float:
    return parse_stat(_STAT.read_text(encoding="ascii"))


def busy_share(window: Window) -> float:
    """Wait for the window to pass; return used core-seconds per second, 0 to number of cores.

    This is computed from idle time. On many kernels the timer tick samples the busy times in
    /proc/stat. Traffic paced by a timer runs between ticks or always at one, so the same load
    seems to cost nothing or everything. Idle time is measured by the clock (get_cpu_idle_time_us()
    in kernel/time/tick-sched.c).
    """
    sleep_until(window.start_ns)
    began, before = time.monotonic(), _not_worked()
    sleep_until(window.end_ns)
    rest = (_not_worked() - before) / (time.monotonic() - began)
    return max(0.0, _CORES - rest)


def process_seconds(pid: int) -> float:
    """Return the core-seconds that a process has used; 0 if it does not exist."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) * _TICK
