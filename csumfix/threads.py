"""Runs blocking functions in threads, and knows what CPU time they take.

The event loop bounds the work that other programs can cause (service/runner.py), so it must know
what that work costs. CLOCK_THREAD_CPUTIME_ID of its own thread does not show it, and the time of
the whole process includes the queues' threads, which repair packets.
"""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_used = 0.0


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Call the function in another thread, and return what it returns."""

    def measured() -> T:
        global _used  # noqa: PLW0603 - what all threads of the process have used
        before = time.thread_time()
        try:
            return function(*args)
        finally:
            with _lock:
                _used += time.thread_time() - before

    return await asyncio.to_thread(measured)


def cpu_seconds() -> float:
    """Return the CPU seconds of this thread, of in_thread(), and of programs that have ended."""
    programs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + _used + programs.ru_utime + programs.ru_stime
