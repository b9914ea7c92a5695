"""The service: tunnels -> lanes -> queues and rules, from the first packet to the last.

Theory of operation
-------------------
Losing a packet is worse than not repairing it, and the order of every step follows from that:

- Start: remove what a killed predecessor left behind, bind the queues, then load the rules. A rule
  without a listener accepts (``--queue-bypass``), but a queue that is bound and not configured
  drops. Taking over from a living predecessor is explained in handover.py.
- Change: the drains learn new ports before rules queue them. Queues are bound before rules lead to
  them, and drained after none does.
- Stop: remove the rules, drain the queues, then unbind them. Unbinding drops what is left.

The event loop does no packet work: each queue has a thread that is in C all the time, and the
egress tap has a thread of its own. Signal handlers, netlink events and timers only request work
from a runner. One scheduler runs it step by step while it holds a lock. A hand-over holds the same
lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Protocol

from csumfix import logs
from csumfix.errors import CsumfixError, Exit
from csumfix.host import privileges
from csumfix.host.changes import LinkChanges, RouteChanges, RuleChanges
from csumfix.host.events import LINKS, NFTABLES, ROUTES
from csumfix.options import Options
from csumfix.service import control, handover, notify
from csumfix.service.control import Handler, Peer
from csumfix.service.datapath import Datapath
from csumfix.service.exporter import Exporter
from csumfix.service.handover import Predecessor, SuccessorProcess
from csumfix.service.kernel import Kernel, real_kernel
from csumfix.service.lanes import IN_FLIGHT, lanes_to_json
from csumfix.service.probing import EVERY, LOOKUP_PAUSE, Probing
from csumfix.service.runner import RETRY, Runner, Scheduler
from csumfix.service.snapshot import ReloadSnapshot, Snapshot, to_bounded_json

log = logging.getLogger("csumfix")

SETTLE = 0.2
"""Seconds to wait after an event: a CNI plugin makes many at once."""

SHARE = 0.1
"""Share of a CPU that each kind of work that other programs can cause may take."""

RULES_PAUSE, RULES_SILENT, RULES_ANNOUNCED = 4.0, 7.0, 60.0
"""Seconds between two checks of our rules: at least; at most, if changes of rules make no netlink
events, and if they do."""

SOCKETS_EVERY = 5.0
"""Seconds between two looks for the sockets of tunnels whose device is in another namespace:
nothing announces them here. A look reads /proc/net/udp and udp6, which takes 0.1 ms of CPU with a
few sockets and 120 ms with 10,000."""

LANES_EVERY = 1.0
"""Seconds between two looks at the lanes while one of them may change by the passing of time."""

PROBES_PAUSE = 1.0
"""Seconds between the beginnings of two rounds of probes, at least."""

HEALTH = 5.0
"""Seconds between two looks at the queues, unless the watchdog wants more."""


class Server(Protocol):
    """The open control socket; see control.py."""

    @property
    def trouble(self) -> str | None:
        """What is wrong with it; None if nothing is."""

    def close(self) -> None:
        """Stop listening."""


class ControlSocket(Protocol):
    """Where the service is asked, and where it asks its predecessor; see control.py."""

    async def serve(self, handlers: Mapping[str, Handler]) -> Server:
        """Answer requests by these handlers; raise CsumfixError if a service does so already."""

    async def connect(self) -> Peer | None:
        """Return a connection to the running service; None if none runs."""


class RealControlSocket:
    """The control socket of this network namespace."""

    async def serve(self, handlers: Mapping[str, Handler]) -> Server:
        """Answer requests by these handlers; raise CsumfixError if a service does so already."""
        return await control.serve(handlers)

    async def connect(self) -> Peer | None:
        """Return a connection to the running service; None if none runs."""
        return await control.connect()


class Service:
    """Repairs the tunnels of the current network namespace until it is told to stop.

    options: the settings to start with.
    load: reads the settings again; raises CsumfixError if they are wrong.
    successor: starts another process like this one.
    """

    def __init__(
        self,
        options: Options,
        load: Callable[[], Options],
        kernel: Kernel,
        control_socket: ControlSocket,
        successor: SuccessorProcess,
    ) -> None:
        self._options = options
        self._load = load
        self._kernel = kernel
        self._control_socket = control_socket
        self._successor = successor
        self._loop = asyncio.get_running_loop()
        clock = self._loop.time
        self._tap = kernel.make_tap(options.tap_pause, self._on_wrong_packet)
        self._probing = Probing(kernel.ends, clock)
        self._datapath = Datapath(
            options, kernel, self._tap, clock, self._on_queue_failure, self._probing
        )
        self._exporter = Exporter(self.snapshot, self.trouble, self._datapath.pool.probe)
        self._server: Server | None = None
        self._superseded_by: int | None = None
        self._failure: CsumfixError | None = None
        self._owns_rules = False
        self._started = time.time()
        self._version = version("csumfix")  # what is installed may change while we run
        self._reload = ReloadSnapshot(time=self._started)
        self._stopped = asyncio.Event()
        self._link_changes, self._route_changes = LinkChanges(), RouteChanges()
        self._trouble: str | None = None
        self._conntrack = False
        self._rereading = Runner("reloading", self._reread)
        self._tunnels = Runner(
            "updating the rules for changed devices", self._reconcile, settle=SETTLE, share=SHARE
        )
        self._underlays = Runner(
            "finding the devices that carry tunnels",
            self._find_underlays,
            settle=SETTLE,
            share=SHARE,
        )
        self._sockets = Runner(
            "looking for sockets of tunnels",
            self._look_for_sockets,
            at_least_every=SOCKETS_EVERY,
        )
        self._lanes = Runner("changing lanes", self._redecide)
        self._rules = Runner(
            "restoring the rules",
            self._restore,
            settle=SETTLE,
            at_most_every=RULES_PAUSE,
            share=SHARE,
        )
        self._metrics = Runner("serving metrics", self._serve_metrics)
        self._control = Runner("opening the control socket", self._open_control_socket)
        self._work = Scheduler(
            [
                self._rereading,
                self._sockets,
                self._tunnels,
                self._underlays,
                self._lanes,
                self._rules,
                self._metrics,
                self._control,
            ],
            clock,
        )
        # Not under the lock: the service manager must hear of us while rules are being loaded.
        self._health = Runner("looking at the queues", self._look_after_queues)
        self._watch = Scheduler([self._health], clock)
        # A round takes up to two seconds, for which neither may wait.
        self._probes = Runner(
            "probing the other ends of tunnels",
            self._probe,
            at_most_every=PROBES_PAUSE,
            share=SHARE,
        )
        self._asking = Scheduler([self._probes], clock)

    def stop(self) -> None:
        """Have run() return."""
        self._stopped.set()
        if self._superseded_by is None:
            self._successor.stop()  # otherwise it would go on in our place
        self._work.stop()

    def reload(self) -> None:
        """Read the settings again, soon."""
        self._rereading.request()

    async def run(self) -> None:
        """Run until stop(); raise CsumfixError if it cannot start or go on."""
        self._tap.start()
        watching = asyncio.create_task(self._watch.run())
        asking = asyncio.create_task(self._asking.run())
        for task in (watching, asking):
            task.add_done_callback(self._stop_if_it_failed)
        try:
            async with self._work.lock:  # nobody can take over what is half begun
                await self._begin()
            await self._go_on()
        finally:
            asking.cancel()
            # Probes that leave after the rules are removed would arrive with wrong checksums.
            await asyncio.wait([asking])
            try:
                await self._end()
            finally:
                self._watch.stop()
                await asyncio.wait([watching])
        for task in (watching, asking):
            if not task.cancelled():
                task.result()
        if self._failure:
            raise self._failure
        # In another pod the successor's number is 0: it is not in our pid namespace.
        if self._superseded_by is not None and self._options.superseded == "wait":
            await self._stopped.wait()

    def _stop_if_it_failed(self, task: asyncio.Task[None]) -> None:
        """Stop rather than go on without what this task does; run() then raises its exception."""
        if not task.cancelled() and task.exception():
            self._work.stop()

    async def _go_on(self) -> None:
        listen = self._kernel.listen
        with (
            listen(LINKS, self._link_changes, self._tunnels.request),
            listen(ROUTES, self._route_changes, self._underlays.request),
            listen(NFTABLES, RuleChanges(), self._rules.request),
        ):
            for runner in (
                self._sockets,
                self._tunnels,
                self._rules,
            ):  # what has changed before we listened
                runner.request()
            await self._work.run()

    # Begin and end

    async def _begin(self) -> None:
        predecessor = None
        if self._options.take_over:
            predecessor = await handover.find_predecessor(self._control_socket.connect)
        if predecessor:
            await self._take_over_from(predecessor)
        else:
            await self._open_control_socket()
            self._kernel.queues.require_free(self._options.queue_numbers)
            await self._exporter.move(self._options.metrics)
            await self._kernel.rules.remove()
            self._owns_rules = True
            await self._datapath.open(self._options.queue_numbers)
        if self._work.stopped:
            return
        announced = await self._kernel.rules.changes_are_announced()
        self._rules.repeat(RULES_ANNOUNCED if announced else RULES_SILENT)
        self._watch_lanes()
        await self._look_after_queues()
        self._health.repeat(min(HEALTH, (notify.watchdog_limit() or HEALTH * 2) / 2))
        log.info("ready: %s", self._datapath.describe(), extra={"event": "ready"})
        notify.notify(notify.READY, f"STATUS={self._datapath.describe()}")
        self._ask_now()

    async def _take_over_from(self, predecessor: Predecessor) -> None:
        try:
            numbers = self._datapath.pool.free_numbers(self._options.queue_numbers)
            await self._datapath.open(
                numbers, predecessor.lanes, predecessor.leaving, predecessor.queues
            )
        except BaseException:
            await predecessor.go_on()
            raise
        if self._work.stopped:  # told to stop meanwhile: then nobody would be left
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
                "process %d does not answer: working without the control socket until it leaves",
                predecessor.pid,
                extra={"event": "predecessor_silent"},
            )
            self._control.request(RETRY)
        self._metrics.request()  # the address was the predecessor's until now
        log.info("taken over from process %d", predecessor.pid, extra={"event": "taken_over"})

    async def _open_control_socket(self) -> None:
        self._server = await self._control_socket.serve(
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
                "stopping: removing rules, then draining the queues", extra={"event": "stopping"}
            )
        async with self._work.lock:
            await self._close()

    async def _close(self) -> None:
        """Let go of everything; nothing is left to do if that has been done."""
        try:
            await self._datapath.close(remove_rules=self._owns_rules)
        finally:
            self._owns_rules = False
            await self._tap.stop()
            await self._exporter.move(None)
            if self._server:
                self._server.close()

    # The work of the runners

    async def _reconcile(self) -> None:
        if await self._datapath.reconcile():
            log.info("changed: %s", self._datapath.describe(), extra={"event": "changed"})
            notify.notify(f"STATUS={self._datapath.describe()}")
            self._ask_now()
        self._expect_events()
        self._watch_lanes()

    async def _look_for_sockets(self) -> None:
        if await self._datapath.sockets_differ():
            self._tunnels.request(0)

    async def _find_underlays(self) -> None:
        before = self._datapath.underlays
        await self._datapath.find_underlays()
        if self._datapath.underlays != before:
            self._ask_now()
        self._expect_events()
        self._watch_lanes()

    def _expect_events(self) -> None:
        path = self._datapath
        self._link_changes.expect(path.tunnel_numbers, path.underlays)
        self._route_changes.expect(path.unbound_numbers, routed=path.is_routed)

    async def _redecide(self) -> None:
        if await self._datapath.redecide():
            notify.notify(f"STATUS={self._datapath.describe()}")
            self._ask_now()
        self._watch_lanes()

    def _watch_lanes(self) -> None:
        """Look at the lanes from time to time if they may change by the passing of time."""
        waiting = self._datapath.is_waiting_for_quiet()
        self._lanes.repeat(LANES_EVERY if waiting else None)

    def _ask_now(self) -> None:
        """Send probes as soon as packets surely meet the rules of their lane, and regularly."""
        if self._options.probe == "on":
            self._probes.request(2 * IN_FLIGHT)
            self._probes.repeat(EVERY)
        else:
            self._probes.repeat(None)
            self._probing.forget()

    async def _probe(self) -> None:
        path = self._datapath
        if self._options.probe != "on":
            return
        try:
            again = await self._probing.round(path.tunnels, path.underlays, path.trials)
        except (CsumfixError, OSError):
            raise
        except Exception as error:  # an odd answer must not end the repair
            self._probing.note_bug(error)
            return
        if again:
            self._probes.request(0)
        elif self._probing.is_behind:
            self._probes.request(LOOKUP_PAUSE)
        self._consider_lanes()

    async def _restore(self) -> None:
        if await self._datapath.restore():
            self._ask_now()
            # What flushed our rules may have switched conntrack off, and then they have no gate.
            self._conntrack = False

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
            # Back to where they were: a reload can fail half way.
            self._metrics.request()
            self._tunnels.request(0)
            self._reload = replace(
                self._reload, ok=False, time=time.time(), failed=self._reload.failed + 1
            )
            log.error(
                "reload failed, the old settings stay in force: %s",
                error,
                extra={"event": "reload_failed"},
            )
        else:
            self._options = options
            self._reload = replace(
                self._reload, ok=True, time=time.time(), succeeded=self._reload.succeeded + 1
            )
            self._watch_lanes()
            self._ask_now()
            logs.set_up(options.log_format)
            log.info("reloaded: %s", self._datapath.describe(), extra={"event": "reloaded"})
        notify.notify(notify.READY, f"STATUS={self._datapath.describe()}")

    # What makes work

    def _on_wrong_packet(self) -> None:
        """Called in the tap's thread when a packet leaves with a wrong checksum."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._consider_lanes)

    def _consider_lanes(self) -> None:
        if self._datapath.wants_another_lane():
            self._lanes.request()

    def _on_queue_failure(self) -> None:
        """Called in the thread of a queue when it has failed."""
        self._loop.call_soon_threadsafe(self._health.request)

    async def _look_after_queues(self) -> None:
        """Tell the service manager that all is well, or find out what is not."""
        self._look_after_gate()
        try:
            self._trouble = self._datapath.pool.find_stuck_queue()
        except CsumfixError as error:
            self._failure = error
            self._work.stop()
            return
        except OSError as error:  # too many open files, for example: no reason to be killed
            log.error(
                "cannot read the state of the queues: %s", error, extra={"event": "health_unknown"}
            )
        if self._trouble:
            log.error(
                "%s: the watchdog may kill this process",
                self._trouble,
                extra={"event": "queue_stuck"},
            )
        else:
            notify.notify(notify.ALIVE)

    def _look_after_gate(self) -> None:
        """Check the rules when conntrack is switched on: the kernel lane then gets its gate."""
        before, self._conntrack = self._conntrack, self._kernel.rules.conntrack_is_on()
        if self._conntrack and not before:
            self._rules.request()

    # Requests at the control socket

    async def _tell_status(self, peer: Peer) -> None:
        if peer.trusted:  # it runs iptables, which a stranger must not make us do
            await self._datapath.refresh()
        await peer.send(**to_bounded_json(self.snapshot(), control.MAX_STATUS))

    async def _hand_over(self, peer: Peer) -> None:
        """Leave the rules alone until the successor has loaded its own, then go."""
        async with self._work.lock:
            if self._work.stopped:
                await peer.send(error="it is stopping: try again", code=Exit.IN_USE)
                return
            await peer.send(
                pid=os.getpid(),
                lanes=lanes_to_json(self._datapath.lanes),
                leaving=self._datapath.leaving,
                queues=self._datapath.pool.numbers,
            )
            answer = await peer.receive(handover.HOLD)
            # If we were stopped meanwhile, time is up though the answer has come.
            answer = answer or await peer.receive(handover.SECOND_LOOK)
            if answer and answer.get("request") == "leave":
                await self._leave_to(peer.pid)
            else:
                log.warning(
                    "process %d failed to take over: loading our rules again",
                    peer.pid,
                    extra={"event": "take_over_failed"},
                )
                self._datapath.invalidate()
                await self._work.run_now(self._tunnels)

    async def _leave_to(self, successor: int) -> None:
        self._owns_rules = False
        self._superseded_by = successor
        try:
            await self._close()
        finally:  # whatever failed: the rules are the successor's now
            log.info("superseded by process %d", successor, extra={"event": "superseded"})
            if self._successor.pid == successor:
                notify.notify(f"MAINPID={successor}")
            self._work.stop()

    async def _restart(self, peer: Peer) -> None:
        await peer.send(**self._successor.start())

    # Its state

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
            successor=self._successor.pid,
            trouble=self._trouble,
            control=self._server.trouble if self._server else None,
            rule_failures=self._tunnels.failures + self._lanes.failures + self._rules.failures,
        )
        return self._datapath.fill(own).counted()


def run(
    options: Options,
    load: Callable[[], Options],
    command: Sequence[str],
    kernel: Kernel | None = None,
) -> None:
    """Run the service in the foreground until SIGTERM or SIGINT; SIGHUP reloads.

    command: starts another process like this one.
    kernel: the one to run on, if not this host's.

    See Service for the other arguments.
    """

    async def main() -> None:
        privileges.require_net_admin()
        successor = SuccessorProcess(command)
        service = Service(options, load, kernel or real_kernel(), RealControlSocket(), successor)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stop)
        loop.add_signal_handler(signal.SIGHUP, service.reload)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # Ctrl-Z would stop the senders, too
        await service.run()

    asyncio.run(main())
