"""A limit to how often something happens."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Lets through `rate` events per second on average, and at most `burst` at once."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._free, self._then = self._burst, clock()

    def take(self) -> float:
        """Take one event; return 0, or the seconds to wait until a whole burst is free again.

        A wait for a single event would wake the caller for each.
        """
        now = self._clock()
        self._free = min(self._burst, self._free + (now - self._then) * self._rate)
        self._then = now
        if self._free < 1:
            return (self._burst - self._free) / self._rate
        self._free -= 1
        return 0.0
