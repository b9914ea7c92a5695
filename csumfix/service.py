"""The service: tunnels -> queues -> rules, from the first packet to the last.

Theory of operation
-------------------
Losing a packet is worse than not repairing it, and the order of every step follows from that:

- Start: clear leftovers of a killed predecessor, bind the queues, then load the rules. A rule
  without a listener accepts (``--queue-bypass``), but a queue that is bound and not configured
  drops.
- Change: the drains learn new ports before the rules divert them.
- Stop: remove the rules, let the queues run empty, then unbind; unbinding drops what is left.

The event loop does no packet work: each queue has a thread that is in C all the time. It hears
the doorbell of tunnels.LinkEvents, signals, and the control socket, and lives by reconcile():
look at the devices, compute the rules they need, load them if they differ.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from csumfix import control, preflight, rules, tunnels
from csumfix.core import MAX_PORTS, Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.queue import Queue, require_free, wait_until_empty
from csumfix.rules import RuleSet
from csumfix.tunnels import LinkEvents, Tunnel

log = logging.getLogger("csumfix")

SETTLE = 0.2
"""Seconds to wait after a device event: a CNI plugin makes many at once."""

RETRY = 5.0
"""Seconds until rules that could not be loaded are tried again."""


@dataclass(frozen=True)
class Options:
    """What ``csumfix run`` was asked to do.

    ports: UDP ports to divert beside those of the devices.
    """

    divert: str = "packets"
    ports: tuple[int, ...] = ()
    queues: int = 1
    queue_base: int = 0
    fill_zero: bool = False

    @property
    def queue_numbers(self) -> range:
        """Numbers of the queues."""
        return range(self.queue_base, self.queue_base + self.queues)


def plan(options: Options, found: Sequence[Tunnel], underlay_mtu: int) -> RuleSet | None:
    """Compute the rules that these tunnels need; None if there is nothing to divert.

    underlay_mtu: the largest of this host in bytes; see needs_underlay_mtu().
    """
    every = [*found, *_named_tunnels(options, underlay_mtu)]
    if not every:
        return None
    families = {tunnel.family for tunnel in every}
    return RuleSet(
        ports=_ports(options, found),
        queue_base=options.queue_base,
        queues=options.queues,
        family=families.pop() if len(families) == 1 else "both",
        divert=options.divert,
        max_length=max(tunnel.longest_packet(underlay_mtu) for tunnel in every),
        source_ports=(
            min(tunnel.source_ports[0] for tunnel in every),
            max(tunnel.source_ports[1] for tunnel in every),
        ),
    )


def needs_underlay_mtu(options: Options, found: Sequence[Tunnel]) -> bool:
    """Tell whether plan() depends on underlay_mtu, which costs a look at every device."""
    return bool(options.ports) or any(tunnel.metadata for tunnel in found)


def _named_tunnels(options: Options, underlay_mtu: int) -> list[Tunnel]:
    """Stand in for the unknown devices behind --port, as wide as they could be."""
    source_ports = tunnels.local_port_range() if options.ports else (0, 0)
    return [
        Tunnel("--port", port, "both", underlay_mtu, source_ports=source_ports)
        for port in options.ports
    ]


def _ports(options: Options, found: Sequence[Tunnel]) -> tuple[int, ...]:
    """Return the ports to divert, the operator's first if they are too many for one rule."""
    wanted = list(dict.fromkeys([*options.ports, *(tunnel.port for tunnel in found)]))
    if len(wanted) > rules.MAX_PORTS:
        log.error(
            "too many ports: one rule names at most %d: not repaired: %s",
            rules.MAX_PORTS,
            " ".join(map(str, wanted[rules.MAX_PORTS :])),
        )
    return tuple(sorted(wanted[: rules.MAX_PORTS]))


class Service:
    """Repairs the tunnels of the current network namespace until it is told to stop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._queues: list[Queue] = []
        self._tunnels: list[Tunnel] = []
        self._rules: RuleSet | None = None
        self._started = time.time()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; raise CsumfixError if it can not start or go on."""
        preflight.require_net_admin()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        server = await control.serve(self.snapshot)
        events = LinkEvents()
        loop.add_reader(events, self._on_link_event, events)
        try:
            require_free(self._options.queue_numbers)
            await self._serve()
        finally:
            loop.remove_reader(events)
            events.close()
            server.close()

    async def _serve(self) -> None:
        rules.remove()
        try:
            self._bind()
            await self._reconcile()
            log.info("ready: %s", self._describe())
            await self._follow_until_stopped()
            log.info("stopping: removing rules, then emptying the queues")
        finally:
            await self._shut_down()
        for queue in self._queues:
            if queue.error:
                raise CsumfixError(
                    f"queue {queue.number} failed: {queue.error.strerror}: "
                    "it was unbound or taken over behind our back: start csumfix again",
                    Exit.BROKEN,
                )

    def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        policy = Policy(fill_zero=self._options.fill_zero)
        for number in self._options.queue_numbers:
            self._queues.append(Queue(number, policy))

        def on_failure() -> None:
            loop.call_soon_threadsafe(self._stop.set)

        for queue in self._queues:
            queue.start(on_failure)

    async def _shut_down(self) -> None:
        try:
            rules.remove()
            await asyncio.to_thread(wait_until_empty, [q.number for q in self._queues])
        finally:
            for queue in self._queues:
                queue.stop()

    def _on_link_event(self, events: LinkEvents) -> None:
        events.clear()
        self._changed.set()

    async def _follow_until_stopped(self) -> None:
        following = asyncio.create_task(self._follow())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():  # by an error that nobody foresaw: it must not pass in silence
            await following
        following.cancel()

    async def _follow(self) -> None:
        """Reconcile after each change, and again later if that fails."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(SETTLE)
            self._changed.clear()
            before = self._rules
            try:
                await self._reconcile()
            except CsumfixError as error:
                log.error("rules not changed, will try again: %s", error)
                asyncio.get_running_loop().call_later(RETRY, self._changed.set)
            if self._rules != before:
                log.info("changed: %s", self._describe())

    async def _reconcile(self) -> None:
        """Make the rules fit the devices that are there now."""
        found = await tunnels.discover()
        vague = needs_underlay_mtu(self._options, found)
        wanted = plan(self._options, found, await tunnels.underlay_mtu() if vague else 0)
        if wanted != self._rules:
            self._load(wanted)
        self._tunnels, self._rules = found, wanted

    def _load(self, wanted: RuleSet | None) -> None:
        if not wanted:
            rules.remove()
            return
        previous = self._rules.ports if self._rules else ()
        # While the rules are exchanged, packets of both may be on their way.
        self._set_ports(tuple(sorted({*previous, *wanted.ports})))
        rules.apply(wanted)
        self._set_ports(wanted.ports)

    def _set_ports(self, ports: tuple[int, ...]) -> None:
        policy = Policy(ports if len(ports) <= MAX_PORTS else (), self._options.fill_zero)
        for queue in self._queues:
            queue.set_policy(policy)

    def _describe(self) -> str:
        if not self._rules:
            return "no vxlan device yet; waiting for one"
        numbers = self._options.queue_numbers
        named = ", ".join(f"{t.name} port {t.port} MTU {t.mtu}" for t in self._tunnels)
        return (
            f"ports {' '.join(map(str, self._rules.ports))} ({named or 'named by --port'}), "
            f"divert {self._rules.divert} up to {self._rules.max_length} bytes, "
            f"queues {numbers.start}-{numbers.stop - 1}"
        )

    def snapshot(self) -> control.Snapshot:
        """Return the state and the counters, as ``csumfix status`` shows them."""
        return {
            "started": self._started,
            "options": asdict(self._options),
            "tunnels": [asdict(tunnel) for tunnel in self._tunnels],
            "rules": asdict(self._rules) if self._rules else None,
            "queues": {
                str(queue.number): {**asdict(stats), "reasons": stats.by_reason()}
                for queue in self._queues
                for stats in [queue.stats()]
            },
        }


def run(options: Options) -> None:
    """Run the service in the foreground."""
    asyncio.run(Service(options).run())
