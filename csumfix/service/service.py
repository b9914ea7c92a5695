"""The service: tunnels -> lanes -> queues and rules, from the first packet to the last.

Theory of operation
-------------------
Losing a packet is worse than not repairing it, and the order of every step follows from that:

- Start: clear leftovers of a killed predecessor, bind the queues, then load the rules. A rule
  without a listener accepts (``--queue-bypass``), but a queue that is bound and not configured
  drops. Taking over from a living predecessor: see handover.py.
- Change: the drains learn new ports before rules queue them; queues are bound before rules lead to
  them, and drained after none does.
- Stop: remove the rules, let the queues run empty, then unbind; unbinding drops what is left.

The event loop does no packet work: each queue has a thread that is in C all the time, and the
egress tap has one of its own. Signal handlers, netlink events and timers only note what is due in
the agenda. One coroutine runs it step by step while holding a lock; a hand-over holds it, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version

from csumfix import logs
from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.tap import Tap
from csumfix.host import privileges, rules
from csumfix.host.changes import LinkChanges, RouteChanges, RuleChanges
from csumfix.host.events import LINKS, NFTABLES, ROUTES
from csumfix.host.queues import require_free
from csumfix.options import Options
from csumfix.service import control, handover, notify
from csumfix.service.agenda import RETRY, Agenda, Work
from csumfix.service.control import Handler, Peer
from csumfix.service.datapath import Datapath
from csumfix.service.exporter import Exporter
from csumfix.service.lanes import lanes_to_json
from csumfix.service.netlink import listening
from csumfix.service.pool import free_numbers
from csumfix.service.snapshot import ReloadSnapshot, Snapshot, to_json

log = logging.getLogger("csumfix")

CHECK_PAUSE, CHECK_SILENT, CHECK_ANNOUNCED = 4.0, 7.0, 60.0
"""Seconds between two looks at our rules: at least; at most, if changes make no netlink events and
if they do."""

SHOWN_DIFFERENCES = 4
"""How many differences of the rules a log line names."""

LANES_EVERY = 1.0
"""Seconds between two looks at the lanes while one of them waits for quiet."""

HEALTH = 5.0
"""Seconds between two looks at the queues, unless the watchdog wants more."""


class Service:
    """Repairs the tunnels of the current network namespace until it is told to stop.

    options: the settings to start with.
    load: reads the settings anew; raises CsumfixError if they are wrong.
    command: starts another process like this one.
    """

    def __init__(
        self, options: Options, load: Callable[[], Options], command: Sequence[str]
    ) -> None:
        self._options = options
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._tap = Tap(self._options.tap_pause, self._on_wrong_packet)
        self._datapath = Datapath(self._options, self._tap, self._on_queue_failure)
        self._exporter = Exporter(self.snapshot, self.trouble, self._datapath.pool.probe)
        self._server: control.Server | None = None
        self._started_successor = handover.SuccessorProcess(command)
        self._superseded_by: int | None = None
        self._failure: CsumfixError | None = None
        self._owns_rules = False
        self._started = time.time()
        self._version = version("csumfix")  # what is installed may change while we run
        self._reload = ReloadSnapshot(time=self._started)
        self._stop = asyncio.Event()
        self._agenda = Agenda(
            {
                Work.TUNNELS: self._reconcile,
                Work.UNDERLAYS: self._find_underlays,
                Work.LANES: self._redecide,
                Work.RULES: self._restore,
                Work.RELOAD: self._reread,
                Work.METRICS: self._serve_metrics,
                Work.CONTROL: self._open_control_socket,
            }
        )
        self._links, self._routes = LinkChanges(), RouteChanges()
        self._check_timer = self._health_timer = self._loop.call_later(0, int)
        self._check_every, self._checked = CHECK_SILENT, 0.0
        self._trouble: str | None = None
        self._conntrack = False

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; raise CsumfixError if it cannot start or go on."""
        privileges.require_net_admin()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop)
        self._loop.add_signal_handler(signal.SIGHUP, self._agenda.note, Work.RELOAD)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # Ctrl-Z would stop those who send, too
        self._tap.start()
        try:
            async with self._agenda.lock:  # nobody can take over what is half begun
                await self._begin()
            with (
                listening(LINKS, self._links, lambda: self._agenda.note(Work.TUNNELS)),
                listening(ROUTES, self._routes, lambda: self._agenda.note(Work.UNDERLAYS)),
                listening(NFTABLES, RuleChanges(), self._on_rules),
            ):
                for what in (Work.TUNNELS, Work.RULES):  # what has changed before we listened
                    self._agenda.note(what)
                await self._agenda.work()
        finally:
            await self._end()
        if self._failure:
            raise self._failure
        # In another pod the successor's number is 0: it is not in our pid namespace.
        if self._superseded_by is not None and self._options.superseded == "wait":
            await self._stop.wait()

    # Begin and end

    async def _begin(self) -> None:
        take_over = self._options.take_over
        predecessor = await handover.find_predecessor() if take_over else None
        if predecessor:
            await self._take_over_from(predecessor)
        else:
            await self._open_control_socket()
            require_free(self._options.queue_numbers)
            await self._exporter.move(self._options.metrics)
            await asyncio.to_thread(rules.remove)
            self._owns_rules = True
            await self._datapath.open(self._options.queue_numbers)
        if self._agenda.leaving.is_set():
            return
        announced = await asyncio.to_thread(rules.changes_are_announced)
        self._check_every = CHECK_ANNOUNCED if announced else CHECK_SILENT
        self._schedule_check(self._check_every)
        self._watch_lanes()
        self._look_after_queues()
        log.info("ready: %s", self._datapath.describe(), extra={"event": "ready"})
        notify.notify(notify.READY, f"STATUS={self._datapath.describe()}")

    async def _take_over_from(self, predecessor: handover.Predecessor) -> None:
        try:
            numbers = free_numbers(self._options.queue_numbers)
            await self._datapath.open(numbers, predecessor.lanes, predecessor.leaving)
        except BaseException:
            await predecessor.go_on()
            raise
        if self._agenda.leaving.is_set():  # told to stop meanwhile: then nobody would be left
            await predecessor.go_on()
            return
        self._owns_rules = True
        hung_up = await predecessor.leave()
        try:
            await self._open_control_socket()
        except CsumfixError:
            if hung_up:  # it has waited for us too long, and loaded its rules again
                self._owns_rules = False
                raise
            log.warning(
                "process %d does not answer; it leaves when it can",
                predecessor.pid,
                extra={"event": "predecessor_silent"},
            )
            self._agenda.later(Work.CONTROL, RETRY)
        self._agenda.note(Work.METRICS)  # the address was the predecessor's until now
        log.info("taken over from process %d", predecessor.pid, extra={"event": "taken_over"})

    async def _open_control_socket(self) -> None:
        self._server = await control.serve(
            {
                "status": Handler(self._tell_status, harmless=True),
                "take-over": Handler(self._hand_over),
                "restart": Handler(self._restart),
            }
        )

    async def _end(self) -> None:
        if self._owns_rules:
            notify.notify(notify.STOPPING)
            log.info(
                "stopping: removing rules, then emptying the queues", extra={"event": "stopping"}
            )
        async with self._agenda.lock:
            await self._close()

    async def _close(self) -> None:
        """Let go of everything; nothing is left to do if that has been done."""
        try:
            await self._datapath.close(remove_rules=self._owns_rules)
        finally:
            self._owns_rules = False
            await asyncio.to_thread(self._tap.stop)
            await self._exporter.move(None)
            if self._server:
                self._server.close()

    # What is due

    async def _reconcile(self) -> None:
        if await self._datapath.reconcile():
            log.info("changed: %s", self._datapath.describe(), extra={"event": "changed"})
            notify.notify(f"STATUS={self._datapath.describe()}")
        self._expect_events()
        self._watch_lanes()

    async def _find_underlays(self) -> None:
        await self._datapath.find_underlays()
        self._expect_events()

    def _expect_events(self) -> None:
        path = self._datapath
        self._links.expect(path.tunnel_numbers, path.underlays)
        self._routes.expect(path.unbound_numbers, routed=path.is_routed)

    async def _redecide(self) -> None:
        if await self._datapath.redecide():
            notify.notify(f"STATUS={self._datapath.describe()}")
        self._watch_lanes()

    def _watch_lanes(self) -> None:
        """Look at the lanes again before long if they may change by the passing of time."""
        if self._datapath.is_waiting_for_quiet():
            self._agenda.later(Work.LANES, LANES_EVERY)

    async def _restore(self) -> None:
        self._checked = self._loop.time()
        self._schedule_check(self._check_every)
        differs = await self._datapath.restore()
        if differs:
            log.warning(
                "another program changed the rules, which are restored: %s",
                "; ".join(differs[:SHOWN_DIFFERENCES]),
                extra={"event": "rules_restored"},
            )

    async def _serve_metrics(self) -> None:
        await self._exporter.move(self._options.metrics)

    async def _reread(self) -> None:
        """Do as the settings say now; if that is impossible, go on as before."""
        notify.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            options = self._load()
            await self._exporter.move(options.metrics)
            await self._datapath.reconfigure(options)
        except (CsumfixError, OSError) as error:
            self._agenda.note(Work.METRICS)  # back to where they were
            self._reload = replace(
                self._reload, ok=False, time=time.time(), failed=self._reload.failed + 1
            )
            log.error(
                "reload failed, all stays as it was: %s", error, extra={"event": "reload_failed"}
            )
        else:
            self._options = options
            self._reload = replace(
                self._reload, ok=True, time=time.time(), succeeded=self._reload.succeeded + 1
            )
            self._watch_lanes()
            logs.set_up(options.log_format)
            log.info("reloaded: %s", self._datapath.describe(), extra={"event": "reloaded"})
        notify.notify(notify.READY, f"STATUS={self._datapath.describe()}")

    # What the loop hears

    def _on_rules(self) -> None:
        """Look soon, but not again and again: another program may change rules all the time."""
        soon = max(0.0, self._checked + CHECK_PAUSE - self._loop.time())
        if self._loop.time() + soon < self._check_timer.when():
            self._schedule_check(soon)

    def _schedule_check(self, seconds: float) -> None:
        self._check_timer.cancel()
        self._check_timer = self._loop.call_later(seconds, self._agenda.note, Work.RULES)

    def _on_wrong_packet(self) -> None:
        """Called in the tap's thread when a packet leaves with a wrong checksum."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._consider_lanes)

    def _consider_lanes(self) -> None:
        if self._datapath.wants_another_lane():
            self._agenda.note(Work.LANES, at_once=True)

    def _on_stop(self) -> None:
        self._stop.set()
        if self._superseded_by is None:
            self._started_successor.stop()  # or it would go on in our place
        self._agenda.leave()

    def _on_queue_failure(self) -> None:
        """Called in the thread of a queue when it has failed."""
        self._loop.call_soon_threadsafe(self._look_after_queues)

    def _look_after_queues(self) -> None:
        """Tell the service manager that all is well, or find out what is not."""
        self._look_after_gate()
        try:
            trouble = self._datapath.pool.find_stuck_queue()
        except CsumfixError as error:
            self._failure = error
            self._agenda.leave()
            return
        except OSError as error:  # too many open files, say: no reason to be killed
            log.error("cannot look at the queues: %s", error, extra={"event": "health_unknown"})
            trouble = self._trouble
        if trouble:
            log.error(
                "%s; the watchdog may kill this process", trouble, extra={"event": "queue_stuck"}
            )
        else:
            notify.notify(notify.ALIVE)
        self._trouble = trouble
        self._health_timer.cancel()
        self._health_timer = self._loop.call_later(
            min(HEALTH, (notify.watchdog_limit() or HEALTH * 2) / 2), self._look_after_queues
        )

    def _look_after_gate(self) -> None:
        """Have the rules checked when conntrack comes on: the kernel lane then gets its gate."""
        before, self._conntrack = self._conntrack, rules.conntrack_is_on()
        if self._conntrack and not before:
            self._agenda.note(Work.RULES)

    # What others ask for

    async def _tell_status(self, peer: Peer) -> None:
        if peer.trusted:  # it runs iptables, which a stranger must not make us do
            await self._datapath.refresh()
        await peer.send(**to_json(self.snapshot().bounded()))

    async def _hand_over(self, peer: Peer) -> None:
        """Keep our hands off the rules until the successor has its own, then go."""
        async with self._agenda.lock:
            if self._agenda.leaving.is_set():
                await peer.send(error="it is stopping: try again", code=Exit.IN_USE)
                return
            lanes = lanes_to_json(self._datapath.lanes)
            await peer.send(pid=os.getpid(), lanes=lanes, leaving=self._datapath.leaving)
            answer = await peer.receive(handover.HOLD)
            # If we were stopped meanwhile, time is up though the answer has come.
            answer = answer or await peer.receive(handover.SECOND_LOOK)
            if answer and answer.get("request") == "leave":
                self._owns_rules = False
                self._superseded_by = peer.pid
                try:
                    await self._close()
                finally:  # whatever failed: the rules are another's now
                    self._announce(peer.pid)
                    self._agenda.leave()
            else:
                log.warning(
                    "process %d failed to take over: loading our rules again",
                    peer.pid,
                    extra={"event": "take_over_failed"},
                )
                self._datapath.invalidate()
                await self._agenda.do(Work.TUNNELS)

    def _announce(self, successor: int) -> None:
        log.info("superseded by process %d", successor, extra={"event": "superseded"})
        if self._started_successor.pid == successor:
            notify.notify(f"MAINPID={successor}")

    async def _restart(self, peer: Peer) -> None:
        await peer.send(**self._started_successor.start())

    def trouble(self) -> str | None:
        """Say in one line why the service is not healthy; None if it is."""
        return self._trouble

    def snapshot(self) -> Snapshot:
        """Return the state and the counters, as ``csumfix status`` shows them."""
        own = Snapshot(
            version=self._version,
            pid=os.getpid(),
            started=self._started,
            config=asdict(self._options),
            reload=self._reload,
            successor=self._started_successor.pid,
            trouble=self._trouble,
            control=self._server.trouble if self._server else None,
            rule_failures=self._agenda.rule_failures,
        )
        return self._datapath.fill(own).counted()


def run(options: Options, load: Callable[[], Options], command: Sequence[str]) -> None:
    """Run the service in the foreground; see Service for the arguments."""

    async def main() -> None:
        await Service(options, load, command).run()

    asyncio.run(main())
