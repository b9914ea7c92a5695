"""What the service has to do: noted by whoever hears of it, done by one coroutine in turn."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import Awaitable, Callable, Mapping

from csumfix.errors import CsumfixError

log = logging.getLogger("csumfix")

SETTLE = 0.2
"""Seconds to wait after an event: a CNI plugin makes many at once."""

RETRY = 5.0
"""Seconds until work that failed is tried again."""


class Work(enum.Enum):
    """What there may be to do."""

    TUNNELS = "rules for changed devices"
    RULES = "mending of rules"
    RELOAD = "reload"
    METRICS = "serving metrics"
    DOOR = "opening of the control socket"


class Agenda:
    """The work that is due.

    steps: what does each kind of work.
    lock: held while any is done; whoever must not be disturbed by it takes it, too.
    leaving: set when it is time to go; what is due then stays undone.
    rule_failures: how often rules could not be loaded or looked at.
    """

    def __init__(self, steps: Mapping[Work, Callable[[], Awaitable[None]]]) -> None:
        self.lock = asyncio.Lock()
        self.leaving = asyncio.Event()
        self.rule_failures = 0
        self._steps = steps
        self._due: set[Work] = set()
        self._wake = asyncio.Event()
        self._retries: dict[Work, asyncio.TimerHandle] = {}

    def note(self, what: Work) -> None:
        """Have this done soon."""
        self._due.add(what)
        self._wake.set()

    def leave(self) -> None:
        """Have work() return."""
        self.leaving.set()
        self._wake.set()

    async def work(self) -> None:
        """Do what is due until it is time to leave."""
        while not self.leaving.is_set():
            await self._wake.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.leaving.wait(), SETTLE)
            async with self.lock:
                self._wake.clear()
                due, self._due = self._due, set()
                for what in due:
                    if not self.leaving.is_set():
                        await self.do(what)

    async def do(self, what: Work) -> None:
        """Do this now, under the lock; later once more if it fails."""
        try:
            await self._steps[what]()
        except (CsumfixError, OSError) as error:
            self.rule_failures += what in (Work.TUNNELS, Work.RULES)
            log.error(
                "%s failed, will try again: %s", what.value, error, extra={"event": "failed"}
            )
            self.retry(what)

    def retry(self, what: Work) -> None:
        """Have this done after a while; once, however often events made it fail meanwhile."""
        if what in self._retries:
            self._retries[what].cancel()
        loop = asyncio.get_running_loop()
        self._retries[what] = loop.call_later(RETRY, self.note, what)
