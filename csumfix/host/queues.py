"""Netfilter queues: NetfilterQueue binds and unbinds them; a drain thread does everything else.

NetfilterQueue opens the socket, binds the queue to it and sets its length. The drain
(csrc/drain.h) then sets the copy range and the flags on the same socket, receives the packets and
sends the verdicts; no packet passes through NetfilterQueue or through Python.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netfilterqueue import NetfilterQueue

from csumfix.core import Drain, Policy, Stats
from csumfix.errors import CsumfixError, Exit
from csumfix.host.changes import ATTRIBUTE, HEADER, NLM_F_ACK, NLM_F_REQUEST
from csumfix.host.events import NETLINK_NETFILTER

PROC_QUEUES = Path("/proc/net/netfilter/nfnetlink_queue")

MAX_LENGTH = 1 << 16
"""Packets that a queue may hold: more than its socket can, so that the socket is the only limit.
Beyond either limit the kernel accepts packets unrepaired (fail-open), but it counts them only if
the socket was full."""

SOCKET_BYTES = 8 << 20
"""Size of the socket's buffer; the kernel doubles it. Measured: it holds 13,000 packets of 114
bytes, or 7,000 of 1,450."""

ANSWER_SECONDS = 5

# linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_queue.h
NFNETLINK_V0 = 0
NFQNL_CONFIG = 3 << 8 | 2  # NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG
NFQA_CFG_CMD = 1
NFQNL_CFG_CMD_BIND = 1

BIND_REMEDIES = {
    errno.EPERM: (
        "CAP_NET_ADMIN is missing in this network namespace: run as root",
        Exit.PERMISSION,
    ),
    errno.EINVAL: ("NFQUEUE may be missing: run 'modprobe nfnetlink_queue'", Exit.KERNEL),
}


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
            f"cannot read {PROC_QUEUES}: permission denied: run as root", Exit.PERMISSION
        ) from None
    queues = (KernelQueue(*map(int, line.split()[:8])) for line in lines)
    return {queue.number: queue for queue in queues}


def accept(packet: Any) -> None:
    """Accept a packet unchanged.

    NetfilterQueue calls this only for packets that another program's rule queues before the drain
    runs.
    """
    packet.accept()


class Queue:
    """One bound queue and the thread that empties it.

    Make it before rules send packets to it. Call stop() only after those rules are gone and the
    queue is empty, because unbinding a queue drops the packets in it.
    """

    def __init__(self, number: int, policy: Policy, max_length: int = MAX_LENGTH) -> None:
        self.number = number
        self.error: OSError | None = None
        self._nfqueue = _bind(number, max_length)
        self._drain = Drain(self._nfqueue.get_fd(), number, policy)
        try:
            self._drain.configure(SOCKET_BYTES)
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
            self._drain.run()
        except OSError as error:
            self.error = error
            self._on_failure()

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
    """Raise if another process has bound one of these queues.

    A kernel that has not loaded NFQUEUE yet has none.
    """
    if not PROC_QUEUES.exists():
        return
    bound = kernel_queues()
    for number in numbers:
        if number in bound:
            raise _in_use(bound[number])


def _bind(number: int, max_length: int) -> NetfilterQueue:
    try:
        nfqueue = NetfilterQueue()
        with warnings.catch_warnings():
            # A small socket buffer shows as overruns in the counters; it is no reason to stop.
            warnings.simplefilter("ignore", RuntimeWarning)
            nfqueue.bind(number, accept, max_length, sock_len=SOCKET_BYTES)
    except OSError as error:
        raise _bind_error(number, str(error)) from error
    return nfqueue


def _in_use(owner: KernelQueue) -> CsumfixError:
    return CsumfixError(
        f"queue {owner.number} is already bound by another process (netlink port {owner.port}): "
        "two programs want the same number: "
        "choose other queues with --queue-base, or stop that process",
        Exit.IN_USE,
    )


def _bind_error(number: int, complaint: str) -> CsumfixError:
    owner = kernel_queues().get(number)
    if owner:
        return _in_use(owner)
    code = _ask_to_bind(number)
    reason = os.strerror(code) if code else complaint
    remedy, exit_code = BIND_REMEDIES.get(code, ("see what dmesg says", Exit.KERNEL))
    return CsumfixError(f"cannot bind queue {number}: {reason}: {remedy}", exit_code)


def _ask_to_bind(number: int) -> int:
    """Return the errno with which the kernel refuses to bind a queue; 0 if it does not.

    libnetfilter_queue's nfq_create_queue() tells NetfilterQueue only that it failed.
    """
    command = struct.pack("!BxH", NFQNL_CFG_CMD_BIND, socket.AF_UNSPEC)
    attribute = ATTRIBUTE.pack(ATTRIBUTE.size + len(command), NFQA_CFG_CMD) + command
    body = struct.pack("!BBH", socket.AF_UNSPEC, NFNETLINK_V0, number) + attribute
    header = HEADER.pack(HEADER.size + len(body), NFQNL_CONFIG, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
            kernel.settimeout(ANSWER_SECONDS)
            kernel.connect((0, 0))
            kernel.sendall(header + body)
            answer = kernel.recv(4096)
    except OSError as error:
        return error.errno or errno.ETIMEDOUT
    (negative,) = struct.unpack_from("=i", answer, HEADER.size)
    return -int(negative)
