"""What the service has to do: noted by whoever hears of it, done by one coroutine in turn."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import resource
import time
from collections.abc import Awaitable, Callable, Mapping

from csumfix.errors import CsumfixError

log = logging.getLogger("csumfix")

SETTLE = 0.2
"""Seconds to wait after an event: a CNI plugin makes many at once."""

RETRY = 5.0
"""Seconds until work that failed is tried again."""

SHARE = 0.1
"""Share of a CPU that each kind of work in BOUNDED may take, however often it becomes due."""

CREDIT = 1.0
"""CPU seconds that such work may take at once before it has to wait for its share."""


class Work(enum.Enum):
    """What there may be to do, in the order in which it is done."""

    RELOAD = "reload"
    TUNNELS = "updating the rules for changed devices"
    UNDERLAYS = "finding the devices that carry tunnels"
    LANES = "changing lanes"
    RULES = "restoring the rules"
    METRICS = "serving metrics"
    CONTROL = "opening the control socket"


BOUNDED = frozenset({Work.TUNNELS, Work.UNDERLAYS, Work.RULES})
"""Work that others cause, by what they do to devices, routes and rules."""


class Agenda:
    """The work that is due.

    steps: what does each kind of work.
    lock: held while any is done; whoever must not be disturbed by it takes it, too.
    leaving: set when it is time to go; what is due then stays undone.
    rule_failures: how often rules could not be loaded or checked.
    """

    def __init__(self, steps: Mapping[Work, Callable[[], Awaitable[None]]]) -> None:
        self.lock = asyncio.Lock()
        self.leaving = asyncio.Event()
        self.rule_failures = 0
        self._steps = steps
        self._due: set[Work] = set()
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._timers: dict[Work, asyncio.TimerHandle] = {}
        self._used: dict[Work, float] = {}
        self._used_at: dict[Work, float] = {}

    def note(self, what: Work, *, at_once: bool = False) -> None:
        """Have this done soon; at_once: without waiting for further events."""
        self._due.add(what)
        if at_once:
            self._hurry.set()
        self._wake.set()

    def leave(self) -> None:
        """Have work() return."""
        self.leaving.set()
        self._hurry.set()
        self._wake.set()

    async def work(self) -> None:
        """Do what is due until it is time to leave."""
        while not self.leaving.is_set():
            await self._wake.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), SETTLE)
            async with self.lock:
                self._wake.clear()
                self._hurry.clear()
                due, self._due = self._due, set()
                for what in Work:
                    if what in due and not self.leaving.is_set():
                        await self._do_or_postpone(what)

    async def _do_or_postpone(self, what: Work) -> None:
        excess = self._settle(what) - CREDIT
        if excess > 0:
            self.later(what, excess / SHARE)
            return
        before = cpu_seconds()
        await self.do(what)
        if what in BOUNDED:
            self._used[what] += cpu_seconds() - before

    def _settle(self, what: Work) -> float:
        """Return the CPU seconds that this work has used and not earned yet."""
        now = asyncio.get_running_loop().time()
        earned = (now - self._used_at.get(what, now)) * SHARE
        self._used[what] = max(0.0, self._used.get(what, 0.0) - earned)
        self._used_at[what] = now
        return self._used[what]

    async def do(self, what: Work) -> None:
        """Do this now, under the lock; later once more if it fails."""
        try:
            await self._steps[what]()
        except (CsumfixError, OSError) as error:
            self.rule_failures += what in (Work.TUNNELS, Work.LANES, Work.RULES)
            log.error(
                "%s failed, retrying in %.0f s: %s",
                what.value,
                RETRY,
                error,
                extra={"event": "failed"},
            )
            self.later(what, RETRY)

    def later(self, what: Work, seconds: float) -> None:
        """Have this done after so many seconds, whatever time was set for it before."""
        if what in self._timers:
            self._timers[what].cancel()
        loop = asyncio.get_running_loop()
        self._timers[what] = loop.call_later(seconds, self.note, what)


def cpu_seconds() -> float:
    """Return the CPU time that this thread, and the programs it has run, have taken so far."""
    programs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + programs.ru_utime + programs.ru_stime
