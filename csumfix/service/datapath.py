"""What the service has in the kernel: queues, rules, and the lane of each tunnel port.

Methods that change something run one at a time, because the service holds a lock meanwhile. If the
kernel refuses rules, such a method raises CsumfixError, and the old ones stay. What follows from
the devices may be new already, and nobody knows what is loaded until rules are loaded or compared
again. So the service does again what failed. After a reload that failed, it reconciles.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.tap import PortTraffic, Traffic
from csumfix.host.rules import (
    IPTABLES,
    NFT,
    Backend,
    LanesRefusedError,
    RuleKey,
    RuleSet,
    is_about_kernel,
)
from csumfix.host.tunnels import Tunnel, protocols
from csumfix.options import LaneSetting, Options
from csumfix.protocols import Protocol
from csumfix.service.kernel import EgressTap, Kernel
from csumfix.service.lanes import Evidence, Lane, PortLane, ProbeFinding, Terms, Trial, decide
from csumfix.service.pool import Pool
from csumfix.service.probing import Probing
from csumfix.service.ruleset import rule_set, tunnel_ports
from csumfix.service.runner import Clock
from csumfix.service.snapshot import PortSnapshot, Snapshot
from csumfix.service.wishes import Wish, conflicts, missing, unfilled, wishes
from csumfix.text import LISTED, listing

log = logging.getLogger("csumfix")

RECORDING = 0.5
"""Seconds that flows are recorded before they may leave the queue lane one by one."""

COUNTED_EVERY = 5.0
"""Seconds between two readings of the rules' counters for commands that ask for the status."""

COUNTING = 1.0
"""Seconds for which such a command waits for a reading. Then it gets the counters as they were."""

CHECKED_EVERY = 4.0
"""Seconds between two checks of the rules before evidence moves a port, at least. A program that
changes the rules all the time must not keep the service busy."""

SHOWN_DIFFERENCES = 4
"""How many differences of the rules a log line names."""

IN_VAIN = 3
"""How often rules are loaded again though the same differs afterwards. Once is not enough: another
program may have flushed them twice."""

REASONS = 3
"""How many reasons a line names when several ports change their lane at once."""

Lanes = Mapping[int, PortLane]


class Datapath:
    """The queues and rules for the tunnels of the current network namespace.

    lanes: of each tunnel port, as the rules have them.
    rules: that were loaded last; None if there is no tunnel.
    backend: what loaded them; None if nothing has yet.
    restored: how often rules that another program had changed were loaded again.
    lane_changes: how often a port changed its lane.
    underlays: numbers of the devices that carry the tunnels.
    """

    def __init__(
        self,
        options: Options,
        kernel: Kernel,
        tap: EgressTap,
        clock: Clock,
        on_queue_failure: Callable[[], None],
        probing: Probing,
    ) -> None:
        self.pool = Pool(kernel.queues, clock, on_queue_failure)
        self.lanes: dict[int, PortLane] = {}
        self.rules: RuleSet | None = None
        self.backend: Backend | None = None
        self.restored = self.lane_changes = 0
        self.underlays: frozenset[int] = frozenset()
        self._kernel = kernel
        self._tap = tap
        self._probing = probing
        self._clock = clock
        self._options = options
        self._numbers = options.queue_numbers
        self._tunnels: list[Tunnel] = []
        self._sockets: frozenset[int] = frozenset()
        self._wishes: dict[int, Wish] = {}
        self._notes: tuple[str, ...] = ()
        self._protocols: dict[int, Protocol] = {}
        self._unclear: set[int] = set()
        self._in_sync = False
        self._kernel_fault: str | None = None
        self._kernel_since: dict[int, float] = {}
        self._changed_at: dict[int, float] = {}
        self._carried_by: frozenset[int] = frozenset()
        # Since when loaded rules have recorded the flows; None if they do not yet.
        self._leaving: dict[int, float | None] = {}
        self._repaired: dict[int, tuple[int, float | None]] = {}
        self._known_since: dict[int, float] = {}
        self._met: Counter[str] = Counter()
        self._read: Counter[RuleKey] = Counter()
        self._counted_at = float("-inf")
        self._checked_at = float("-inf")
        self._counting = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self._irreparable: tuple[str, ...] = ()
        self._in_vain = 0

    async def open(
        self,
        numbers: range,
        lanes: Lanes | None = None,
        leaving: Collection[int] = (),
        ahead: Collection[int] = (),
    ) -> None:
        """Bind these queues and load the rules.

        lanes, leaving, ahead: the lanes, the ports that leave the queue lane, and the queues of a
            predecessor.
        """
        self._numbers = numbers
        self.lanes = dict(lanes or {})
        self._wishes = wishes(self._options, (), self.lanes)
        # The predecessor's evidence stayed with it, so the hold time begins again.
        self._known_since = dict.fromkeys(self.lanes, self._clock())
        self._bind(numbers, self._options)
        for port in leaving:
            await self._leave(port)
        async with self.pool.started_behind(ahead):
            await self.reconcile()

    @property
    def leaving(self) -> list[int]:
        """Ports of which flows are still in the queue lane though the port has left it."""
        return list(self._leaving)

    def _bind(self, numbers: range, options: Options) -> None:
        """Bind the queues; without any if the kernel has none and the kernel lane will do."""
        try:
            self.pool.bind(numbers)
        except CsumfixError as error:
            if error.code is not Exit.KERNEL or options.lane is LaneSetting.QUEUE:
                raise
            log.warning("there is no queue lane: %s", error, extra={"event": "no_queue_lane"})

    async def close(self, *, remove_rules: bool) -> None:
        """Drain the queues and unbind them.

        remove_rules: first, unless a successor has exchanged them.
        """
        try:
            if remove_rules:
                await self._kernel.rules.remove()
        finally:
            await self.pool.release_all_but(())
            if remove_rules:
                await self._kernel.flows.destroy()

    def invalidate(self) -> None:
        """Have the next reconcile() load the rules, whatever was loaded before."""
        self._in_sync = False

    # What can change the rules

    async def reconcile(self) -> bool:
        """Make everything fit the devices that are there now; tell whether that changed rules."""
        found = await self._kernel.links.tunnels()
        sockets = await self._kernel.links.socket_ports()
        before = self._tunnels, self._sockets, self._wishes
        self._tunnels, self._sockets = found, sockets
        ports = tunnel_ports(self._with_hidden, found)
        self._wishes = wishes(self._options, found, ports | self.lanes.keys())
        try:
            await self.find_underlays()
            changes = await self._load(ports)
        except BaseException:
            self._tunnels, self._sockets, self._wishes = before
            raise
        self._tell_notes()
        return changes

    def _tell_notes(self) -> None:
        """Write those notes about the settings to the log that are not there yet."""
        told = self._notes
        absent = missing(self._options, self._tunnels)
        torn = [*conflicts(self._options, self._tunnels), *unfilled(self._options, self._tunnels)]
        self._notes = (*absent, *torn)
        for line in absent:
            if line not in told:
                log.info("%s", line, extra={"event": "device_missing"})
        for line in torn:
            if line not in told:
                log.warning("%s", line, extra={"event": "settings_conflict"})

    async def sockets_differ(self) -> bool:
        """Tell whether reconcile() would find other sockets of tunnels than the last time."""
        return await self._kernel.links.socket_ports() != self._sockets

    @property
    def _with_hidden(self) -> Options:
        """The options with the ports of tunnels whose device is in another namespace named."""
        hidden = self._sockets - {tunnel.port for tunnel in self._tunnels}
        return replace(self._options, ports=(*self._options.ports, *sorted(hidden)))

    def _note_protocols(self) -> None:
        """Note what the ports carry; of those that are gone, packets may still be on their way."""
        now = protocols(self._tunnels, self._with_hidden.protocols)
        unclear = {tunnel.port for tunnel in self._tunnels} - now.keys()
        for port in unclear - self._unclear:
            log.warning(
                "port %d: a vxlan and a geneve device have it, so the queue lane leaves its "
                "packets alone: give one of them another port",
                port,
                extra={"event": "protocol_unclear", "port": port},
            )
        self._unclear = unclear
        self._protocols = {
            port: protocol
            for port, protocol in {**self._protocols, **now}.items()
            if port not in unclear
        }

    async def find_underlays(self) -> None:
        """Have the tap watch the devices that carry the tunnels now."""
        self._note_protocols()
        by_number = self._with_hidden.protocols
        self.underlays = await self._kernel.links.underlays(self._tunnels, named=bool(by_number))
        self._note_carriers()
        ports = protocols(self._tunnels, by_number)
        self._tap.watch(self.underlays, ports, self._options.tap_pause)

    def _note_carriers(self) -> None:
        """Have what probes found be tried anew if the tunnels leave by other devices now.

        Meanwhile ports that are in the queue lane stay there for the hold time, for the new
        devices may lie as well.
        """
        before = self._carried_by
        self._carried_by = self.underlays or before
        if not before or self._carried_by == before:
            return
        self._probing.forget()
        for port, lane in self.lanes.items():
            if lane.trial is not Trial.NONE:
                self.lanes[port] = replace(lane, trial=Trial.NONE)
                self._known_since[port] = self._clock()

    @property
    def tunnels(self) -> Sequence[Tunnel]:
        """The tunnels' devices."""
        return self._tunnels

    @property
    def trials(self) -> frozenset[int]:
        """Ports of which the next probes are to tell whether the queue lane helps."""
        return frozenset(port for port, lane in self.lanes.items() if lane.trial is Trial.RUNNING)

    @property
    def tunnel_numbers(self) -> frozenset[int]:
        """Numbers of the tunnels' devices."""
        return frozenset(tunnel.index for tunnel in self._tunnels)

    @property
    def unbound_numbers(self) -> frozenset[int]:
        """Numbers of the tunnels' devices that are bound to no underlay."""
        return frozenset(tunnel.index for tunnel in self._tunnels if not tunnel.underlay)

    @property
    def is_routed(self) -> bool:
        """Whether routes decide by which device some tunnel's packets leave."""
        return bool(self._with_hidden.protocols or self.unbound_numbers)

    async def redecide(self) -> bool:
        """Make the lanes fit the evidence that is there now; tell whether that changed rules."""
        return await self._load(frozenset(self.lanes))

    def wants_another_lane(self) -> bool:
        """Tell whether redecide() would change a lane."""
        decided = self._decide(self.lanes)
        return any(decided[port] is not one for port, one in self.lanes.items())

    def is_waiting_for_quiet(self) -> bool:
        """Tell whether lanes may change without further evidence, by the passing of time."""
        held = any(
            one.lane is Lane.QUEUE and one.by_evidence and one.trial is not Trial.HELPED
            for one in self.lanes.values()
        )
        return held or bool(self._leaving)

    async def restore(self) -> bool:
        """Load the rules again if another program has changed them; tell whether it did so."""
        if self.rules is None:
            return False
        await self._count()
        differs = await self._kernel.rules.differences(self.rules)
        if not differs:
            self._in_sync = True  # though loading others may have failed meanwhile
            return False
        if differs == self._irreparable and self._in_vain >= IN_VAIN:
            return False
        await self._apply(self.rules)
        # What was seen meanwhile is about other rules: the kernel lane may have its gate now.
        now = self._clock()
        self._changed_at = dict.fromkeys(self.lanes, now)
        self._kernel_since = dict.fromkeys(self._kernel_since, now)
        left = await self._kernel.rules.differences(self.rules)
        self._in_vain = self._in_vain + 1 if left == self._irreparable else 1
        self._irreparable = left
        if not all(map(is_about_kernel, differs)):
            self.restored += 1
            log.warning(
                "another program changed the rules; restored: %s",
                "; ".join(differs[:SHOWN_DIFFERENCES]),
                extra={"event": "rules_restored"},
            )
        return True

    async def reconfigure(self, options: Options) -> None:
        """Follow these options from now on; no packet is lost meanwhile."""
        before = self._options, self._numbers, self._kernel_fault
        numbers = self._numbers
        if options.queue_numbers != self._options.queue_numbers:
            numbers = options.queue_numbers  # a take-over may have chosen others, which stay
        ahead = self.pool.numbers
        self._bind(numbers, options)
        self._options, self._numbers, self._kernel_fault = options, numbers, None
        try:
            async with self.pool.started_behind(ahead):
                await self.reconcile()
        except BaseException:
            self._options, self._numbers, self._kernel_fault = before
            raise
        finally:
            self._set_ports(self.rules)
            await self.pool.release_all_but(self._numbers)

    async def _load(self, ports: frozenset[int]) -> bool:
        """Decide the lanes of these ports and load the rules that they need."""
        try:
            return await self._load_once(ports)
        except LanesRefusedError as error:
            if Lane.KERNEL not in error.lanes or self._kernel_fault:
                raise
            # The queue lane does the kernel lane's work, too.
            self._kernel_fault = "the kernel lane's rules were refused"
            log.warning(
                "the kernel lane cannot be used here, so all tunnels take the queue lane: %s",
                error,
                extra={"event": "no_kernel_lane"},
            )
            return await self._load_once(ports)

    async def _load_once(self, ports: frozenset[int]) -> bool:
        lanes = self._decide(sorted(ports))
        if self._leaves_kernel_lane(lanes) and await self._restore_for_evidence():
            lanes = self._decide(sorted(ports))
        await self._follow_leaving(lanes)
        wanted = self._rule_set(lanes)
        changes = wanted != self.rules
        if changes or not self._in_sync:
            await self._apply(wanted)
        self._tell_changes(lanes)
        self.lanes = lanes
        return changes

    def _leaves_kernel_lane(self, decided: Lanes) -> bool:
        """Tell whether evidence against the kernel lane moves a port."""
        return any(
            one.lane is Lane.QUEUE
            and one.by_evidence
            and port in self.lanes
            and self.lanes[port].lane is Lane.KERNEL
            for port, one in decided.items()
        )

    async def _restore_for_evidence(self) -> bool:
        """Restore the rules; tell whether what was seen until now was about other rules."""
        now = self._clock()
        if now - self._checked_at < CHECKED_EVERY:
            return False
        self._checked_at = now
        return await self.restore()

    def _rule_set(self, lanes: Lanes) -> RuleSet | None:
        return rule_set(
            self._with_hidden,
            self._numbers,
            self._tunnels,
            lanes,
            tuple(self._leaving),
            recording=self._must_record(),
            without_kernel=[port for port in lanes if not self._uses_kernel(port)],
        )

    def _must_record(self) -> bool:
        """Tell whether flows have not been recorded for long enough to leave one by one."""
        now = self._clock()
        return any(at is None or now - at < RECORDING for at in self._leaving.values())

    def _note_recording(self, wanted: RuleSet | None) -> None:
        """Note that recording has begun: rules can take seconds to load, or be loaded again."""
        if wanted and wanted.recording:
            began = self._leaving.keys() & set(wanted.leaving_ports)
            self._leaving |= dict.fromkeys(began, self._clock())

    def _uses_kernel(self, port: int) -> bool:
        return not self._kernel_fault and self._wishes[port].lane is not LaneSetting.QUEUE

    async def _apply(self, wanted: RuleSet | None) -> None:
        if self._drops_counters(wanted):
            await self._count()
        self._in_sync = False
        if wanted is None:
            await self._kernel.rules.remove()
        else:
            # While the rules are exchanged, packets of both may be on their way.
            self._set_ports(self.rules, wanted, by_nft=wanted.backend != IPTABLES)
            self._note_backend(await self._kernel.rules.apply(wanted))
        if self.rules and self.rules.leaving_ports and not (wanted and wanted.leaving_ports):
            await self._kernel.flows.destroy()
        self.rules, self._in_sync = wanted, True
        self._set_ports(wanted)
        self._note_recording(wanted)
        self._note_kernel_since(wanted)

    def _note_backend(self, backend: Backend) -> None:
        """Say so if nft has loaded the rules; raise if that is in vain."""
        before, self.backend = self.backend, backend
        if backend.name != NFT:
            return
        if not self.pool.is_bound:
            raise CsumfixError(
                "with nft, packets are repaired in a queue, and there is none: the kernel may "
                "lack a module: try modprobe nfnetlink_queue, or use iptables",
                Exit.KERNEL,
            )
        if before != backend:
            log.info(
                "nft loads the rules%s: the kernel lane queues the flows that NAT touches",
                f", because {backend.why}" if backend.why else "",
                extra={"event": "backend", "backend": backend.name},
            )

    def _drops_counters(self, wanted: RuleSet | None) -> bool:
        """Tell whether counters are lost with their rules; rules that stay keep theirs.

        Reading counters takes as long as loading rules, and evidence cannot wait for that.
        """
        if self.rules is None:
            return False
        return not set(self.rules.kernel_ports) <= set(wanted.kernel_ports if wanted else ())

    def _note_kernel_since(self, wanted: RuleSet | None) -> None:
        now = self._clock()
        ports = wanted.kernel_ports if wanted else ()
        self._kernel_since = {port: self._kernel_since.get(port, now) for port in ports}

    def _set_ports(self, *sets: RuleSet | None, by_nft: bool = False) -> None:
        """Have the queues repair packets of these rules.

        by_nft: whether nft may load them, which queues packets of the kernel lane, too.
        """
        by_nft = by_nft or (self.backend is not None and self.backend.name == NFT)
        ports = {port for one in sets if one for port in one.queued_ports}
        if by_nft:
            ports |= {port for one in sets if one for port in one.kernel_ports}
        carried = {port: self._protocols[port] for port in ports & self._protocols.keys()}
        self.pool.set_policy(Policy.of(carried, fill_zero=self._options.fill_zero))

    # Lanes

    def _decide(self, ports: Iterable[int]) -> dict[int, PortLane]:
        """Return the lane of each of these ports by the evidence that is there now."""
        now = self._clock()
        seen, repaired = self._tap.traffic().ports, self.pool.repaired()
        decided = {}
        for port in ports:
            traffic = seen.get(port, PortTraffic())
            evidence = Evidence(
                traffic.wrong_at,
                traffic.wrong,
                self._repaired_at(port, repaired[port], now),
                self._kernel_since.get(port),
                self._finding(port),
                self._known_since.get(port, 0.0),
            )
            decided[port] = decide(self._terms(port), self.lanes.get(port), evidence, now)
        return decided

    def _terms(self, port: int) -> Terms:
        wish, hold = self._wishes[port], self._options.hold
        return Terms(wish.lane, hold, self._kernel_fault, self.pool.is_bound, wish.why)

    def _finding(self, port: int) -> ProbeFinding | None:
        """Return what probes have found since the rules of the port's lane were loaded."""
        finding = self._probing.findings.get(port)
        loaded = self._changed_at.get(port)
        return finding if finding and (loaded is None or finding.at > loaded) else None

    def _repaired_at(self, port: int, repaired: int, now: float) -> float | None:
        """Return when the queue lane was last found to have repaired a packet of this port.

        repaired: how many it has repaired until now.
        """
        before, at = self._repaired.get(port, (0, None))
        if repaired > before:
            at = now
        self._repaired[port] = repaired, at
        return at

    async def _follow_leaving(self, lanes: Lanes) -> None:
        """Note which ports leave the queue lane, and which have left it."""
        self._leaving = {port: at for port, at in self._leaving.items() if port in lanes}
        if self._leaving and await self._have_left():
            self._leaving = {}
        for port, lane in lanes.items():
            before = self.lanes.get(port)
            if lane.lane is Lane.QUEUE:
                self._leaving.pop(port, None)
            elif before and before.lane is Lane.QUEUE and port not in self._leaving:
                await self._leave(port)

    async def _leave(self, port: int) -> None:
        if not self._leaving:
            try:
                await self._kernel.flows.create()
            except CsumfixError as error:
                log.warning(
                    "port %d leaves the queue lane at once, which may reorder packets: %s",
                    port,
                    error,
                    extra={"event": "no_flows"},
                )
                return
        self._leaving[port] = None

    async def _have_left(self) -> bool:
        """Tell whether no flow is left in the queue lane.

        While the rules record, a flow may enter the set just after it has been read.
        """
        if self.rules is None or self.rules.recording:
            return False
        return not await self._kernel.flows.are_left()

    def _tell_changes(self, lanes: Lanes) -> None:
        """Write one line of bounded length for all ports that change to the same lane."""
        changed: dict[Lane, list[int]] = {}
        for port, lane in lanes.items():
            before = self.lanes.get(port)
            if before and before.lane is not lane.lane:
                changed.setdefault(lane.lane, []).append(port)
                self._changed_at[port] = self._clock()
            elif before and before.trial is not lane.trial:
                stays = lane.trial is Trial.HELPED
                log.info(
                    "port %d: %s: %s",
                    port,
                    "stays in the queue lane" if stays else "is in the queue lane for a time only",
                    lane.why,
                    extra={"event": "trial_ended", "port": port},
                )
        for to, ports in changed.items():
            self.lane_changes += len(ports)
            log.warning(
                "%s: now in the %s lane: %s",
                f"port {ports[0]}" if len(ports) == 1 else f"ports {listing(ports)}",
                to,
                listing(dict.fromkeys(lanes[port].why for port in ports), "; ", REASONS),
                extra={"event": "lane_changed", "ports": ports[:LISTED], "lane": to},
            )

    # Counters and state

    async def _count(self) -> None:
        """Read the packet counters of the rules, if they can be read."""
        async with self._counting:
            with suppress(CsumfixError):
                self._add(await self._kernel.rules.packets())
            self._counted_at = self._clock()

    def _add(self, read: Counter[RuleKey]) -> None:
        """Add what the rules have met since; a counter that fell, or was gone, began with 0."""
        for rule, packets in read.items():
            before, (_, role) = self._read[rule], rule
            self._met[role] += packets - before if packets >= before else packets
        self._read = read

    async def refresh(self) -> None:
        """Read the rules' counters for fill(), unless they were read just now.

        On a host where that takes very long, it goes on behind the caller's back.
        """
        if self.rules is None or self._clock() - self._counted_at <= COUNTED_EVERY:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._count())
        await asyncio.wait([self._refreshing], timeout=COUNTING)

    def met(self, role: str) -> int:
        """Return how many packets the rules of this role had met when they were last read."""
        return self._met[role]

    def describe(self) -> str:
        """Say in one line, of bounded length, what is done to which tunnels."""
        if not self.lanes:
            return "no vxlan or geneve device yet; waiting for one"
        names: dict[int, list[str]] = {}
        for tunnel in self._tunnels:
            names.setdefault(tunnel.port, []).append(tunnel.name)
        return listing(
            self._describe_port(port, lane, names.get(port, []))
            for port, lane in self.lanes.items()
        )

    def _describe_port(self, port: int, lane: PortLane, names: Sequence[str]) -> str:
        more = f" and {len(names) - 1} more devices" if len(names) > 1 else ""
        who = f"{names[0]}{more}" if names else "no device here"
        return f"port {port} ({who}) in the {lane.lane} lane"

    def fill(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with tunnels, lanes, rules that are surely loaded, and queues."""
        traffic, repaired = self._tap.traffic(), self.pool.repaired()
        return replace(
            snapshot,
            tunnels=tuple(self._tunnels),
            lanes=tuple(self._port(port, traffic, repaired[port]) for port in self.lanes),
            lane_changes=self.lane_changes,
            kernel_fault=self._kernel_fault,
            settings_notes=self._notes,
            nat_packets=self.met("nat"),
            tap_fault=traffic.fault,
            probe_fault=self._probing.fault,
            probe_rounds=self._probing.rounds,
            rules=self.rules if self._in_sync else None,
            backend=self.backend.name if self.backend else "",
            backend_why=self.backend.why if self.backend else "",
            rules_restored=self.restored,
            queues=self.pool.snapshot(),
        )

    def _port(self, port: int, traffic: Traffic, repaired: int) -> PortSnapshot:
        lane, now = self.lanes[port], self._clock()
        seen = traffic.ports.get(port, PortTraffic())
        finding = self._finding(port)
        sent, answered = self._probing.snapshot_of(port)
        return PortSnapshot(
            port=port,
            lane=str(lane.lane),
            why=lane.why,
            seconds=now - lane.since,
            leaving_queue=port in self._leaving,
            kernel_packets=self.met(f"fill-{port}"),
            repaired=repaired,
            departures={str(name): count for name, count in seen.departures.items()},
            wrong_seconds=None if seen.wrong_at is None else now - seen.wrong_at,
            probe_lost=finding.lost if finding else None,
            probe_why=finding.why if finding else "",
            probe_seconds=now - finding.at if finding else None,
            probes_sent=sent,
            probes_answered=answered,
        )
