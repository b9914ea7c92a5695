"""When the service does what: one runner per kind of work, one scheduler that runs what is due.

Code that learns of something to do requests it from a runner. The scheduler runs what is due, one
runner after the other in the order in which they were given, and holds its lock meanwhile. Code
that must not be interrupted by this work, such as a hand-over, takes the same lock.

All times are in seconds of the clock, which is the event loop's own (CLOCK_MONOTONIC). Tests have
a loop whose time they control.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from csumfix.errors import CsumfixError
from csumfix.threads import cpu_seconds

log = logging.getLogger("csumfix")

RETRY = 5.0
"""Seconds until work that failed is tried again."""

CREDIT = 1.0
"""CPU seconds that a runner with a share may take at once before it has to wait for its share."""

Clock = Callable[[], float]


class Runner:
    """One kind of work, and when it is due.

    name: of the work, for the log.
    step: does the work.
    settle: from a request to the work, because events come in groups.
    at_most_every: from one start of the work to the next, at least.
    at_least_every: from one start to the next, at most; None for no limit.
    share: of a CPU that the work may take in the long run; None for no limit.
    failures: how often the work has failed.
    due: when it is to be done; None if there is nothing to do.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[None]],
        *,
        settle: float = 0.0,
        at_most_every: float = 0.0,
        at_least_every: float | None = None,
        share: float | None = None,
    ) -> None:
        self.name = name
        self.step = step
        self.share = share
        self.failures = 0
        self.due: float | None = None
        self._settle = settle
        self._at_most_every = at_most_every
        self._at_least_every = at_least_every
        self._clock: Clock = time.monotonic
        self._on_request: Callable[[], None] = lambda: None
        self._began: float | None = None
        self._used = 0.0
        self._used_at: float | None = None

    def attach(self, clock: Clock, on_request: Callable[[], None]) -> None:
        """Use this clock; call the function when `due` has changed."""
        self._clock, self._on_request = clock, on_request

    def request(self, after: float | None = None) -> None:
        """Have the work done.

        after: seconds from now; None means after the time that events take to settle.
        """
        at = self._clock() + (self._settle if after is None else after)
        if self._began is not None:
            at = max(at, self._began + self._at_most_every)
        self._be_due(at)

    def repeat(self, at_least_every: float | None) -> None:
        """Do the work at least this often from now on; None means on request only."""
        self._at_least_every = at_least_every
        if at_least_every is not None:
            self._be_due(self._clock() + at_least_every)

    def begin(self) -> None:
        """Note that the work starts now."""
        self._began, self.due = self._clock(), None
        if self._at_least_every is not None:
            self._be_due(self._began + self._at_least_every)

    def _be_due(self, at: float) -> None:
        if self.due is None or at < self.due:
            self.due = at
            self._on_request()

    def use(self, cpu: float) -> None:
        """Note that the work has taken this many CPU seconds."""
        self._used += cpu

    def wait_for_share(self) -> bool:
        """Put the work off if it has used up its share; tell whether it had."""
        if self.share is None:
            return False
        now = self._clock()
        if self._used_at is not None:
            self._used = max(0.0, self._used - (now - self._used_at) * self.share)
        self._used_at = now
        if self._used <= CREDIT:
            return False
        self.due = now + (self._used - CREDIT) / self.share
        return True


class Scheduler:
    """Runs what is due until it is stopped.

    runners: in the order in which they run if several are due.
    lock: held while any of them runs.
    cpu: the CPU seconds that have been used so far.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        clock: Clock,
        cpu: Callable[[], float] | None = None,
    ) -> None:
        self.lock = asyncio.Lock()
        self.stopped = False
        self._runners = runners
        self._clock = clock
        self._cpu = cpu or cpu_seconds
        self._changed = asyncio.Event()
        for runner in runners:
            runner.attach(clock, self._changed.set)

    def stop(self) -> None:
        """Have run() return; what is due stays undone."""
        self.stopped = True
        self._changed.set()

    async def run(self) -> None:
        """Run what is due, until stop()."""
        while not self.stopped:
            self._changed.clear()
            pause = self._until_due()
            if pause is None or pause > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                continue
            async with self.lock:
                await self._run_due()

    def _until_due(self) -> float | None:
        times = [runner.due for runner in self._runners if runner.due is not None]
        return min(times) - self._clock() if times else None

    async def _run_due(self) -> None:
        for runner in self._runners:
            if self.stopped:
                return
            due = runner.due is not None and runner.due <= self._clock()
            if due and not runner.wait_for_share():
                await self.run_now(runner)

    async def run_now(self, runner: Runner) -> None:
        """Do this work, under the lock; if it fails, do it again after a while."""
        runner.begin()
        before = self._cpu()
        try:
            await runner.step()
        except (CsumfixError, OSError) as error:
            runner.failures += 1
            log.error(
                "%s failed, retrying in %.0f s: %s",
                runner.name,
                RETRY,
                error,
                extra={"event": "failed"},
            )
            runner.request(RETRY)
        runner.use(self._cpu() - before)
