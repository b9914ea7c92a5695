"""All queues of the service: bound together, started in order, drained together.

A queue is bound before any rule leads to it, and unbound only when none does and it is empty:
unbinding drops what a queue holds. A bound queue that is not started keeps its packets waiting.
That keeps a flow in order when its packets are sent to a new queue while the old one still holds
some: the new one is started when the old ones have been seen empty.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Container
from contextlib import asynccontextmanager, suppress

from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.host.queues import KernelQueue
from csumfix.options import LAST_QUEUE
from csumfix.service.kernel import Queue, Queues
from csumfix.service.runner import Clock
from csumfix.service.snapshot import QueueSnapshot

EMPTY_CHECKS, EMPTY_INTERVAL, EMPTY_LIMIT = 3, 0.02, 2.0
"""Queues count as empty when found so this often in a row; the rest is in seconds."""

GLANCE = 0.001
"""Seconds between two looks at the queues while new ones wait for old ones."""

PATIENCE = 0.1
"""Seconds that packets may wait in new queues for old ones: their buffer must not fill up."""


class Pool:
    """The queues, by number.

    on_failure: called in a queue's thread when it has failed.
    """

    def __init__(self, queues: Queues, clock: Clock, on_failure: Callable[[], None]) -> None:
        self._kernel = queues
        self._clock = clock
        self._on_failure = on_failure
        self._queues: dict[int, Queue] = {}
        self._waiting: list[Queue] = []
        self._policy = Policy()
        self._stood_at: dict[int, int] = {}
        self._released: Counter[int] = Counter()

    # Binding and unbinding

    def bind(self, numbers: range) -> None:
        """Bind those that are not ours yet: all or, if one is another program's, none."""
        new = [number for number in numbers if number not in self._queues]
        self._kernel.require_free(new)
        bound: list[Queue] = []
        try:
            for number in new:
                bound.append(self._kernel.bind(number, self._policy))
        except BaseException:
            for queue in bound:
                queue.stop()
            raise
        self._queues |= {queue.number: queue for queue in bound}
        self._waiting += bound

    @asynccontextmanager
    async def started_behind(self, ahead: Collection[int]) -> AsyncIterator[None]:
        """Start the bound queues while rules are exchanged, when they can overtake no packet.

        ahead: the queues from which packets are led away meanwhile.
        """
        if not ahead:
            self._start()
            yield
            return
        exchanged = asyncio.Event()
        task = asyncio.create_task(self._start_behind(ahead, exchanged))
        try:
            yield
        finally:
            exchanged.set()
            await task

    async def _start_behind(self, ahead: Collection[int], exchanged: asyncio.Event) -> None:
        """Start the queues once the others are empty and no packet comes to those any more."""
        moved_at: float | None = None
        while self._waiting:
            try:
                bound = self._kernel.bound()
            except (CsumfixError, OSError):
                break
            # A packet here tells that the rules have been exchanged.
            if moved_at is None and (exchanged.is_set() or self._holds_packets(bound)):
                moved_at = self._clock()
            if moved_at is not None:
                empty = not any(bound[n].waiting for n in ahead if n in bound)
                if empty or self._clock() - moved_at > PATIENCE:
                    break
            await asyncio.sleep(GLANCE)
        self._start()

    def _holds_packets(self, bound: dict[int, KernelQueue]) -> bool:
        numbers = (queue.number for queue in self._waiting)
        return any(bound[number].waiting for number in numbers if number in bound)

    def _start(self) -> None:
        for queue in self._waiting:
            queue.start(self._on_failure)
        self._waiting = []

    async def release_all_but(self, numbers: Container[int]) -> None:
        """Drain and unbind the others, to which no rule may lead any more."""
        self._start()
        leaving = [queue for number, queue in self._queues.items() if number not in numbers]
        if not leaving:
            return
        try:
            await self._wait_until_empty([queue.number for queue in leaving])
        finally:
            for queue in leaving:
                queue.stop()
                del self._queues[queue.number]
                self._released += _repaired_by(queue)

    async def _wait_until_empty(self, numbers: Collection[int]) -> None:
        """Wait for packets that met the rules before they were removed."""
        give_up = self._clock() + EMPTY_LIMIT
        quiet = 0
        while quiet < EMPTY_CHECKS and self._clock() < give_up:
            await asyncio.sleep(EMPTY_INTERVAL)
            with suppress(OSError):  # too many open files: then all the time is waited for
                bound = self._kernel.bound()
                waiting = sum(bound[number].waiting for number in numbers if number in bound)
                quiet = 0 if waiting else quiet + 1

    def free_numbers(self, wanted: range) -> range:
        """Return the first range of that length, in steps of it, whose queues nobody has bound."""
        if not self._kernel.exist():  # a kernel without NFQUEUE has bound none
            return wanted
        bound = self._kernel.bound()
        step = len(wanted)
        for start in range(wanted.start, LAST_QUEUE + 2 - step, step):
            numbers = range(start, start + step)
            if not any(number in bound for number in numbers):
                return numbers
        raise CsumfixError(
            f"no {step} free queue numbers from {wanted.start} on: "
            "other programs have them: choose a lower --queue-base",
            Exit.IN_USE,
        )

    # What the queues do

    @property
    def numbers(self) -> list[int]:
        """Numbers of the queues."""
        return list(self._queues)

    @property
    def is_bound(self) -> bool:
        """Whether there is any queue."""
        return bool(self._queues)

    def set_policy(self, policy: Policy) -> None:
        """Repair by another policy from now on."""
        self._policy = policy
        for queue in self._queues.values():
            queue.set_policy(policy)

    def probe(self) -> None:
        """Measure in each queue how long a packet waits."""
        for queue in self._queues.values():
            if queue not in self._waiting:
                queue.probe()

    def repaired(self) -> Counter[int]:
        """Return how many packets were repaired, by their UDP port; also by queues of before."""
        total = self._released.copy()
        for queue in self._queues.values():
            total += _repaired_by(queue)
        return total

    def find_stuck_queue(self) -> str | None:
        """Name a queue that has packets and has made no progress since the last call.

        Raises CsumfixError if a queue is not ours any more.
        """
        if not self._queues:
            return None
        bound = self._kernel.bound()
        before, self._stood_at = self._stood_at, {}
        stuck = None
        for number, queue in self._queues.items():
            if queue.error or number not in bound:
                raise _lost(number, queue.error)
            if not bound[number].waiting:
                continue
            self._stood_at[number] = queue.stats().packets
            if stuck is None and before.get(number) == self._stood_at[number]:
                waiting = bound[number].waiting
                stuck = f"queue {number} stands still with {waiting} packets in it"
        return stuck

    def snapshot(self) -> dict[int, QueueSnapshot]:
        """Return the counters by the number of the queue, ours and the kernel's."""
        try:
            kernel = self._kernel.bound()
        except (CsumfixError, OSError):
            kernel = {}
        return {
            number: QueueSnapshot.of(queue.stats(), kernel.get(number))
            for number, queue in self._queues.items()
        }


def _repaired_by(queue: Queue) -> Counter[int]:
    return Counter({one.port: one.repaired for one in queue.stats().ports})


def _lost(number: int, error: OSError | None) -> CsumfixError:
    reason = error.strerror if error else "it is not bound any more"
    return CsumfixError(
        f"queue {number} failed: {reason}: "
        "another program has unbound it or taken it over: start csumfix again",
        Exit.BROKEN,
    )
