"""``csumfix status``: tunnels, rules, queues, and the service's counters if it runs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from csumfix import core
from csumfix.errors import CsumfixError
from csumfix.host import rules, tunnels
from csumfix.host.queues import KernelQueue, kernel_queues
from csumfix.host.tunnels import Tunnel
from csumfix.service import control


@dataclass(frozen=True)
class State:
    """Everything there is to see in the current network namespace.

    rules: empty if they may not be seen; trouble says why.
    queues: None if they may not be seen, or the kernel has none; trouble says why.
    service: None if none runs, or it is silent; trouble says why.
    """

    tunnels: list[Tunnel]
    rules: list[str]
    queues: list[KernelQueue] | None
    service: control.Snapshot | None
    silent: bool
    trouble: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def gather() -> State:
    """Look at the namespace."""
    trouble = []
    shown = rules.run(["status"])
    if shown.stderr.strip():
        trouble.append(shown.stderr.strip().splitlines()[-1])
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
    return State(found, shown.stdout.splitlines(), queues, service, silent, trouble)


def show(state: State, console: Console) -> None:
    """Print the state for people."""
    console.print(tunnel_table(state.tunnels))
    console.print("[bold]rules[/bold]")
    for line in state.rules or ["not known; see below"]:
        console.print("  " + line, markup=False, highlight=False)
    if state.queues is not None:
        console.print(_queue_table(state.queues))
    if state.service:
        console.print(_counter_table(state.service))
        for line in _service_lines(state.service):
            console.print(line, markup=False, highlight=False)
    elif not state.silent:
        console.print("[bold]service[/bold] not running in this network namespace")
    for line in state.trouble:
        console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for column in columns:
        table.add_column(column, justify="left" if column in ("device", "reason") else "right")
    return table


def tunnel_table(found: list[Tunnel]) -> Table:
    """Draw a table of vxlan devices."""
    table = _table("tunnels", "device", "VNI", "port", "underlay", "MTU", "outer checksum")
    for tunnel in found:
        on = tunnel.checksum6 if tunnel.family == "6" else tunnel.checksum
        underlay = {"4": "IPv4", "6": "IPv6", "both": "any"}[tunnel.family]
        vni = "any" if tunnel.metadata else str(tunnel.vni)
        table.add_row(
            tunnel.name, vni, str(tunnel.port), underlay, str(tunnel.mtu), "on" if on else "0"
        )
    return table


def _queue_table(queues: list[KernelQueue]) -> Table:
    table = _table("queues", "number", "owner", "waiting", "queue_dropped", "user_dropped")
    for queue in queues:
        table.add_row(
            *map(
                str,
                (
                    queue.number,
                    queue.port,
                    queue.waiting,
                    queue.queue_dropped,
                    queue.user_dropped,
                ),
            )
        )
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
    """Say what process it is, and what the operator should know beside the counters."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(service["started"]))
    lines = [f"service: process {service['pid']}, version {service['version']}, since {since}"]
    if service["complaint"]:
        lines.append(f"trouble: {service['complaint']}")
    if not service["reload"]["ok"]:
        lines.append("trouble: the last reload failed, see the log; older settings are in force")
    for name, meaning in (
        ("rule_repairs", "times that others had changed our rules, which were mended"),
        ("rule_failures", "times that our rules could not be loaded"),
    ):
        if service[name]:
            lines.append(f"{service[name]} {meaning}")
    return lines
