"""A host made of fakes: it notes in which order things were done to it, and what was lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from csumfix.core import Policy, PortStats, Stats
from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.departures import Departure
from csumfix.evidence.offload import Offload
from csumfix.evidence.outcomes import Kind, KindOutcome, Probed, Probes
from csumfix.evidence.tap import PortTraffic, Traffic
from csumfix.host.changes import Changes
from csumfix.host.events import LINKS, NFTABLES, ROUTES
from csumfix.host.queues import KernelQueue
from csumfix.host.remotes import Remote
from csumfix.host.rules import Backend, RuleSet
from csumfix.host.tunnels import Tunnel
from csumfix.options import Options
from csumfix.protocols import Protocols
from csumfix.service import control
from csumfix.service.control import Handler, Message, Peer
from csumfix.service.handover import SuccessorProcess
from csumfix.service.kernel import Kernel
from csumfix.service.listener import already_running
from csumfix.service.service import Service

FLANNEL = Tunnel("flannel.1", 8472, "4", 1450, source_ports=(32768, 60999), index=3, underlay=2)
OTHER = replace(FLANNEL, name="vx2", port=4789, index=4)

UNDERLAY = 2


class Queue:
    """A queue. While it is not started, what arrives waits."""

    def __init__(self, host: Host, number: int, policy: Policy) -> None:
        self.number = number
        self.error: OSError | None = None
        self.policy = policy
        self.waiting = 0
        self.counts = Stats()
        self.stuck = False
        self._host = host
        self._started = False
        self._on_failure: Callable[[], None] = lambda: None

    def start(self, on_failure: Callable[[], None]) -> None:
        self._host.note(f"start {self.number}")
        self._on_failure = on_failure
        self._started = True
        self.waiting = 0

    def stop(self) -> None:
        self._host.note(f"unbind {self.number}")
        self._host.lost += self.waiting
        del self._host.queues[self.number]

    def fail(self) -> None:
        self.error = OSError(19, "No such device")
        self._on_failure()

    def arrive(self, packets: int) -> None:
        """Have packets arrive that nobody has read yet."""
        self.waiting += packets

    def read(self) -> None:
        """Have the drain answer what waits, if it runs."""
        if self._started and not self.stuck:
            self.waiting = 0

    def probe(self) -> None:
        assert self._started, "the drain does not run"

    def set_policy(self, policy: Policy) -> None:
        self.policy = policy

    def stats(self) -> Stats:
        return self.counts

    def repair(self, port: int, packets: int) -> None:
        """Have it repair packets to a port."""
        self.counts = replace(
            self.counts, packets=packets, ports=(PortStats(port, packets, packets, 0),)
        )


class Tap:
    """An egress tap that sees what a test makes it see."""

    def __init__(self, pause: float, on_wrong: Callable[[], None]) -> None:
        self.pause = pause
        self.devices: frozenset[int] = frozenset()
        self.ports: Protocols = {}
        self.seen = Traffic()
        self._on_wrong = on_wrong

    def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def watch(self, devices: frozenset[int], ports: Protocols, pause: float) -> None:
        self.devices, self.ports, self.pause = devices, ports, pause

    def traffic(self) -> Traffic:
        return self.seen

    def see_wrong(self, port: int) -> None:
        """See a packet to this port leave with a wrong checksum."""
        now = asyncio.get_running_loop().time()
        count = self.seen.ports[port].departures[Departure.WRONG] if port in self.seen.ports else 0
        one = PortTraffic({Departure.WRONG: count + 1}, now, "off by 7")
        self.seen = replace(self.seen, ports={**self.seen.ports, port: one})
        self._on_wrong()


@dataclass
class Host:
    """What all processes of a host share; each method of the fakes notes what it does in `log`.

    rules: that are loaded.
    lost: packets that a queue still held when it was unbound.
    refusals: raised by the next applications of rules, one each; None lets one pass.
    takes: seconds that it takes to load rules.
    counting: seconds that it takes to read their counters.
    remotes, answers: the other ends of the tunnels, and what they make of probes.
    asked: their addresses in each round, and whether the underlay was watched.
    while_loading: is called halfway.
    backend: what loads them.
    """

    tunnels: list[Tunnel] = field(default_factory=lambda: [FLANNEL])
    sockets: frozenset[int] = frozenset()
    queues: dict[int, Queue] = field(default_factory=dict)
    foreign: dict[int, KernelQueue] = field(default_factory=dict)
    rules: RuleSet | None = None
    log: list[str] = field(default_factory=list)
    applied: list[RuleSet] = field(default_factory=list)
    lost: int = 0
    refusals: list[Exception | None] = field(default_factory=list)
    takes: float = 0.05
    counting: float = 0.0
    while_loading: Callable[[RuleSet], None] = lambda _: None
    meddled: tuple[str, ...] = ()
    met: Counter[str] = field(default_factory=Counter)
    nfqueue: bool = True
    backend: Backend = field(default_factory=lambda: Backend("iptables"))
    unreadable: OSError | None = None
    announced: bool = True
    conntrack: bool = False
    ipset: bool = True
    flows_left: bool = True
    listed: int = 0
    checked: int = 0
    listeners: dict[tuple[int, int], Callable[[], None]] = field(default_factory=dict)
    taps: list[Tap] = field(default_factory=list)
    remotes: list[Remote] = field(default_factory=list)
    answers: Callable[[Remote], Offload] = lambda _: Offload.ANSWERED
    blind: str = ""
    asked: list[tuple[list[str], bool]] = field(default_factory=list)
    name: ControlSocket | None = None

    def note(self, what: str) -> None:
        self.log.append(what)

    def kernel(self) -> Kernel:
        return Kernel(
            *(Rules(self), Links(self), Flows(self), Queues(self), self._tap, self._listen),
            Ends(self),
        )

    def _tap(self, pause: float, on_wrong: Callable[[], None]) -> Tap:
        self.taps.append(Tap(pause, on_wrong))
        return self.taps[-1]

    @contextmanager
    def _listen(
        self, what: tuple[int, int], _: Changes, react: Callable[[], None]
    ) -> Iterator[None]:
        self.listeners[what] = react
        yield
        if self.listeners.get(what) == react:
            del self.listeners[what]

    def links_change(self) -> None:
        self.listeners[LINKS]()

    def routes_change(self) -> None:
        self.listeners[ROUTES]()

    def rules_change(self) -> None:
        self.listeners[NFTABLES]()

    @property
    def tap(self) -> Tap:
        return self.taps[-1]


def words(rules: RuleSet) -> str:
    """Return the rules in a few words, for the log."""
    queues = f" by {rules.queue_base}+{rules.queues}" if rules.queued_ports else ""
    leaving = f" leaving {list(rules.leaving_ports)}" if rules.leaving_ports else ""
    recording = " recording" if rules.recording else ""
    return (
        f"apply {list(rules.kernel_ports)} {list(rules.queue_ports)}{queues}{leaving}{recording}"
    )


class Rules:
    def __init__(self, host: Host) -> None:
        self._host = host

    async def apply(self, wanted: RuleSet) -> Backend:
        host = self._host
        await asyncio.sleep(host.takes / 2)
        refusal = host.refusals.pop(0) if host.refusals else None
        if refusal:
            host.note("apply refused")
            raise refusal
        host.note(words(wanted))
        host.rules, host.meddled = wanted, ()
        host.applied.append(wanted)
        host.while_loading(wanted)
        await asyncio.sleep(host.takes / 2)
        return host.backend

    async def remove(self) -> None:
        self._host.note("remove rules")
        self._host.rules = None

    async def differences(self, wanted: RuleSet) -> tuple[str, ...]:
        self._host.checked += 1
        return self._host.meddled if self._host.rules == wanted else ("all",)

    async def packets(self) -> Counter[str]:
        await asyncio.sleep(self._host.counting)
        return self._host.met.copy()

    async def changes_are_announced(self) -> bool:
        return self._host.announced

    def conntrack_is_on(self) -> bool:
        return self._host.conntrack


class Links:
    def __init__(self, host: Host) -> None:
        self._host = host

    async def tunnels(self) -> list[Tunnel]:
        self._host.listed += 1
        return list(self._host.tunnels)

    async def socket_ports(self) -> frozenset[int]:
        return self._host.sockets

    async def underlays(self, found: Collection[Tunnel], *, named: bool) -> frozenset[int]:
        return frozenset({UNDERLAY} if found or named else ())


def outcomes(verdict: Offload, *, silent: bool = False) -> dict[Kind, KindOutcome]:
    """Return what a round of probes to one remote end finds."""
    times = [float(number) for number in range(14)]
    answered = [] if silent else [0.0, 13.0]
    control = KindOutcome(sent=3, answered=len(answered), answered_at=answered)
    sent = [] if silent else times
    offloaded = KindOutcome(sent=len(sent), sent_at=sent)
    if verdict is Offload.ANSWERED:
        offloaded = KindOutcome(sent=2, answered=1, sent_at=times[:2], answered_at=times[:1])
    elif verdict is Offload.UNKNOWN:
        offloaded = KindOutcome(sent=len(sent[:5]), sent_at=sent[:5])
    return {Kind.SYN: control, Kind.SYN_OFFLOADED: offloaded}


def remote(number: int, tunnel: Tunnel = FLANNEL) -> Remote:
    """Return a remote end."""
    address, vtep, mac = f"10.244.{number}.0", f"192.0.2.{number}", bytes([2, 0, 0, 0, 0, number])
    source = ("10.244.0.0", bytes(6).replace(b"\0", b"\2", 1))
    return Remote(tunnel, tunnel.index, tunnel.name, address, *source, mac, vtep, 1450)


class Ends:
    """The other ends. A host's `answers` says what arrives there; a round takes 0.9 s."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def find(self, found: Sequence[Tunnel], enough: int) -> list[Remote]:
        return [one for one in self._host.remotes if one.tunnel in found]

    async def ask(
        self, remotes: Sequence[Remote], underlays: Collection[int], *, watch: bool
    ) -> Probes:
        host = self._host
        host.asked.append(([one.address for one in remotes], watch))
        try:
            await asyncio.sleep(0.9)
        except asyncio.CancelledError:
            host.note("stop probing")
            raise
        silent = {one.address: host.answers(one) is Offload.UNKNOWN for one in remotes}
        return Probes(
            [
                Probed(one, outcomes(host.answers(one), silent=silent[one.address]))
                for one in remotes
            ],
            host.blind,
        )


class Flows:
    def __init__(self, host: Host) -> None:
        self._host = host

    async def create(self) -> None:
        if not self._host.ipset:
            raise CsumfixError("cannot create the ipset", Exit.KERNEL)
        self._host.note("create flows")

    async def destroy(self) -> None:
        self._host.note("destroy flows")

    async def are_left(self) -> bool:
        return self._host.flows_left


class Queues:
    def __init__(self, host: Host) -> None:
        self._host = host

    def bind(self, number: int, policy: Policy) -> Queue:
        if not self._host.nfqueue:
            raise CsumfixError("this kernel has no NFQUEUE", Exit.KERNEL)
        self._host.note(f"bind {number}")
        self._host.queues[number] = Queue(self._host, number, policy)
        return self._host.queues[number]

    def bound(self) -> dict[int, KernelQueue]:
        if self._host.unreadable:
            raise self._host.unreadable
        own = {n: _shown(n, queue.waiting) for n, queue in self._host.queues.items()}
        for queue in self._host.queues.values():
            queue.read()
        return {**self._host.foreign, **own}

    def require_free(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number in self.bound():
                raise CsumfixError(f"queue {number} is already bound", Exit.IN_USE)

    def exist(self) -> bool:
        return self._host.nfqueue


def _shown(number: int, waiting: int) -> KernelQueue:
    return KernelQueue(number, 1, waiting, 2, 65531, 0, 0, 0)


def foreign(number: int) -> KernelQueue:
    """Return a queue of another program."""
    return _shown(number, 0)


class FakePeer(Peer):
    """One end of a connection without a socket."""

    def __init__(self, pid: int) -> None:
        self.pid, self.uid = pid, 0
        self.other = self
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._closed = False

    async def send(self, **message: Any) -> None:
        if self._closed or self.other._closed:
            raise ConnectionResetError
        self.other._inbox.put_nowait(control.encode(message))

    async def receive(self, timeout: float) -> Message | None:
        try:
            async with asyncio.timeout(timeout):
                line = await self._inbox.get()
        except TimeoutError:
            return None
        return control.decode(line) if line else None

    async def hangs_up(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while await self._inbox.get():
                    pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._closed = True
        self.other._inbox.put_nowait(b"")


def connection(client: int, server: int) -> tuple[FakePeer, FakePeer]:
    """Return both ends, each of which knows the other's process id."""
    here, there = FakePeer(server), FakePeer(client)
    here.other, there.other = there, here
    return here, there


class ControlSocket:
    """The control socket of one process; `host.name` is whose it is."""

    trouble: str | None = None

    def __init__(self, host: Host, pid: int) -> None:
        self.pid = pid
        self.frozen = False
        self.handlers: Mapping[str, Handler] = {}
        self._host = host
        self._tasks: list[asyncio.Task[None]] = []

    async def serve(self, handlers: Mapping[str, Handler]) -> ControlSocket:
        if self._host.name not in (None, self):
            raise already_running("another process")
        self._host.note(f"serve {self.pid}")
        self._host.name, self.handlers = self, handlers
        return self

    def close(self) -> None:
        if self._host.name is self:
            self._host.name = None

    async def connect(self) -> Peer | None:
        if self._host.name is None:
            return None
        here, there = connection(self.pid, self._host.name.pid)
        self._host.name.accept(there)
        return here

    def accept(self, peer: FakePeer) -> None:
        if not self.frozen:
            self._tasks.append(asyncio.create_task(self._answer(peer)))

    async def _answer(self, peer: FakePeer) -> None:
        await control._answer(peer, self.handlers)
        peer.close()

    async def ask(self, **request: Any) -> Message:
        """Ask the service that has the name."""
        peer = await self.connect()
        assert peer
        await peer.send(**request)
        answer = await peer.receive(10)
        assert answer is not None
        return answer


class Process:
    """A service that runs on a fake host."""

    def __init__(self, host: Host, options: Options | None = None, pid: int = 1) -> None:
        self.options = options or Options()
        self.socket = ControlSocket(host, pid)
        self.host = host
        self.successor = SuccessorProcess([], self._spawn)
        self.spawn_error: OSError | None = None
        self.service = Service(
            self.options, self._load, host.kernel(), self.socket, self.successor
        )
        self.task = asyncio.create_task(self.service.run())

    def _load(self) -> Options:
        return self.options

    def _spawn(self, _: Sequence[str]) -> int:
        assert self.spawn_error
        raise self.spawn_error

    async def reload(self, options: Options) -> None:
        self.options = options
        self.service.reload()
        await asyncio.sleep(3)

    async def stop(self) -> None:
        self.service.stop()
        await self.task
