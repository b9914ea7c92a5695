"""Netfilter queues: NetfilterQueue binds and owns them, a drain in a thread empties them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netfilterqueue import NetfilterQueue

from csumfix.core import COPY_WHOLE, Drain, Policy, Stats
from csumfix.errors import CsumfixError, Exit

PROC_QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")

MAX_LENGTH = 1 << 16
"""Packets a queue may hold: more than its socket can, so that the socket is the only limit. Beyond
a limit the kernel accepts packets unrepaired (fail-open), and only for sockets it counts them."""

SOCKET_BYTES = 8 << 20
"""Socket buffer asked for; the kernel doubles it. Measured: it holds 13,000 packets of
114 bytes, 7,000 of 1,450."""


@dataclass(frozen=True)
class KernelQueue:
    """A bound queue as the kernel shows it in PROC_QUEUES.

    port: netlink port of the owner's socket; mostly its process id.
    waiting: packets that have no verdict yet.
    queue_dropped: packets lost because the queue was full and had no fail-open.
    user_dropped: packets lost because the socket was full and had no fail-open.
    """

    number: int
    port: int
    waiting: int
    copy_mode: int
    copy_range: int
    queue_dropped: int
    user_dropped: int
    last_id: int


def kernel_queues() -> dict[int, KernelQueue]:
    """Return the bound queues of this network namespace by number."""
    try:
        lines = PROC_QUEUES.read_text().splitlines()
    except FileNotFoundError:
        raise CsumfixError(
            "this kernel has no NFQUEUE: nfnetlink_queue is not loaded: "
            "run 'modprobe nfnetlink_queue' or use a kernel with CONFIG_NETFILTER_NETLINK_QUEUE",
            Exit.KERNEL,
        ) from None
    except PermissionError:
        raise CsumfixError(
            f"cannot read {PROC_QUEUES}: it is root's: run as root", Exit.PERMISSION
        ) from None
    queues = (KernelQueue(*map(int, line.split()[:8])) for line in lines)
    return {queue.number: queue for queue in queues}


def accept(packet: Any) -> None:
    """Let a packet go on as it is: what a foreign rule sends before the drain takes over."""
    packet.accept()


class Queue:
    """One bound queue and the thread that empties it.

    Order matters to its users: make it before rules send packets to it; stop() only
    after they are gone and the queue is empty, because closing a queue drops what it holds.
    """

    def __init__(
        self,
        number: int,
        policy: Policy,
        callback: Callable[[Any], None] = accept,
        copy_range: int = COPY_WHOLE,
        max_length: int = MAX_LENGTH,
    ) -> None:
        self.number = number
        self.error: OSError | None = None
        self._nfqueue = _bind(number, callback, max_length)
        self._drain = Drain(self._nfqueue.get_fd(), number, policy)
        try:
            self._drain.configure(SOCKET_BYTES, copy_range)
        except OSError as error:
            self._nfqueue.unbind()
            raise CsumfixError(
                f"queue {number} refused its settings: {error.strerror}: "
                "NFQUEUE with fail-open needs Linux 3.6 or newer",
                Exit.KERNEL,
            ) from error
        self._thread = threading.Thread(target=self._run, name=f"queue-{number}", daemon=True)
        self._on_failure: Callable[[], None] = lambda: None

    def start(self, on_failure: Callable[[], None]) -> None:
        """Begin to empty the queue; on_failure is called, in the thread, if that fails."""
        self._on_failure = on_failure
        self._thread.start()

    def _run(self) -> None:
        try:
            self._empty()
        except OSError as error:
            self.error = error
            self._on_failure()

    def _empty(self) -> None:
        """Answer packets until stop()."""
        self._drain.run()

    @property
    def alive(self) -> bool:
        """Whether packets are answered."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop the thread and unbind the queue."""
        if self.alive:
            self._drain.stop()
            self._thread.join()
        self._nfqueue.unbind()

    def probe(self) -> None:
        """Measure how long a packet that is queued now waits; only between start and stop."""
        self._drain.probe()

    def set_policy(self, policy: Policy) -> None:
        """Repair by another policy from now on."""
        self._drain.set_policy(policy)

    def stats(self) -> Stats:
        """Return what the drain has done."""
        return self._drain.stats()


def require_free(numbers: Sequence[int]) -> None:
    """Raise if somebody has bound one of these queues; a kernel yet without NFQUEUE has none."""
    if not PROC_QUEUES.exists():
        return
    bound = kernel_queues()
    for number in numbers:
        if number in bound:
            raise _in_use(bound[number])


def _bind(number: int, callback: Callable[[Any], None], max_length: int) -> NetfilterQueue:
    try:
        nfqueue = NetfilterQueue()
        with warnings.catch_warnings():
            # A small socket buffer shows as overruns in the counters; it is no reason to stop.
            warnings.simplefilter("ignore", RuntimeWarning)
            nfqueue.bind(number, callback, max_length, sock_len=SOCKET_BYTES)
    except OSError as error:
        raise _bind_error(number) from error
    return nfqueue


def _in_use(owner: KernelQueue) -> CsumfixError:
    return CsumfixError(
        f"queue {owner.number} is already bound by another process (netlink port {owner.port}): "
        "two programs want the same number: "
        "choose other queues with --queue-base, or stop that process",
        Exit.IN_USE,
    )


def _bind_error(number: int) -> CsumfixError:
    owner = kernel_queues().get(number)
    if owner:
        return _in_use(owner)
    return CsumfixError(
        f"cannot bind queue {number}: CAP_NET_ADMIN is missing in this network namespace: "
        "run as root",
        Exit.PERMISSION,
    )
