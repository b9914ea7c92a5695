"""``csumfix trace``: repairs packets itself for a while, and shows them before and after.

Theory of operation
-------------------
An operator runs it by hand, whether the service runs or not. An NFQUEUE verdict ends the traversal
of a table, so the service does not see what is traced: the trace repairs it, by the same core and
policy. It has rules and a queue of its own, in front of the service's; what the rules spare, the
service gets.

This is the callback path of NetfilterQueue, which is slow; that must cost sight, never packets:

- The rules divert LIMIT packets a second at most, which the callback manages.
- They spare packets that NetfilterQueue could not give back whole; see COPY_RANGE.
- The verdict comes first. Showing the packet is another process's work; see display.py.
- Should the callback still be too slow, the kernel lets packets through (fail-open).
- Start and stop keep the order that service.py explains.

Signals are blocked everywhere, and collected here: Ctrl-C reaches every process of a terminal, and
must neither end the display, nor csumfix-rules halfway.
"""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from csumfix.core import LEFT_WRONG, REPAIRED, Policy, repair
from csumfix.errors import CsumfixError, Exit
from csumfix.host import privileges, rules, tunnels
from csumfix.host.queues import PROC_QUEUES, Queue, kernel_queues, require_free, wait_until_empty
from csumfix.host.rules import RuleSet
from csumfix.host.tunnels import Tunnel
from csumfix.options import LAST_QUEUE
from csumfix.options import Options as ServiceOptions
from csumfix.service import control
from csumfix.service.plan import needs_underlay_mtu, plan
from csumfix.views.describe import Capture
from csumfix.views.display import Display, Screen

ADDRESS = "\0csumfix-trace"
"""Abstract socket that only one trace in a network namespace can have."""

COPY_RANGE = 3840
"""Longest packet to divert. NetfilterQueue receives into 4,096 bytes and leaves 80 of them for
what the kernel tells beside the packet, which may be twice as much. A longer message is cut off,
and its packet never answered."""

LIMIT = 10_000
"""Packets a second to divert at most: as many as the limit match can tell."""

TICK = 0.1
"""Seconds between looks at what is no signal."""

ENDS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
BLOCKED = {*ENDS, signal.SIGTSTP}  # a stopped trace would hold up the packets in its queue

WRONG = REPAIRED - {"zero_filled"} | LEFT_WRONG
"""Reasons for which the outer checksum was not right."""


@dataclass(frozen=True)
class Options:
    """What ``csumfix trace`` was asked to do; None: as the service does, or the default.

    count: packets to show before it stops; 0 for any number.
    """

    bad_only: bool = False
    count: int = 0
    pcap: Path | None = None
    divert: str | None = None
    ports: tuple[int, ...] = ()
    queue: int | None = None


class CallbackQueue(Queue):
    """A queue that NetfilterQueue empties, by a Python callback."""

    def __init__(self, number: int, policy: Policy, callback: Callable[[Any], None]) -> None:
        super().__init__(number, policy, callback, COPY_RANGE)
        self._stopping = threading.Event()

    def _empty(self) -> None:
        poll = select.poll()
        poll.register(self._nfqueue.get_fd(), select.POLLIN)
        while not self._stopping.is_set():
            poll.poll()
            self._nfqueue.run(block=False)

    def stop(self) -> None:
        """Stop the thread and unbind the queue."""
        self._stopping.set()  # before the drain wakes it
        super().stop()


class Trace:
    """Answers packets, and hands the interesting ones to the display."""

    def __init__(self, options: Options, policy: Policy, display: Display) -> None:
        self.shown = 0
        self.reasons: Counter[str] = Counter()
        self._options = options
        self._policy = policy
        self._display = display

    def on_packet(self, packet: Any) -> None:
        """Answer a packet, and only then think of showing it."""
        before = packet.get_payload()
        result = repair(before, self._policy)
        if result.replaced:
            packet.set_payload(result.packet)
        packet.accept()
        self.reasons[result.reason] += 1
        if not self._complete and (result.reason in WRONG or not self._options.bad_only):
            self.shown += self._display.show(before)

    def wait(self, queue: Queue) -> None:
        """Return on a signal, or when there is nothing more to show, or nobody to show it to."""
        while queue.alive and self._display.alive and not self._complete:
            if signal.sigtimedwait(ENDS, TICK):
                return

    @property
    def _complete(self) -> bool:
        return 0 < self._options.count <= self.shown


def run(options: Options) -> None:
    """Trace the tunnels of the current network namespace in the foreground."""
    privileges.require_net_admin()
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    running = (control.ask() or {}).get("config", {})
    found = asyncio.run(tunnels.discover())
    wanted = _plan(options, running, found)
    policy = Policy(wanted.ports, running.get("zero") == "fill")
    with _only_one() as lock:
        rules.remove(trace=True)  # what a killed one left behind
        capture = Capture(options.pcap) if options.pcap else None
        display = Display(Screen(policy, found, capture), [lock])
        try:
            summary = _trace(wanted, policy, Trace(options, policy, display), display)
        finally:
            display.close()
        _say(summary)


def _plan(options: Options, running: dict[str, Any], found: Sequence[Tunnel]) -> RuleSet:
    """Compute the rules: those of the service, if it runs, but for what this path can not do."""
    wanted = ServiceOptions(
        divert=options.divert or running.get("divert", "packets"),
        ports=tuple(sorted({*options.ports, *running.get("ports", ())})),
    )
    number = _choose_queue(options.queue)
    vague = needs_underlay_mtu(wanted, found)
    underlay_mtu = asyncio.run(tunnels.underlay_mtu()) if vague else 0
    planned = plan(wanted, range(number, number + 1), found, underlay_mtu)
    if not planned:
        raise CsumfixError(
            "nothing to trace: there is no vxlan device in this network namespace: "
            "name the tunnel's port with --port, or enter the namespace with nsenter",
            Exit.NEGATIVE,
        )
    return replace(
        planned,
        # The service goes on to get the GSO packets, which "all" would segment.
        divert="nat" if planned.divert == "nat" else "packets",
        max_length=min(planned.max_length, COPY_RANGE),
        trace=True,
        limit=LIMIT,
    )


def _choose_queue(number: int | None) -> int:
    """Return the queue to use: the last free one, because a service that comes wants the first."""
    if number is not None:
        require_free([number])
        return number
    bound = kernel_queues() if PROC_QUEUES.exists() else {}
    return next(number for number in range(LAST_QUEUE, -1, -1) if number not in bound)


@contextmanager
def _only_one() -> Iterator[socket.socket]:
    """Be the only trace in this network namespace."""
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(ADDRESS)
        except OSError:
            raise CsumfixError(
                "csumfix trace runs already in this network namespace: "
                "one sees all its tunnels: stop that one first",
                Exit.IN_USE,
            ) from None
        yield lock


def _trace(wanted: RuleSet, policy: Policy, trace: Trace, display: Display) -> str:
    """Divert packets until the trace has ended and its queue is empty; return a summary."""
    queue = CallbackQueue(wanted.queue_base, policy, trace.on_packet)
    try:
        queue.start(lambda: None)  # wait() looks after it
        rules.apply(wanted)
        _say(f"tracing port {' '.join(map(str, wanted.ports))}; Ctrl-C ends it")
        trace.wait(queue)
        if not queue.alive:
            raise CsumfixError(
                f"queue {queue.number} failed: {queue.error or 'see above'}: "
                "it was unbound or taken over behind our back: start the trace again",
                Exit.BROKEN,
            )
        met = rules.packets(trace=True)
    finally:
        let_through = _end(queue)
    seen = ", ".join(f"{number} {reason}" for reason, number in trace.reasons.most_common())
    return (
        f"traced {trace.reasons.total()} packets ({seen or 'none came'}): {trace.shown} handed on "
        f"to be shown, {display.missed} not, for want of speed; not traced: "
        f"{met['jump'] - met[f'queue-{queue.number}']} passed by, "
        f"{let_through} let through"
    )


def _end(queue: Queue) -> int:
    """Remove the rules, empty and unbind the queue; return what the kernel let through."""
    try:
        rules.remove(trace=True)
    finally:  # also if the rules could not be removed, what is queued must not be dropped
        try:
            asyncio.run(wait_until_empty([queue.number]))
            let_through = queue.stats().overruns  # stopping it sends a message more
        finally:
            queue.stop()
    return let_through


def _say(line: str) -> None:
    """Tell the operator, who may have closed the terminal."""
    with suppress(OSError):
        click.echo(f"csumfix: {line}", err=True)
