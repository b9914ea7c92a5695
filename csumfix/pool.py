"""All queues of the service: bound together, emptied together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict
from typing import Any

from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.queue import Queue, kernel_queues, require_free

QUIET_CHECKS, QUIET_INTERVAL, QUIET_LIMIT = 3, 0.02, 2.0
"""Queues count as empty when found so this often in a row; the rest is in seconds."""

LAST_NUMBER = 65535


class Pool:
    """The queues, by number; always a range without holes while rules name them."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self._queues: dict[int, Queue] = {}
        self._policy = Policy()
        self._on_failure = on_failure
        self._stood_at: dict[int, int] = {}

    def bind(self, numbers: range) -> None:
        """Bind those that are not ours yet: all or, if one is another's, none."""
        new = [number for number in numbers if number not in self._queues]
        require_free(new)
        bound: list[Queue] = []
        try:
            for number in new:
                bound.append(Queue(number, self._policy))
        except CsumfixError:
            for queue in bound:
                queue.stop()
            raise
        for queue in bound:
            queue.start(self._on_failure)
            self._queues[queue.number] = queue

    async def release_all_but(self, numbers: Container[int]) -> None:
        """Empty and unbind the others, to which no rule may lead any more."""
        leaving = [queue for number, queue in self._queues.items() if number not in numbers]
        if not leaving:
            return
        try:
            await _wait_until_empty(leaving)
        finally:
            for queue in leaving:
                queue.stop()
                del self._queues[queue.number]

    def set_policy(self, policy: Policy) -> None:
        """Repair by another policy from now on."""
        self._policy = policy
        for queue in self._queues.values():
            queue.set_policy(policy)

    def probe(self) -> None:
        """Have each queue measure how long a packet waits in it."""
        for queue in self._queues.values():
            queue.probe()

    def complaint(self) -> str | None:
        """Say which queue has had packets but no progress since the last call, if one has.

        Raises if one is not ours any more.
        """
        bound = kernel_queues()
        before, self._stood_at = self._stood_at, {}
        for number, queue in self._queues.items():
            if queue.error or number not in bound:
                reason = queue.error.strerror if queue.error else "it is not bound any more"
                raise CsumfixError(
                    f"queue {number} failed: {reason}: "
                    "it was unbound or taken over behind our back: start csumfix again",
                    Exit.BROKEN,
                )
            if not bound[number].waiting:
                continue
            self._stood_at[number] = queue.stats().packets
            if before.get(number) == self._stood_at[number]:
                return f"queue {number} stands still with {bound[number].waiting} packets in it"
        return None

    def snapshot(self) -> dict[str, Any]:
        """Return the counters by the number of the queue, ours and the kernel's."""
        try:
            kernel = kernel_queues()
        except (CsumfixError, OSError):
            kernel = {}
        result = {}
        for number, queue in list(self._queues.items()):
            stats = queue.stats()
            result[str(number)] = {
                **asdict(stats),
                "reasons": stats.by_reason(),
                "kernel": asdict(kernel[number]) if number in kernel else None,
            }
        return result


async def _wait_until_empty(queues: Sequence[Queue]) -> None:
    """Wait for packets which met the rules before they were changed."""
    give_up = time.monotonic() + QUIET_LIMIT
    quiet = 0
    while quiet < QUIET_CHECKS and time.monotonic() < give_up:
        await asyncio.sleep(QUIET_INTERVAL)
        bound = kernel_queues()
        waiting = sum(bound[q.number].waiting for q in queues if q.number in bound)
        quiet = 0 if waiting else quiet + 1


def free_numbers(wanted: range) -> range:
    """Return the first range of that length, in steps of it, whose queues nobody has bound."""
    bound = kernel_queues()
    step = len(wanted)
    for start in range(wanted.start, LAST_NUMBER + 2 - step, step):
        numbers = range(start, start + step)
        if not any(number in bound for number in numbers):
            return numbers
    raise CsumfixError(
        f"no {step} free queue numbers from {wanted.start} on: "
        "other programs have them: choose a lower --queue-base",
        Exit.IN_USE,
    )
