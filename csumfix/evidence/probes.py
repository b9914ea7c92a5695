"""Finds out which packets reach the other ends of tunnels, without any agent there.

Theory of operation
-------------------
A remote end is asked by packets to its inner address. A ping, or a TCP SYN to a closed port, is
answered by any kernel. The same packet is sent in two ways: with its inner checksum complete, and
with the inner checksum left to offload, as the packets of most programs are. If only the second is
lost, the checksum is what loses it. What leaves this host is watched at the underlay as well, so
that a wrong outer checksum is found even if nothing is ever answered.

========================  ==================================================================
PING, PING_OFFLOADED      echo request of 56 bytes; inner checksum complete, left to offload
PING_OUTER                PING with the outer checksum complete, too; for the service
PING_LARGE                echo request as long as the tunnel's MTU, complete
SYN, SYN_OFFLOADED        TCP SYN; complete, left to offload
DATA, GSO                 TCP data of no connection: a segment, complete; a GSO packet of two
WRAPPED                   echo request in a tunnel datagram of our own; both checksums complete
WRAPPED_OFFLOADED         the same by a UDP socket, which leaves the outer checksum to offload
CONNECT                   connect() of an ordinary socket, from a new port each time
MARKED                    the same with the mark of kube-proxy for packets to be masqueraded
MARKED_HOST               the same from the host's main address, as a query to a service has it
========================  ==================================================================

- The first packet of a flow says little, because the gate of the kernel lane has the checksum of
  every packet finished whose flow is not confirmed yet. So probes repeat the same 5-tuple.
  An ordinary TCP socket cannot do that: the kernel draws the outer source port from a random
  number that is new for each connect() (sk_set_txhash() in net/ipv4/tcp_ipv4.c). Hence the packet
  socket, whose frames have the outer port that their 5-tuple gives.
- Marked packets must pass the rules for the inner packet, and table nat sees only the first packet
  of a connection. Hence ordinary sockets, each with a port of its own.
- Nothing is sent to anything but inner addresses behind the host's own tunnels, and to the port of
  the tunnel at their VTEPs.
- The doctor sends a remote end at most ROUNDS packets of each kind, at most one of a kind in
  INTERVAL seconds, and no more of a kind that has been answered often enough. The service sends
  fewer packets of fewer kinds, as offload.py says.
- All is done in the event loop. A cancelled call leaves no socket and no thread behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from csumfix.core import Inspection, Policy, Status, inspect
from csumfix.evidence import arrivals, probepackets
from csumfix.evidence.arrivals import WRONG, Circumstances, Diagnosis
from csumfix.evidence.captures import address_text, addresses
from csumfix.evidence.departures import Departure, judge
from csumfix.evidence.probepackets import Ends, Seen
from csumfix.evidence.segments import ETHERNET_HEADER, inner_offset
from csumfix.evidence.tapsocket import (
    SOL_PACKET,
    Direction,
    Packet,
    TapSocket,
    answers_in,
    attach,
    bind,
)
from csumfix.host.conntrack import OuterTuple
from csumfix.host.remotes import Remote
from csumfix.protocols import Protocols

ROUNDS = 40
INTERVAL = 0.05
LONGEST = 4.0
"""Seconds after which no more packets are sent, on a host that is too slow for all rounds."""

PATIENCE = 0.7
"""Seconds that the last answers may take."""

PINGS, ON_THE_WAY = 20, 2
"""Pings that are sent in any case: they show how many packets the path loses. If answers are
missing, but for those to the last two, the pings go on for as long as the probes may."""

ENOUGH, ENOUGH_MARKED = 2, 4
"""Answers after which no more packets of a kind are sent. Each marked packet is a flow of its own,
and a few of them show whether NAT gives them new outer ports."""

ENOUGH_WRONG = 6
"""Packets that left with a wrong outer checksum, after which no more of a kind are sent."""

LOST_FLOW = 10
"""Packets of a flow that do not go unanswered by chance."""

PING_DATA = 56  # bytes, as ping(8) has it
READ = 256
"""Packets that are read at once, before anything else gets its turn."""

PACKET_VNET_HDR = 15  # linux/if_packet.h
SO_MARK = 36  # asm-generic/socket.h
REJECT = [(0x06, 0, 0, 0)]  # a filter that lets no packet pass

ELSEWHERE = {4: "192.88.99.1", 6: "100::1"}
"""Addresses that no host has (RFC 7526, RFC 6666): only their routes are looked up."""


class Kind(enum.IntEnum):
    """A kind of probe, by its number; see the table above."""

    PING = 65301
    PING_OFFLOADED = 65302
    PING_LARGE = 65303
    SYN = 65304
    SYN_OFFLOADED = 65305
    WRAPPED = 65306
    WRAPPED_OFFLOADED = 65307
    CONNECT = 65308
    MARKED = 65309
    MARKED_HOST = 65310
    DATA = 65311
    GSO = 65312
    PING_OUTER = 65313


FRAMES = (
    *(Kind.PING, Kind.PING_OFFLOADED, Kind.PING_LARGE),
    *(Kind.SYN, Kind.SYN_OFFLOADED, Kind.DATA, Kind.GSO, Kind.PING_OUTER),
)
DATAGRAMS = (Kind.WRAPPED, Kind.WRAPPED_OFFLOADED)
SOCKETS = (Kind.CONNECT, Kind.MARKED, Kind.MARKED_HOST)

MARKS = frozenset({Kind.MARKED, Kind.MARKED_HOST})

FLOWS = {Kind.SYN: 2, Kind.SYN_OFFLOADED: 2}
"""How many flows of a kind there are; 1 of all others."""

OFFLOADED = frozenset({Kind.SYN_OFFLOADED, Kind.PING_OFFLOADED})
"""Frames whose inner checksum is left to offload."""


@dataclass
class Outcome:
    """What became of the packets of one kind to one remote end.

    sent, answered: packets, without the first one of each flow; of SOCKETS every packet is a
        flow of its own, and counts.
    left: how they left, as the underlay saw them.
    ports, dests: outer source ports and destination addresses with which they left.
    wrong: some of those that left wrong, by outer source port.
    flows: outer flows as they left.
    arrived: answers as they arrived at the underlay. They may be wrong, and so not count as
        answered, but they show that the question got there.
    sources: outer source ports of the answers.
    lost_flows: flows of which LOST_FLOW packets or more were sent and none answered.
    fault: why nothing could be sent.
    sent_at: when the packets that count in `sent` were sent, in seconds of CLOCK_MONOTONIC.
    answered_at: when those of them were sent that have been answered.
    """

    sent: int = 0
    answered: int = 0
    left: Counter[Departure] = field(default_factory=Counter)
    ports: set[int] = field(default_factory=set)
    dests: set[str] = field(default_factory=set)
    wrong: dict[int, Inspection] = field(default_factory=dict)
    flows: set[OuterTuple] = field(default_factory=set)
    arrived: Counter[Diagnosis] = field(default_factory=Counter)
    sources: set[int] = field(default_factory=set)
    lost_flows: int = 0
    fault: str = ""
    sent_at: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)

    @property
    def wrong_flows(self) -> set[OuterTuple]:
        """Those outer flows of which packets left wrong."""
        return {flow for flow in self.flows if flow.source_port in self.wrong}

    def add_departed(
        self, seen: Inspection, departure: Departure, addresses: tuple[str, str]
    ) -> None:
        """Note a packet that left; addresses: its outer source and destination."""
        source, dest = addresses
        self.left[departure] += 1
        self.ports.add(seen.source)
        self.dests.add(dest)
        self.flows.add(OuterTuple(source, seen.source, dest, seen.dest))
        if departure is Departure.WRONG:
            self.wrong[seen.source] = seen


Outcomes = Mapping[Kind, Outcome]
"""Of one remote end."""


@dataclass(frozen=True)
class Extent:
    """How much a round of probes asks; the default is what the doctor asks.

    kinds: that are sent.
    flows: how many flows of a kind there are, if there are several.
    watch: whether the underlay is watched, too.
    wanted: returns the kinds that the next packets to a remote end should be of, given the number
        of the round; None if each kind is sent until it has been answered often enough.
    decided: tells whether nothing more need be known of a remote end.
    """

    kinds: frozenset[Kind] = frozenset(Kind) - {Kind.PING_OUTER}
    flows: Mapping[Kind, int] = field(default_factory=lambda: FLOWS)
    watch: bool = True
    wanted: Callable[[Outcomes, int], Collection[Kind]] | None = None
    decided: Callable[[Outcomes], bool] = lambda _: False


@dataclass
class Probed:
    """What one remote end was asked, by kind."""

    remote: Remote
    outcomes: dict[Kind, Outcome] = field(default_factory=dict)


@dataclass
class Probes:
    """All that came of a round of probes.

    blind: why the underlay could not be watched, or no frames be sent; empty if they could.
    """

    probed: list[Probed] = field(default_factory=list)
    blind: str = ""


@dataclass
class _Series:
    """The packets of one kind to one remote end."""

    kind: Kind
    remote: bytes
    outcome: Outcome
    flows: list[int]
    sent: dict[int, tuple[int, bool]] = field(default_factory=dict)
    """By token: the flow, and whether the packet counts."""
    answers: set[int] = field(default_factory=set)
    began: set[int] = field(default_factory=set)
    at: dict[int, float] = field(default_factory=dict)
    """When each packet was sent, by its token."""
    next: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether no more packets need be sent."""
        if self.outcome.fault or self.outcome.left[Departure.WRONG] >= ENOUGH_WRONG:
            return True
        if self.kind is Kind.PING and not self._is_path_known:
            return False
        counted = Counter(
            flow for flow, counts in map(self.sent.__getitem__, self.answers) if counts
        )
        if len(self.flows) > 1:
            return all(counted[flow] for flow in self.flows)
        return counted.total() >= (ENOUGH_MARKED if self.kind in MARKS else ENOUGH)

    @property
    def _is_path_known(self) -> bool:
        """Whether enough pings were answered to say that the path loses none."""
        due = list(self.sent)[:-ON_THE_WAY]
        return len(self.sent) >= PINGS and self.answers.issuperset(due)

    @property
    def is_answered(self) -> bool:
        """Whether nothing more need be waited for: of pings every answer counts."""
        is_whole = self.kind is not Kind.PING or len(self.answers) == len(self.sent)
        return self.is_settled and (is_whole or bool(self.outcome.fault))

    def lost_flows(self) -> int:
        """Return how many flows have no answer that counts."""
        sent = Counter(flow for flow, counts in self.sent.values() if counts)
        alive = {self.sent[token][0] for token in self.answers if self.sent[token][1]}
        return sum(number >= LOST_FLOW for flow, number in sent.items() if flow not in alive)

    def draw(self) -> tuple[int, int]:
        """Return the flow and the token of the next packet."""
        flow = self.flows[self.next % len(self.flows)]
        token = random.getrandbits(16)
        while token in self.sent:
            token = random.getrandbits(16)
        self.next += 1
        return flow, token

    def note(self, flow: int, token: int) -> None:
        """A packet has been sent."""
        counts = flow in self.began or self.kind in SOCKETS
        self.began.add(flow)
        self.sent[token] = (flow, counts)
        self.at[token] = time.monotonic()
        self.outcome.sent += counts
        if counts:
            self.outcome.sent_at.append(self.at[token])

    def take(self, token: int) -> bool:
        """An answer came; tell whether it answers a packet of ours that counts."""
        if token not in self.sent:
            return False
        counts = self.sent[token][1]
        if token not in self.answers:
            self.answers.add(token)
            self.outcome.answered += counts
            if counts:
                self.outcome.answered_at.append(self.at[token])
        return counts


class Prober:
    """Sends probes to remote ends and collects what comes of them.

    ports: what those of the tunnels carry. underlays: numbers of the devices that carry these.
    mark: of kube-proxy; None if there is none, and then no marked packets are sent.
    extent: how much is asked.
    """

    def __init__(
        self,
        remotes: Sequence[Remote],
        ports: Protocols,
        underlays: Collection[int],
        mark: int | None,
        extent: Extent = Extent(),
    ) -> None:
        self._extent = extent
        self._policy = Policy.of(ports)
        self._ports, self._underlays, self._mark = ports, underlays, mark
        self.result = Probes([Probed(remote) for remote in remotes])
        self._series: dict[tuple[Kind, bytes], _Series] = {}
        self._outcomes = {
            ip_address(one.remote.address).packed: one.outcomes for one in self.result.probed
        }
        self._sends: list[tuple[_Series, Callable[[int, int], None]]] = []
        self._connects: list[tuple[_Series, Remote]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._taps: list[TapSocket] = []

    async def run(self, progress: Callable[[float], None] = lambda _: None) -> Probes:
        """Probe; progress is called with the part that is done, 0 to 1."""
        sockets = contextlib.ExitStack()
        try:
            with contextlib.ExitStack() as readers:
                self._open(sockets, readers)
                await self._rounds(progress)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            # Closing a packet socket takes milliseconds: the kernel calls synchronize_net().
            await asyncio.to_thread(sockets.close)
        for series in self._series.values():
            series.outcome.lost_flows = series.lost_flows()
        return self.result

    async def _rounds(self, progress: Callable[[float], None]) -> None:
        last = time.monotonic() + LONGEST
        idle = 0
        for number in range(ROUNDS):
            began = time.monotonic()
            if began > last or self._is_decided:
                break
            progress(number / ROUNDS)
            idle = 0 if self._send_round(number) else idle + 1
            if idle and (self._extent.wanted is None or idle * INTERVAL > PATIENCE):
                break
            await asyncio.sleep(max(0.0, began + INTERVAL - time.monotonic()))
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends and not self._is_all_answered:
            await asyncio.sleep(INTERVAL)
        progress(1)

    def _send_round(self, number: int) -> bool:
        """Send a packet of each kind that is wanted; tell whether any is."""
        busy = False
        for series, send in self._sends:
            if self._is_wanted(series, number):
                busy = True
                self._send(series, send)
        for series, remote in self._connects:
            if self._is_wanted(series, number):
                busy = True
                if number % 2 == 0:
                    self._connect(series, remote)
        return busy

    def _is_wanted(self, series: _Series, number: int = 0) -> bool:
        """Tell whether more packets of a kind can say more."""
        if self._extent.wanted:
            outcomes = self._outcomes[series.remote]
            return not series.outcome.fault and series.kind in self._extent.wanted(
                outcomes, number
            )
        if series.is_settled:
            return False
        # They stand in for SYN packets where a firewall drops those.
        syn = self._series.get((Kind.SYN, series.remote))
        return not (series.kind is Kind.PING_OFFLOADED and syn and syn.is_settled)

    @property
    def _is_decided(self) -> bool:
        return all(self._extent.decided(probed.outcomes) for probed in self.result.probed)

    @property
    def _is_all_answered(self) -> bool:
        return self._extent.wanted is not None or all(
            series.is_answered or not (series.kind is Kind.PING or self._is_wanted(series))
            for series in self._series.values()
        )

    # Sending

    def _send(self, series: _Series, send: Callable[[int, int], None]) -> None:
        flow, token = series.draw()
        try:
            send(flow, token)
        except OSError as error:
            if error.errno in (errno.ENOBUFS, errno.EAGAIN, errno.EPERM):  # EPERM: a local rule
                series.note(flow, token)
            else:
                series.outcome.fault = error.strerror or "it cannot be sent"
        else:
            series.note(flow, token)

    def _connect(self, series: _Series, remote: Remote) -> None:
        flow, token = series.draw()
        series.note(flow, token)
        task = asyncio.get_running_loop().create_task(self._try(series, remote, token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try(self, series: _Series, remote: Remote, token: int) -> None:
        """Try to connect to a port that is closed, or else closes at once."""
        family = socket.AF_INET6 if remote.version == 6 else socket.AF_INET  # noqa: PLR2004
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                if series.kind is not Kind.CONNECT:
                    sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self._mark or 0)
                if series.kind is Kind.MARKED_HOST:
                    sock.bind((host_address(remote.version), 0))
                # Beyond a second the kernel would repeat the SYN.
                async with asyncio.timeout(PATIENCE):
                    await asyncio.get_running_loop().sock_connect(
                        sock, (remote.address, int(series.kind))
                    )
                series.take(token)
            except ConnectionRefusedError:
                series.take(token)
            except TimeoutError:
                pass
            except OSError as error:
                if error.errno not in (errno.EHOSTUNREACH, errno.EPERM):
                    series.outcome.fault = error.strerror or "no socket"

    # Opening

    def _open(self, stack: contextlib.ExitStack, readers: contextlib.ExitStack) -> None:
        loop = asyncio.get_running_loop()
        try:
            for index in self._underlays if self._extent.watch else ():
                for direction in (Direction.OUT, Direction.IN):
                    tap = TapSocket(index, self._ports.keys(), direction, probepackets.NUMBERS)
                    stack.callback(tap.close)
                    self._taps.append(tap)
                    loop.add_reader(tap, self._watch, tap, direction)
                    readers.callback(loop.remove_reader, tap.fileno())
            devices = {probed.remote.device for probed in self.result.probed}
            senders = {device: self._packet_socket(stack, readers, device) for device in devices}
        except PermissionError:
            self.result.blind = "CAP_NET_RAW is missing"
            senders = {}
        except OSError as error:
            self.result.blind = error.strerror or "packet sockets do not work"
            senders = {}
        for probed in self.result.probed:
            self._plan(stack, readers, probed, senders)

    def _packet_socket(
        self, stack: contextlib.ExitStack, readers: contextlib.ExitStack, device: int
    ) -> socket.socket:
        """Return what sends frames by a device; answers are read from another socket."""
        answers = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        answers.setblocking(False)
        attach(answers, answers_in(probepackets.NUMBERS))
        bind(answers, device)
        loop = asyncio.get_running_loop()
        loop.add_reader(answers, self._listen, answers)
        readers.callback(loop.remove_reader, answers)
        sender = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        sender.setblocking(False)
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        attach(sender, REJECT)
        bind(sender, device)
        return sender

    def _plan(
        self,
        stack: contextlib.ExitStack,
        readers: contextlib.ExitStack,
        probed: Probed,
        senders: Mapping[int, socket.socket],
    ) -> None:
        """Decide which kinds of probes a remote end gets."""
        remote = probed.remote
        sender = senders.get(remote.device)
        if sender and remote.dest_mac and remote.source_mac and remote.source:
            frames = _Frames(remote, sender)
            for kind in self._wanted(FRAMES):
                self._sends.append((self._begin(probed, kind), frames.of(kind)))
            if remote.vtep:
                self._plan_datagrams(stack, probed)
        elif self._extent.wanted is None:
            self._plan_ping(stack, readers, probed)
        for kind in self._wanted(SOCKETS):
            if kind in MARKS and self._mark is None:
                continue
            if kind is Kind.MARKED_HOST and host_address(remote.version) in ("", remote.source):
                continue
            self._connects.append((self._begin(probed, kind), remote))

    def _wanted(self, kinds: Collection[Kind]) -> list[Kind]:
        return [kind for kind in kinds if kind in self._extent.kinds]

    def _begin(self, probed: Probed, kind: Kind) -> _Series:
        outcome = probed.outcomes[kind] = Outcome()
        low, high = 40000, 60000
        flows = random.sample(range(low, high), self._extent.flows.get(kind, 1))
        remote = ip_address(probed.remote.address).packed
        self._series[kind, remote] = _Series(kind, remote, outcome, flows)
        return self._series[kind, remote]

    def _plan_datagrams(self, stack: contextlib.ExitStack, probed: Probed) -> None:
        remote = probed.remote
        family = socket.AF_INET6 if ":" in remote.vtep else socket.AF_INET
        for kind in self._wanted(DATAGRAMS):
            form = socket.SOCK_RAW if kind is Kind.WRAPPED else socket.SOCK_DGRAM
            series = self._begin(probed, kind)
            try:
                sock = stack.enter_context(socket.socket(family, form, socket.IPPROTO_UDP))
                attach(sock, REJECT)
                sock.setblocking(False)
                port = 0 if form is socket.SOCK_RAW else remote.tunnel.port
                sock.connect((remote.vtep, port))
            except OSError as error:
                series.outcome.fault = error.strerror or "no socket"
            else:
                send = _wrapped(remote, kind, sock, raw=form is socket.SOCK_RAW)
                self._sends.append((series, send))

    def _plan_ping(
        self, stack: contextlib.ExitStack, readers: contextlib.ExitStack, probed: Probed
    ) -> None:
        """Ping by a socket for which no privileges are needed, if the host permits that."""
        if Kind.PING not in self._extent.kinds:
            return
        remote, series = probed.remote, self._begin(probed, Kind.PING)
        is_v4 = remote.version == 4  # noqa: PLR2004
        family = socket.AF_INET if is_v4 else socket.AF_INET6
        protocol = socket.IPPROTO_ICMP if is_v4 else socket.IPPROTO_ICMPV6
        try:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM, protocol))
            sock.setblocking(False)
            sock.connect((remote.address, 0))
        except OSError as error:
            series.outcome.fault = error.strerror or "no socket"
            return
        kind = probepackets.ECHO_REQUESTS[remote.version]

        def send(_flow: int, token: int) -> None:
            sock.send(probepackets.MESSAGE.pack(kind, 0, 0, 0, token) + bytes(PING_DATA))

        def read() -> None:
            with contextlib.suppress(OSError):
                data = sock.recv(2048)
                if len(data) >= probepackets.MESSAGE.size:
                    series.take(probepackets.MESSAGE.unpack_from(data)[4])

        loop = asyncio.get_running_loop()
        loop.add_reader(sock, read)
        readers.callback(loop.remove_reader, sock)
        self._sends.append((series, send))

    # Watching

    def _listen(self, sock: socket.socket) -> None:
        for _ in range(READ):
            try:
                data = sock.recv(2048)
            except OSError:
                return
            self._answered(probepackets.answer(data))

    def _answered(self, seen: Seen | None) -> Outcome | None:
        """Count an answer; return the outcome that it belongs to, None if to none of ours."""
        series = self._of(seen)
        if seen is None or series is None:
            return None
        # What an ordinary socket sends has a sequence number that only the kernel knows.
        is_ours = series.kind in SOCKETS or series.take(seen.token)
        return series.outcome if is_ours else None

    def _of(self, seen: Seen | None) -> _Series | None:
        with contextlib.suppress(ValueError):
            return self._series.get((Kind(seen.number), seen.remote)) if seen else None
        return None

    def _watch(self, tap: TapSocket, direction: Direction) -> None:
        for _ in range(READ):
            try:
                packet = tap.read()
            except OSError:  # the device went down; it may come back
                return
            if packet is None:
                return
            data = bytes(packet.data)
            seen = inspect(data, self._policy)
            if direction is Direction.OUT:
                self._departed(data, packet, seen)
            else:
                self._arrived(data, packet, seen)

    def _inner(self, data: bytes, seen: Inspection) -> bytes:
        """Return the inner packet from the IP header on; nothing if it is no tunnel's packet."""
        if seen.status is not Status.OK:
            return b""
        return data[inner_offset(data, self._ports[seen.dest]) + ETHERNET_HEADER :]

    def _departed(self, data: bytes, packet: Packet, seen: Inspection) -> None:
        series = self._of(probepackets.question(self._inner(data, seen)))
        if series is None:
            return
        departure = judge(seen, complete=packet.complete)
        source, dest = map(address_text, addresses(data))
        series.outcome.add_departed(seen, departure, (source, dest))

    def _arrived(self, data: bytes, packet: Packet, seen: Inspection) -> None:
        outcome = self._answered(probepackets.answer(self._inner(data, seen)))
        if outcome is None:
            return
        how = Circumstances(Direction.IN, packet.complete, tcp_data=False, length=len(data))
        outcome.arrived[arrivals.judge(seen, how).diagnosis] += 1
        outcome.sources.add(seen.source)


class _Frames:
    """Makes and sends the frames for one remote end."""

    def __init__(self, remote: Remote, sender: socket.socket) -> None:
        self._remote, self._sender = remote, sender
        self._ends = ends(remote)

    def of(self, kind: Kind) -> Callable[[int, int], None]:
        """Return what sends a frame of this kind, given its flow and its token."""
        is_complete = kind not in OFFLOADED
        if kind in (Kind.SYN, Kind.SYN_OFFLOADED):
            return lambda flow, token: self._send(
                probepackets.syn(self._ends, (flow, int(kind)), token, complete=is_complete)
            )
        if kind in (Kind.DATA, Kind.GSO):
            return lambda flow, token: self._send(
                probepackets.data(self._ends, (flow, int(kind)), token, gso=kind is Kind.GSO)
            )
        if kind is Kind.PING_OUTER:
            return lambda _, token: self._send(
                probepackets.echo_outer(self._ends, int(kind), token, PING_DATA)
            )
        length = PING_DATA
        if kind is Kind.PING_LARGE:
            length = probepackets.echo_data(self._remote.version, self._remote.mtu)
        return lambda _, token: self._send(
            probepackets.echo(self._ends, int(kind), token, length, complete=is_complete)
        )

    def _send(self, frame: bytes) -> None:
        self._sender.send(frame)


def ends(remote: Remote) -> Ends:
    """Return the inner ends of probes to a remote end."""
    source, dest = ip_address(remote.source).packed, ip_address(remote.address).packed
    return Ends(remote.source_mac, remote.dest_mac, source, dest)


def _wrapped(
    remote: Remote, kind: Kind, sock: socket.socket, *, raw: bool
) -> Callable[[int, int], None]:
    """Return what sends a tunnel datagram of our own to the VTEP."""
    here = ip_address(sock.getsockname()[0]).packed
    there = ip_address(remote.vtep).packed
    inside = ends(remote)

    def send(flow: int, token: int) -> None:
        frame = probepackets.echo(inside, int(kind), token, PING_DATA, complete=True)
        payload = probepackets.encapsulated(remote.tunnel.protocol, remote.tunnel.vni, frame)
        if raw:
            payload = probepackets.datagram(here, there, (flow, remote.tunnel.port), payload)
        sock.send(payload)

    return send


def host_address(version: int) -> str:
    """Return the address by which this host speaks to the world; empty if it has none."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET  # noqa: PLR2004
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((ELSEWHERE[version], 9))  # sends nothing
        return str(sock.getsockname()[0])
    return ""


def is_arriving_wrong(outcome: Outcome) -> bool:
    """Tell whether an answer arrived that is certainly wrong."""
    return bool(WRONG & outcome.arrived.keys())
