"""``csumfix top``: what the service is doing, as rates between two of its snapshots."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from csumfix import core
from csumfix.errors import CsumfixError, Exit
from csumfix.service import control
from csumfix.service.snapshot import NO_COUNTS, QueueSnapshot, Snapshot
from csumfix.text import printable
from csumfix.views.status import lane_reasons, lane_table, tunnel_table

KEYS_AT_ONCE = 64
QUIT = b"q"
ROWS = 5
"""Tunnels, and lanes, that are shown: the rates below them must stay on the screen."""

REASONS = 2
"""Reasons for a lane that are shown."""

P99 = 0.99


@dataclass(frozen=True)
class TimedSnapshot:
    """A snapshot, and the time.monotonic() at which it was taken."""

    time: float
    snapshot: Snapshot


@dataclass(frozen=True)
class Rates:
    """What one queue did between two samples; numbers per second unless said otherwise.

    written: packets with a new checksum, repaired or filled in (--zero fill).
    missed: packets that passed unrepaired because the buffer was full (overruns).
    lost: packets that the kernel dropped.
    waiting: packets in the queue at the later sample; None if the kernel does not say.
    batch: mean packets per receive call; None if there was none.
    wait_p99: seconds that probes waited; None if there was no probe. Probes need --metrics.
    """

    queue: int
    packets: float
    bits: float
    written: float
    left_wrong: float
    missed: float
    lost: float
    waiting: int | None
    batch: float | None
    wait_p99: float | None


def rates(before: TimedSnapshot, after: TimedSnapshot) -> list[Rates]:
    """Compute the rates of every queue that is there now.

    A service that was started in between began to count with 0.
    """
    old = before.snapshot.queues if _is_same(before.snapshot, after.snapshot) else {}
    seconds = after.time - before.time
    return [
        _queue_rates(number, new - old.get(number, NO_COUNTS), seconds)
        for number, new in after.snapshot.queues.items()
    ]


def _is_same(before: Snapshot, after: Snapshot) -> bool:
    return (before.pid, before.started) == (after.pid, after.started)


def _queue_rates(number: int, between: QueueSnapshot, seconds: float) -> Rates:
    receives = sum(between.batch_sizes)
    return Rates(
        queue=number,
        packets=between.packets / seconds,
        bits=8 * between.bytes / seconds,
        written=between.written / seconds,
        left_wrong=between.left_wrong / seconds,
        missed=between.overruns / seconds,
        lost=between.kernel.dropped / seconds if between.kernel else 0.0,
        waiting=between.kernel.waiting if between.kernel else None,
        batch=between.packets / receives if receives else None,
        wait_p99=quantile(P99, core.WAIT_BOUNDS, between.waits),
    )


def quantile(q: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """Estimate a quantile from a histogram as Prometheus does: evenly spread within a bucket.

    counts: one more than bounds; what is above the last bound counts as if at it.
    """
    rank, below = q * sum(counts), 0.0
    if not rank:
        return None
    for low, high, count in zip([0.0, *bounds], bounds, counts, strict=False):
        if count and below + count >= rank:
            return low + (high - low) * (rank - below) / count
        below += count
    return bounds[-1]


def run(interval: float, *, once: bool) -> None:
    """Show the rates over each interval until the operator has seen enough."""
    console = Console()
    first = _must_ask()
    if once or not console.is_terminal:
        time.sleep(interval)
        console.print(_view(first, _must_ask(), keys=False))
        return
    try:
        with _keys() as keys, Live(_view(first, None), console=console, screen=True) as live:
            _follow(first, interval, keys, live)
    except KeyboardInterrupt:
        pass  # as good an end as q


def _ask() -> TimedSnapshot | None:
    snapshot = control.status()
    return TimedSnapshot(time.monotonic(), snapshot) if snapshot else None


def _must_ask() -> TimedSnapshot:
    sample = _ask()
    if not sample:
        raise CsumfixError(
            "nothing to show: csumfix does not run in this network namespace: "
            "start it with 'csumfix run'",
            Exit.NEGATIVE,
        )
    return sample


def _follow(first: TimedSnapshot, interval: float, keys: int | None, live: Live) -> None:
    before: TimedSnapshot | None = first
    while not _quits(keys, interval):
        try:
            after = _ask()
        except CsumfixError:  # it may be woken
            after = None
        live.update(_view(before, after), refresh=True)
        before = after


@contextmanager
def _keys() -> Iterator[int | None]:
    """Have the terminal give each key at once; yield its descriptor, None if there is none."""
    if not sys.stdin.isatty():
        yield None
        return
    keyboard = sys.stdin.fileno()
    settings = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, settings)


def _quits(keys: int | None, seconds: float) -> bool:
    """Wait; return at once if the operator presses q."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        pressed = select.select([keys] if keys is not None else [], [], [], left)[0]
        if keys is not None and pressed and QUIT in os.read(keys, KEYS_AT_ONCE):
            return True
    return False


def _view(
    before: TimedSnapshot | None, after: TimedSnapshot | None, *, keys: bool = True
) -> RenderableType:
    """Draw what happened between two samples, in 80 columns.

    keys: whether to name the keys that work.
    """
    if not after:
        return Text("no service answers in this network namespace; waiting for one")
    seen = after.snapshot
    shown: list[RenderableType] = [
        _headline(seen, keys=keys),
        tunnel_table(seen.tunnels, ROWS, seen.tunnels_count),
        lane_table(seen, ROWS),
        *(Text(printable(reason)) for reason in lane_reasons(seen, REASONS)),
    ]
    if before and seen.queues:
        shown.append(_rate_table(rates(before, after)))
    return Group(*shown)


def _headline(snapshot: Snapshot, *, keys: bool) -> Text:
    trouble = f"trouble: {snapshot.trouble}" if snapshot.trouble else ""
    if snapshot.lanes and not snapshot.rules:
        trouble = trouble or "trouble: the rules are not loaded"
    text = f"csumfix {printable(snapshot.version)}, process {snapshot.pid}"
    line = Text(f"{text}    q: quit" if keys else text, style="bold")
    return line.append(f"\n{printable(trouble)}", style="red") if trouble else line


def _rate_table(queues: list[Rates]) -> Table:
    table = Table(
        title="queues, rates per second",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 0, 0, 1),
    )
    for heading in (
        *("queue", "packets", "Mbit", "checksum\nwritten", "left\nwrong", "passed\nby", "lost"),
        *("waiting\nnow", "packets per\nreceive", "99 % wait\nms"),
    ):
        table.add_column(heading, justify="right")
    for queue in queues:
        table.add_row(
            str(queue.queue),
            _number(queue.packets),
            _number(queue.bits / 1e6, digits=1),
            _number(queue.written),
            _should_be_0(queue.left_wrong),
            _should_be_0(queue.missed),
            _should_be_0(queue.lost),
            _number(queue.waiting),
            _number(queue.batch, digits=1),
            _number(queue.wait_p99 and queue.wait_p99 * 1e3, digits=2),
        )
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _should_be_0(value: float) -> Text:
    """Show a value that should be 0, and never round it down to that."""
    return Text(_number(value) if value >= 1 else f"{value:.1g}", style="red" if value else "")
