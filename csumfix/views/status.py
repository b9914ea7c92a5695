"""``csumfix status``: tunnels, rules, queues, and the service's counters if it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from csumfix import core
from csumfix.errors import CsumfixError
from csumfix.evidence.departures import Departure
from csumfix.host import rules, tunnels
from csumfix.host.queues import KernelQueue, kernel_queues
from csumfix.host.rules import LoadedRule
from csumfix.host.tunnels import Tunnel
from csumfix.service import control
from csumfix.service.lanes import Lane
from csumfix.text import printable, printable_data

ROWS = 40
"""Rows of a table; a host can have a thousand tunnels."""

LEFT = {"device", "reason", "family", "lane", "rule", "why"}
"""Columns of words, not numbers."""


@dataclass(frozen=True)
class State:
    """Everything there is to see in the current network namespace.

    rules: what is loaded.
    rules_known: whether that could be seen; if not, trouble says why.
    queues: None if they may not be seen, or the kernel has none; trouble says why.
    service: None if none runs, or it is silent; trouble says why.
    """

    tunnels: list[Tunnel]
    rules: list[LoadedRule]
    rules_known: bool
    queues: list[KernelQueue] | None
    service: control.Snapshot | None
    silent: bool
    trouble: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        plain: dict[str, Any] = printable_data(asdict(self))
        return plain


def gather() -> State:
    """Look at the namespace."""
    loaded = rules.loaded()
    trouble = [loaded.trouble] if loaded.trouble else []
    try:
        queues: list[KernelQueue] | None = list(kernel_queues().values())
    except CsumfixError as error:
        queues = None
        trouble.append(str(error))
    service: control.Snapshot | None = None
    silent = False
    try:
        service = control.ask()
    except CsumfixError as error:
        silent = True
        trouble.append(str(error))
    found = asyncio.run(tunnels.discover())
    known = not loaded.trouble
    return State(found, list(loaded.rules), known, queues, service, silent, trouble)


def show(state: State, console: Console) -> None:
    """Print the state for people: the verdict first, then what it rests on."""
    _line(console, verdict(state))
    console.print(tunnel_table(state.tunnels))
    if state.service:
        console.print(lane_table(state.service))
    if state.rules_known:
        console.print(_rule_table(state.rules))
    else:
        _line(console, "rules: not known; see below")
    if state.queues:
        console.print(_queue_table(state.queues))
    if state.service:
        console.print(_counter_table(state.service))
        for line in _service_lines(state.service):
            _line(console, line)
    for line in state.trouble:
        _line(console, f"note: {line}")


def _line(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def verdict(state: State) -> str:
    """Say in one line whether all is well and, if not, what to do."""
    service = state.service
    if state.silent:
        return "csumfix does not answer; see the note below"
    if not service:
        if any(rule.lane == Lane.KERNEL for rule in state.rules):
            return "no service runs here; the kernel lane's rules are loaded and work without it"
        return "csumfix does not run in this network namespace: start it with 'csumfix run'"
    if service["trouble"]:
        return f"trouble: {service['trouble']}"
    if service["lanes"] and not service["rules"]:
        return "trouble: the rules are not loaded; see the log of the service"
    wrong = sum(one["departures"].get(Departure.WRONG, 0) for one in service["lanes"])
    queued = sum(one["lane"] == Lane.QUEUE for one in service["lanes"])
    # The answer of a service lists a bounded number of them.
    count = service.get("lanes_count", len(service["lanes"]))
    ports = f"{count} tunnel ports" if count != 1 else "1 port"
    return (
        f"all is well: {ports} looked after, {queued} in the queue lane; "
        f"{wrong} packets were seen to leave wrong since the start"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right")
    return table


T = TypeVar("T")


def _add_rows(
    table: Table,
    rows: Sequence[T],
    limit: int,
    cells: Callable[[T], Iterable[str | Text]],
    matters: Callable[[T], bool] = bool,
) -> None:
    """Add at most `limit` rows, in their order; those that matter take precedence."""
    ranked = sorted(range(len(rows)), key=lambda at: not matters(rows[at]))
    for at in sorted(ranked[:limit]):
        table.add_row(*cells(rows[at]))
    if len(rows) > limit:
        table.caption = f"and {len(rows) - limit} more; for all: csumfix status --json"
        table.caption_justify = "left"


def tunnel_table(found: list[Tunnel], limit: int = ROWS) -> Table:
    """Draw a table of vxlan devices."""
    table = _table("tunnels", "device", "VNI", "port", "underlay", "MTU", "outer checksum")
    _add_rows(table, found, limit, _tunnel_cells)
    return table


def _tunnel_cells(tunnel: Tunnel) -> tuple[str | Text, ...]:
    on = tunnel.checksum6 if tunnel.family == "6" else tunnel.checksum
    underlay = {"4": "IPv4", "6": "IPv6", "both": "any"}[tunnel.family]
    vni = "any" if tunnel.metadata else str(tunnel.vni)
    # Text, because rich would take "[red]" in a name for markup.
    name = Text(printable(tunnel.name))
    return name, vni, str(tunnel.port), underlay, str(tunnel.mtu), "on" if on else "0"


def lane_table(service: control.Snapshot, limit: int = ROWS) -> Table:
    """Draw a table of the lanes; departures are those that the egress tap looked at."""
    table = _table(
        "lanes",
        *("port", "lane", "for", "met in\nkernel", "repaired\nin queue", "looked\nat"),
        *("left\nwrong", "why"),
    )
    _add_rows(table, service["lanes"], limit, _lane_cells, _is_of_interest)
    return table


def _lane_cells(one: dict[str, Any]) -> tuple[str | Text, ...]:
    departures = one["departures"]
    return (
        str(one["port"]),
        f"{one['lane']}, leaving queue" if one["leaving_queue"] else one["lane"],
        duration(one["seconds"]),
        str(one["kernel_packets"]),
        str(one["repaired"]),
        str(sum(departures.values())),
        str(departures.get(Departure.WRONG, 0)),
        Text(one["why"]),
    )


def _is_of_interest(one: dict[str, Any]) -> bool:
    """Tell whether a port has been anywhere but in the kernel lane, or has had a wrong packet."""
    wrong = one["departures"].get(Departure.WRONG, 0)
    return bool(wrong or one["repaired"] or one["leaving_queue"] or one["lane"] != Lane.KERNEL)


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
    table = _table("queues", "number", "waiting", "dropped: queue full", "dropped: socket full")
    for queue in queues:
        numbers = (queue.number, queue.waiting, queue.queue_dropped, queue.user_dropped)
        table.add_row(*map(str, numbers))
    return table


def _counter_table(service: control.Snapshot) -> Table:
    queues: dict[str, Any] = service["queues"]
    table = _table("packets", "reason", *(f"queue {q}" for q in queues))
    table.add_row("packets", *(str(queue["packets"]) for queue in queues.values()))
    for reason in core.REASONS:
        counts = [queue["reasons"][reason] for queue in queues.values()]
        if any(counts):
            table.add_row(f"  {reason}", *map(str, counts))
    for trouble in ("overruns", "send_errors", "verdict_errors", "malformed", "unexpected"):
        counts = [queue[trouble] for queue in queues.values()]
        if any(counts):
            table.add_row(trouble, *map(str, counts))
    return table


def _service_lines(service: control.Snapshot) -> list[str]:
    """Say what process it is, and what the operator should know besides the counters."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(service["started"]))
    lines = [
        f"service: process {service['pid']}, version {service['version']}",
        f"all counters since {since}",
    ]
    if service.get("control"):
        lines.append(f"trouble: {service['control']}")
    if not service["reload"]["ok"]:
        lines.append("trouble: the last reload failed, see the log; older settings are in force")
    if service["kernel_fault"]:
        lines.append(f"no kernel lane: {service['kernel_fault']}")
    if service["tap_fault"]:
        lines.append(f"no egress tap: {service['tap_fault']}")
    if service["nat_packets"]:
        lines.append(
            f"NAT rewrites tunnel headers here: {service['nat_packets']} packets; "
            "without csumfix those that are not GSO would leave with a wrong checksum"
        )
    for name, meaning in (
        ("lane_changes", "changes of lane"),
        ("rules_restored", "times that another program changed the rules, which were restored"),
        ("rule_failures", "times that the rules could not be loaded"),
    ):
        if service[name]:
            lines.append(f"{service[name]} {meaning}")
    return lines
