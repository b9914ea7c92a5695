"""``csumfix top``: what the service does right now, as rates between two of its snapshots."""

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
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from csumfix import core
from csumfix.errors import CsumfixError, Exit
from csumfix.host.tunnels import Tunnel
from csumfix.service import control
from csumfix.service.control import Snapshot
from csumfix.text import printable
from csumfix.views.status import lane_table, tunnel_table

KEYS_AT_ONCE = 64
QUIT = b"q"
ROWS = 8  # of tunnels, and of lanes: the rates below them must stay on the screen
P99 = 0.99


@dataclass(frozen=True)
class Sample:
    """A snapshot, and the time.monotonic() when it was taken."""

    time: float
    snapshot: Snapshot


@dataclass(frozen=True)
class Rates:
    """What one queue did between two samples; numbers a second unless said otherwise.

    missed: packets that were let through unrepaired for want of buffer (overruns).
    lost: packets that the kernel dropped.
    waiting: packets in the queue at the later sample; None if the kernel does not say.
    batch: mean packets a receive call; None if there was none.
    wait_p99: seconds that probes waited; None if there was none, which takes --metrics.
    """

    queue: str
    packets: float
    bits: float
    repaired: float
    left_wrong: float
    missed: float
    lost: float
    waiting: int | None
    batch: float | None
    wait_p99: float | None


def rates(before: Sample, after: Sample) -> list[Rates]:
    """Compute the rates of every queue that is there now.

    A service that was started in between began to count with 0.
    """
    old = before.snapshot["queues"] if _is_same(before.snapshot, after.snapshot) else {}
    seconds = after.time - before.time
    return [
        _queue_rates(number, old.get(number), new, seconds)
        for number, new in after.snapshot["queues"].items()
    ]


def _is_same(before: Snapshot, after: Snapshot) -> bool:
    return bool(before["pid"] == after["pid"] and before["started"] == after["started"])


def _queue_rates(
    number: str, old: dict[str, Any] | None, new: dict[str, Any], seconds: float
) -> Rates:
    counts = _counts(new) if old is None else _difference(_counts(old), _counts(new))
    receives = sum(counts["batch_sizes"])
    return Rates(
        queue=number,
        packets=counts["packets"] / seconds,
        bits=8 * counts["bytes"] / seconds,
        repaired=counts["repaired"] / seconds,
        left_wrong=counts["left_wrong"] / seconds,
        missed=counts["overruns"] / seconds,
        lost=_lost(old, new) / seconds,
        waiting=new["kernel"]["waiting"] if new["kernel"] else None,
        batch=counts["packets"] / receives if receives else None,
        wait_p99=quantile(P99, core.WAIT_BOUNDS, counts["waits"]),
    )


def _counts(queue: dict[str, Any]) -> dict[str, Any]:
    """Return the counters that rates are made of."""
    return {
        **{name: queue[name] for name in ("packets", "bytes", "overruns", "batch_sizes", "waits")},
        "repaired": sum(queue["reasons"][reason] for reason in core.REPAIRED),
        "left_wrong": sum(queue["reasons"][reason] for reason in core.LEFT_WRONG),
    }


def _difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [b - a for a, b in zip(old[name], value, strict=True)]
        if isinstance(value, list)
        else value - old[name]
        for name, value in new.items()
    }


def _lost(old: dict[str, Any] | None, new: dict[str, Any]) -> int:
    """Return how many packets the kernel dropped in between, if it is known."""
    before = old["kernel"] if old else {"queue_dropped": 0, "user_dropped": 0}
    after = new["kernel"]
    if not before or not after:
        return 0
    return sum(int(after[name] - before[name]) for name in ("queue_dropped", "user_dropped"))


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
        console.print(_view(first, _must_ask()))
        return
    try:
        with _keys() as keys, Live(_view(first, None), console=console, screen=True) as live:
            _follow(first, interval, keys, live)
    except KeyboardInterrupt:
        pass  # as good an end as q


def _ask() -> Sample | None:
    snapshot = control.ask()
    return Sample(time.monotonic(), snapshot) if snapshot else None


def _must_ask() -> Sample:
    sample = _ask()
    if not sample:
        raise CsumfixError(
            "no service runs in this network namespace: there is nothing to show: "
            "start it with 'csumfix run'",
            Exit.NEGATIVE,
        )
    return sample


def _follow(first: Sample, interval: float, keys: int | None, live: Live) -> None:
    before: Sample | None = first
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


def _view(before: Sample | None, after: Sample | None) -> RenderableType:
    """Draw what happened between two samples, in 80 columns."""
    if not after:
        return Text("no service answers in this network namespace; waiting for one")
    tunnels = [Tunnel(**tunnel) for tunnel in after.snapshot["tunnels"]]
    shown: list[RenderableType] = [
        _headline(after.snapshot),
        tunnel_table(tunnels, ROWS),
        lane_table(after.snapshot, ROWS),
    ]
    if before:
        shown.append(_rate_table(rates(before, after)))
    return Group(*shown)


def _headline(snapshot: Snapshot) -> Text:
    rules = "rules loaded" if snapshot["rules"] else "no rules loaded"
    text = f"csumfix {snapshot['version']}, process {snapshot['pid']}, {rules}; q ends"
    return Text(printable(text), style="bold")


def _rate_table(queues: list[Rates]) -> Table:
    table = Table(
        title="queues, rates per second",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 0, 0, 1),
    )
    for heading in (
        *("queue", "packets", "Mbit", "repaired", "left\nwrong", "missed", "lost"),
        *("waiting", "mean\nbatch", "p99 wait\nms"),
    ):
        table.add_column(heading, justify="right")
    for queue in queues:
        table.add_row(
            queue.queue,
            _number(queue.packets),
            _number(queue.bits / 1e6, digits=1),
            _number(queue.repaired),
            _trouble(queue.left_wrong),
            _trouble(queue.missed),
            _trouble(queue.lost),
            _number(queue.waiting),
            _number(queue.batch, digits=1),
            _number(queue.wait_p99 and queue.wait_p99 * 1e3, digits=2),
        )
    return table


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _trouble(value: float) -> Text:
    """Show what should be 0; never round it down to that."""
    return Text(_number(value) if value >= 1 else f"{value:.1g}", style="red" if value else "")
