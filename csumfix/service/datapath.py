"""What the service has in the kernel: queues, and the rules that divert tunnel packets to them.

Its methods run one at a time; the service sees to that. Each either does all it says, or raises
CsumfixError and leaves what was there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from csumfix.core import Policy
from csumfix.host import rules, tunnels
from csumfix.host.rules import RuleSet
from csumfix.host.tunnels import Tunnel
from csumfix.options import Options
from csumfix.service.plan import needs_underlay_mtu, plan
from csumfix.service.pool import Pool


class Diversion:
    """The queues and rules for the tunnels of the current network namespace.

    repairs: how often rules that others had changed were loaded again.
    """

    def __init__(self, options: Options, on_queue_failure: Callable[[], None]) -> None:
        self.pool = Pool(on_queue_failure)
        self.rules: RuleSet | None = None
        self.repairs = 0
        self._options = options
        self._numbers = options.queue_numbers
        self._tunnels: list[Tunnel] = []
        self._certain = False

    async def open(self, numbers: range) -> None:
        """Bind these queues and load the rules that lead to them."""
        self._numbers = numbers
        self.pool.bind(numbers)
        await self.reconcile()

    async def close(self, *, remove_rules: bool) -> None:
        """Let the queues run empty and unbind them; rules may have been exchanged by another."""
        try:
            if remove_rules:
                await asyncio.to_thread(rules.remove)
        finally:
            await self.pool.release_all_but(())

    def doubt(self) -> None:
        """Have the next reconcile() load the rules whatever was loaded before."""
        self._certain = False

    async def reconcile(self) -> bool:
        """Make the rules fit the devices that are there now; tell whether that changed them."""
        found = await tunnels.discover()
        vague = needs_underlay_mtu(self._options, found)
        underlay_mtu = await tunnels.underlay_mtu() if vague else 0
        wanted = plan(self._options, self._numbers, found, underlay_mtu)
        changes = wanted != self.rules
        if changes or not self._certain:
            self.doubt()
            await self._load(wanted)
            self._certain = True
        self._tunnels, self.rules = found, wanted
        return changes

    async def mend(self) -> str | None:
        """Load the rules again if others have changed them; say what they had changed."""
        if self.rules is None:
            return None
        differs = await asyncio.to_thread(rules.difference, self.rules)
        if differs:
            self.doubt()
            await asyncio.to_thread(rules.apply, self.rules)
            self._certain = True
            self.repairs += 1
        return differs

    async def reconfigure(self, options: Options) -> None:
        """Do as these options say from now on; no packet is lost on the way."""
        before = self._options, self._numbers
        numbers = self._numbers
        if options.queue_numbers != self._options.queue_numbers:
            numbers = options.queue_numbers
        self.pool.bind(numbers)
        self._options, self._numbers = options, numbers
        try:
            await self.reconcile()
        except BaseException:
            self._options, self._numbers = before
            raise
        finally:
            self._set_ports(self.rules.ports if self.rules else ())
            await self.pool.release_all_but(self._numbers)

    async def _load(self, wanted: RuleSet | None) -> None:
        if not wanted:
            await asyncio.to_thread(rules.remove)
            return
        previous = self.rules.ports if self.rules else ()
        # While the rules are exchanged, packets of both may be on their way.
        self._set_ports(tuple(sorted({*previous, *wanted.ports})))
        await asyncio.to_thread(rules.apply, wanted)
        self._set_ports(wanted.ports)

    def _set_ports(self, ports: tuple[int, ...]) -> None:
        self.pool.set_policy(Policy(ports, self._options.fill_zero))

    def describe(self) -> str:
        """Say in one line what is diverted."""
        if not self.rules:
            return "no vxlan device yet; waiting for one"
        named = ", ".join(f"{t.name} port {t.port} MTU {t.mtu}" for t in self._tunnels)
        return (
            f"ports {' '.join(map(str, self.rules.ports))} ({named or 'named by --port'}), "
            f"divert {self.rules.divert} up to {self.rules.max_length} bytes, "
            f"queues {self._numbers.start}-{self._numbers.stop - 1}"
        )

    def snapshot(self) -> dict[str, Any]:
        """Return tunnels, rules that are surely loaded, and queues as plain data."""
        return {
            "tunnels": [asdict(tunnel) for tunnel in self._tunnels],
            "rules": asdict(self.rules) if self.rules and self._certain else None,
            "rule_repairs": self.repairs,
            "queues": self.pool.snapshot(),
        }
