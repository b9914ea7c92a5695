"""All queues of the service: bound together, emptied together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container

from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.host.queues import PROC_QUEUES, Queue, kernel_queues, require_free, wait_until_empty
from csumfix.options import LAST_QUEUE
from csumfix.service.snapshot import QueueSnapshot


class Pool:
    """The queues, by number."""

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
        except BaseException:
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
            await wait_until_empty([queue.number for queue in leaving])
        finally:
            for queue in leaving:
                queue.stop()
                del self._queues[queue.number]

    @property
    def is_bound(self) -> bool:
        """Whether there is any queue."""
        return bool(self._queues)

    def repaired(self) -> Counter[int]:
        """Return how many packets the queues have repaired, by their UDP port."""
        total: Counter[int] = Counter()
        for queue in self._queues.values():
            for one in queue.stats().ports:
                total[one.port] += one.repaired
        return total

    def set_policy(self, policy: Policy) -> None:
        """Repair by another policy from now on."""
        self._policy = policy
        for queue in self._queues.values():
            queue.set_policy(policy)

    def probe(self) -> None:
        """Have each queue measure how long a packet waits in it."""
        for queue in self._queues.values():
            queue.probe()

    def find_stuck_queue(self) -> str | None:
        """Say which queue has had packets but no progress since the last call, if one has.

        Raises if one is not ours any more.
        """
        if not self._queues:
            return None
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

    def snapshot(self) -> dict[int, QueueSnapshot]:
        """Return the counters by the number of the queue, ours and the kernel's."""
        try:
            kernel = kernel_queues()
        except (CsumfixError, OSError):
            kernel = {}
        return {
            number: QueueSnapshot.of(queue.stats(), kernel.get(number))
            for number, queue in self._queues.items()
        }


def free_numbers(wanted: range) -> range:
    """Return the first range of that length, in steps of it, whose queues nobody has bound."""
    if not PROC_QUEUES.exists():  # this kernel has no queues yet: none is taken
        return wanted
    bound = kernel_queues()
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
