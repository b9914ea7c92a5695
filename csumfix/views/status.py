"""``csumfix status``: whether all is well, and the details behind that verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from csumfix import core
from csumfix.errors import CsumfixError
from csumfix.host import rules, tunnels
from csumfix.host.queues import KernelQueue, kernel_queues
from csumfix.host.rules import LoadedRule
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import TITLES
from csumfix.service import control
from csumfix.service.lanes import Lane
from csumfix.service.snapshot import PortSnapshot, QueueSnapshot, Snapshot
from csumfix.text import counted, printable, printable_data

ROWS = 40
"""Rows of a table; a host can have a thousand tunnels."""

COLUMNS = 3
"""Queues that have a column of their own at most; of more, the totals are shown."""

LATELY = 60.0
"""Seconds for which a packet that left with a wrong checksum is a reason to act."""

LEFT = {"device", "reason", "lane", "family", "rule"}
"""Columns of words, not numbers."""

UNDERLAYS = {"4": "IPv4", "6": "IPv6"}

GOOD, WARNING, TROUBLE = "green", "yellow", "bold red"
"""How a verdict looks on a terminal."""


@dataclass(frozen=True)
class HostState:
    """Everything that can be seen in the current network namespace.

    rules: what is loaded.
    rules_known: whether that could be seen; if not, trouble says why.
    queues: None if they may not be seen, or the kernel has none; trouble says why.
    service: None if none runs, or it is silent; trouble says why.
    """

    tunnels: list[Tunnel]
    rules: list[LoadedRule]
    rules_known: bool
    queues: list[KernelQueue] | None
    service: Snapshot | None
    silent: bool
    trouble: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        plain: dict[str, Any] = printable_data(asdict(self))
        return plain


def gather() -> HostState:
    """Look at the namespace."""
    loaded = rules.loaded()
    trouble = [loaded.trouble] if loaded.trouble else []
    try:
        queues: list[KernelQueue] | None = list(kernel_queues().values())
    except CsumfixError as error:
        queues = None
        trouble.append(str(error))
    service: Snapshot | None = None
    silent = False
    try:
        service = control.status()
    except CsumfixError as error:
        silent = True
        trouble.append(str(error))
    found = asyncio.run(tunnels.discover())
    known = not loaded.trouble
    return HostState(found, list(loaded.rules), known, queues, service, silent, trouble)


# What it means


@dataclass(frozen=True)
class Headline:
    """One line of the verdict: the state and, if it is bad, what to do."""

    text: str
    style: str


def headlines(state: HostState) -> list[Headline]:
    """Say whether all is well; if not, say everything that is wrong, the worst first."""
    found = list(_problems(state))
    return found or [Headline(_all_is_well(state.service), GOOD)]


def _problems(state: HostState) -> Iterator[Headline]:
    service = state.service
    if service:
        yield from _troubles(service)
        yield from _warnings(service)
    elif state.silent:
        yield Headline(f"trouble: {state.trouble[-1]}", TROUBLE)
    elif any(rule.lane == Lane.KERNEL for rule in state.rules):
        yield Headline(
            "no service runs here; the kernel lane's rules are loaded and work without it",
            WARNING,
        )
    else:
        yield Headline(
            "csumfix does not run in this network namespace: start it with 'csumfix run'", TROUBLE
        )


def _troubles(service: Snapshot) -> Iterator[Headline]:
    if service.trouble:
        yield Headline(f"trouble: {service.trouble}: run 'csumfix restart'", TROUBLE)
    if service.lanes and not service.rules:
        yield Headline("trouble: the rules are not loaded: see the service's log", TROUBLE)


def _warnings(service: Snapshot) -> Iterator[Headline]:
    if service.wrong_seconds is not None and service.wrong_seconds < LATELY:
        remedy = "see 'csumfix trace --bad-only'"
        if any(map(_was_kept_in_kernel, service.lanes)):
            remedy = "set lane = auto"
        ago = duration(service.wrong_seconds)
        yield Headline(
            f"warning: a packet left with a wrong checksum {ago} ago: {remedy}", WARNING
        )
    for one in service.lanes:
        if one.probe_lost:
            yield Headline(
                f"warning: the {one.lane} lane does not cure port {one.port}: "
                f"run 'csumfix doctor': {one.probe_why}",
                WARNING,
            )
    if service.probe_fault and not service.tap_fault:
        yield Headline(
            f"warning: no probes, so a NIC that lies is not noticed: {service.probe_fault}: "
            "set probe = off if that is meant to be so",
            WARNING,
        )
    if not service.reload.ok:
        yield Headline(
            "warning: the last reload failed, the old settings are in force: see the log", WARNING
        )
    if service.control:
        yield Headline(f"warning: {service.control}: find out what it is, and stop it", WARNING)
    if service.tap_fault:
        yield Headline(
            f"warning: no egress tap, so lanes stay as they are: {service.tap_fault}", WARNING
        )


def _was_kept_in_kernel(one: PortSnapshot) -> bool:
    """Tell whether a packet left wrong because a setting keeps the port in the kernel lane."""
    return one.is_wrong_in_its_lane and one.why.startswith(f"setting lane = {Lane.KERNEL}")


def _all_is_well(service: Snapshot | None) -> str:
    if not service or not service.lanes_count:
        return "all is well: no tunnel yet; csumfix waits for one"
    ports = counted(service.lanes_count, "tunnel port")
    queue = service.queue_lane_count
    kernel = service.lanes_count - queue
    return f"all is well: {ports}, {kernel} in the kernel lane, {queue} in the queue lane"


# How it looks


def show(state: HostState, console: Console) -> None:
    """Print the state for people: the verdict first, then the details."""
    for headline in headlines(state):
        _line(console, headline.text, headline.style)
    if state.service:
        for line in _service_lines(state.service):
            _line(console, line)
    for table in _tables(state):
        if isinstance(table, str):
            _line(console, table)
        else:
            console.print()
            console.print(table)
    for line in state.trouble:
        _line(console, f"note: {line}")


def _tables(state: HostState) -> Iterator[Table | str]:
    service = state.service
    if state.tunnels:
        yield tunnel_table(state.tunnels)
    if service and service.lanes:
        yield lane_table(service)
        yield from lane_reasons(service)
    if not state.rules_known:
        yield "rules: not known; see below"
    elif state.rules:
        yield _rule_table(state.rules)
    if state.queues:
        yield _queue_table(state.queues)
    if service and service.queues:
        yield _counter_table(service)


def _line(console: Console, text: str, style: str = "") -> None:
    """Print a line; a terminal gets it in lines of its width, a program whole."""
    whole = not console.is_terminal
    console.print(Text(printable(text), style=style), soft_wrap=whole, highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
    return table


T = TypeVar("T")


def _add_rows(
    table: Table,
    rows: Sequence[T],
    limit: int,
    cells: Callable[[T], Iterable[str | Text]],
    matters: Callable[[T], bool] = bool,
    total: int | None = None,
) -> None:
    """Add at most `limit` rows, in their order; those that matter take precedence.

    total: how many there are, if that is more than there are rows.
    """
    ranked = sorted(range(len(rows)), key=lambda at: not matters(rows[at]))
    for at in sorted(ranked[:limit]):
        table.add_row(*cells(rows[at]))
    rest = max(total or 0, len(rows)) - min(limit, len(rows))
    if rest > 0:
        table.caption = f"and {rest} more; for all: csumfix status --json"
        table.caption_justify = "left"


def tunnel_table(found: Sequence[Tunnel], limit: int = ROWS, total: int | None = None) -> Table:
    """Draw a table of the tunnels' devices."""
    table = _table(
        "tunnels", "device", "carries", "VNI", "port", "underlay", "MTU", "outer checksum"
    )
    _add_rows(table, found, limit, _tunnel_cells, total=total)
    return table


def _tunnel_cells(tunnel: Tunnel) -> tuple[str | Text, ...]:
    on = tunnel.checksum6 if tunnel.family == "6" else tunnel.checksum
    underlay = UNDERLAYS.get(tunnel.family, "any")
    vni = "any" if tunnel.metadata else str(tunnel.vni)
    # Text, because rich would take "[red]" in a name for markup.
    name = Text(printable(tunnel.name))
    kind = TITLES[tunnel.protocol]
    return name, kind, vni, str(tunnel.port), underlay, str(tunnel.mtu), "on" if on else "0"


def lane_table(service: Snapshot, limit: int = ROWS) -> Table:
    """Draw a table of the lanes, with packets of each port.

    A port is "leaving" while flows of it are still in the queue lane that it has left.
    """
    table = _table(
        "lanes",
        *("port", "lane", "for", "seen by\nkernel lane", "repaired by\nqueue lane"),
        *("looked at\nas they left", "of these\nwrong"),
    )
    table.columns[1].justify = "left"
    _add_rows(
        table, service.lanes, limit, _lane_cells, lambda one: not one.is_plain, service.lanes_count
    )
    return table


def _lane_cells(one: PortSnapshot) -> tuple[str | Text, ...]:
    return (
        str(one.port),
        "leaving" if one.leaving_queue else one.lane,
        duration(one.seconds),
        str(one.kernel_packets),
        str(one.repaired),
        str(sum(one.departures.values())),
        Text(str(one.wrong), style="red" if one.wrong else ""),
    )


def lane_reasons(service: Snapshot, limit: int = ROWS) -> list[str]:
    """Say why ports are in the lanes where they are, unless it is the default."""
    shown = [one for one in service.lanes if one.why != "default"]
    return [f"port {one.port} is in the {one.lane} lane: {one.why}" for one in shown[:limit]]


def duration(seconds: float) -> str:
    """Return a time span in its largest unit: 5 s, 3 min, 2 h, 9 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _rule_table(loaded: list[LoadedRule]) -> Table:
    table = _table("rules", "family", "lane", "rule", "packets")
    _add_rows(table, loaded, ROWS, _rule_cells, lambda rule: rule.packets > 0)
    return table


def _rule_cells(rule: LoadedRule) -> tuple[str, ...]:
    return f"IPv{rule.family}", rule.lane, rule.role, str(rule.packets)


def _queue_table(queues: list[KernelQueue]) -> Table:
    table = _table(
        "queues", "number", "packets waiting", "dropped, queue full", "dropped, socket full"
    )
    _add_rows(table, queues, ROWS, _queue_cells)
    return table


def _queue_cells(queue: KernelQueue) -> tuple[str, ...]:
    numbers = (queue.number, queue.waiting, queue.queue_dropped, queue.user_dropped)
    return tuple(map(str, numbers))


ERRORS = {
    "overruns": "passed by, full",
    "send_errors": "failed sends",
    "verdict_errors": "refused verdicts",
    "malformed": "malformed messages",
    "unexpected": "unexpected messages",
}
"""Counters that should be 0, in words."""


def _counter_table(service: Snapshot) -> Table:
    queues = list(service.queues.values())
    headings = [f"queue {number}" for number in service.queues]
    if len(queues) > COLUMNS:
        headings = ["all queues"]
    table = _table("queue lane", "reason", *headings)
    for name, counts, style in _counter_rows(queues):
        if any(counts) or name == "all":
            shown = [sum(counts)] if len(counts) > COLUMNS else counts
            table.add_row(printable(name), *map(str, shown), style=style)
    return table


def _counter_rows(queues: list[QueueSnapshot]) -> Iterator[tuple[str, list[int], str]]:
    """Yield names, the counts of each queue, and how they look."""
    yield "all", [queue.packets for queue in queues], ""
    for reason in _reasons(queues):
        style = "red" if reason in core.LEFT_WRONG else ""
        yield f"  {reason}", [queue.reasons.get(reason, 0) for queue in queues], style
    for field, words in ERRORS.items():
        yield words, [getattr(queue, field) for queue in queues], "red"


def _reasons(queues: Iterable[QueueSnapshot]) -> list[str]:
    """Return the reasons in the core's order, then those of a newer service."""
    found = dict.fromkeys(str(reason) for reason in core.REASONS)
    for queue in queues:
        found |= dict.fromkeys(queue.reasons)
    return list(found)


def _service_lines(service: Snapshot) -> Iterator[str]:
    """Say what process it is, since when it counts, and what else the operator should know."""
    ours = version("csumfix")
    other = "" if service.version == ours else f" (this command is {ours})"
    yield f"service: process {service.pid}, version {service.version}{other}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(service.started))
    age = duration(max(0.0, time.time() - service.started))
    yield f"all counters since {since} ({age} ago), when this process started"
    if service.backend == rules.NFT:
        why = f", because {service.backend_why}" if service.backend_why else ""
        yield f"nft loads the rules{why}: the kernel lane queues the flows that NAT touches"
    if service.kernel_fault:
        yield f"no kernel lane: {service.kernel_fault}"
    yield from service.settings_notes[:ROWS]
    if service.nat_packets:
        yield f"NAT rewrote the outer header of {counted(service.nat_packets, 'packet')}"
    for number, what in (
        (service.lane_changes, "change of lane"),
        (service.rules_restored, "time that another program changed the rules; restored"),
        (service.rule_failures, "time that the rules could not be loaded"),
    ):
        if number:
            head, _, rest = what.partition(" ")
            yield f"{counted(number, head)} {rest}"
