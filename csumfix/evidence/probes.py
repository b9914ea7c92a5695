"""Finds out which packets reach the other ends of tunnels, without any agent there.

Theory of operation
-------------------
A remote end is asked by packets to its inner address. A ping, or a TCP SYN to a closed port, is
answered by any kernel. The same packet is sent in two ways: with its inner checksum complete, and
with the inner checksum left to offload, as the packets of most programs are. If only the second is
lost, the checksum is what loses it. What leaves this host is watched at the underlay as well, so
that a wrong outer checksum is found even if nothing is ever answered. outcomes.py lists the kinds
of these packets.

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
import errno
import random
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from ipaddress import ip_address

from csumfix.core import Inspection, Policy, Status, inspect
from csumfix.evidence import arrivals, probepackets
from csumfix.evidence.arrivals import Circumstances
from csumfix.evidence.captures import address_text, addresses
from csumfix.evidence.departures import judge
from csumfix.evidence.outcomes import (
    DATAGRAMS,
    FRAMES,
    MARKS,
    SOCKETS,
    Extent,
    Kind,
    KindOutcome,
    Probed,
    Probes,
)
from csumfix.evidence.probepackets import Seen
from csumfix.evidence.probesenders import PING_DATA, Frames, host_address, wrapped
from csumfix.evidence.segments import ETHERNET_HEADER, inner_offset
from csumfix.evidence.series import Series
from csumfix.evidence.tapsocket import (
    SOL_PACKET,
    Direction,
    Packet,
    TapSocket,
    answers_in,
    attach,
    bind,
)
from csumfix.host.remotes import Remote
from csumfix.protocols import Protocols

ROUNDS = 40
INTERVAL = 0.05
LONGEST = 4.0
"""Seconds after which no more packets are sent, on a host that is too slow for all rounds."""

PATIENCE = 0.7
"""Seconds that the last answers may take."""

READ = 256
"""Packets that are read at once, before anything else gets its turn."""

PACKET_VNET_HDR = 15  # linux/if_packet.h
SO_MARK = 36  # asm-generic/socket.h
REJECT = [(0x06, 0, 0, 0)]  # a filter that lets no packet pass


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
        extent: Extent,
    ) -> None:
        self._extent = extent
        self._policy = Policy.of(ports)
        self._ports, self._underlays, self._mark = ports, underlays, mark
        self.result = Probes([Probed(remote) for remote in remotes])
        self._series: dict[tuple[Kind, bytes], Series] = {}
        self._outcomes = {
            ip_address(one.remote.address).packed: one.outcomes for one in self.result.probed
        }
        self._sends: list[tuple[Series, Callable[[int, int], None]]] = []
        self._connects: list[tuple[Series, Remote]] = []
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

    def _is_wanted(self, series: Series, number: int = 0) -> bool:
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

    def _send(self, series: Series, send: Callable[[int, int], None]) -> None:
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

    def _connect(self, series: Series, remote: Remote) -> None:
        flow, token = series.draw()
        series.note(flow, token)
        task = asyncio.get_running_loop().create_task(self._try(series, remote, token))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try(self, series: Series, remote: Remote, token: int) -> None:
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
            frames = Frames(remote, sender)
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

    def _begin(self, probed: Probed, kind: Kind) -> Series:
        outcome = probed.outcomes[kind] = KindOutcome()
        low, high = 40000, 60000
        flows = random.sample(range(low, high), self._extent.flows.get(kind, 1))
        remote = ip_address(probed.remote.address).packed
        self._series[kind, remote] = Series(kind, remote, outcome, flows)
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
                send = wrapped(remote, kind, sock, raw=form is socket.SOCK_RAW)
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

    def _answered(self, seen: Seen | None) -> KindOutcome | None:
        """Count an answer; return the outcome that it belongs to, None if to none of ours."""
        series = self._of(seen)
        if seen is None or series is None:
            return None
        # What an ordinary socket sends has a sequence number that only the kernel knows.
        is_ours = series.kind in SOCKETS or series.take(seen.token)
        return series.outcome if is_ours else None

    def _of(self, seen: Seen | None) -> Series | None:
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
