"""What the lab tests share: the service on the sender, and traffic across the tunnel."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from csumfix_lab import Lab
from csumfix_lab.node import Node
from csumfix_lab.process import Process
from tests.lab import peer

CSUMFIX = [sys.executable, "-m", "csumfix"]
PEER = str(Path(peer.__file__))
PORT = 53  # the one that kube-proxy's service forwards
READY_TIMEOUT = 10.0


HEALTHY = pytest.mark.parametrize("lab", ["none"], indirect=True)
ALONE = pytest.mark.alone
"""For tests of rates, times and CPU: `make test` runs them without others beside them."""
"""A lab without a bug of its own, so that whatever is lost was lost by us."""


QUEUE = "--lane=queue"
"""For what is about queues: by default they are not used unless something is wrong."""

SILENT = "--probe=off"
"""For tests that count packets, or want theirs to be the first."""

LANES = pytest.mark.parametrize("lane", ["--lane=auto", QUEUE])


class Service:
    """``csumfix run`` on a node, with its log kept."""

    def __init__(self, node: Node, *options: str, prefix: Sequence[str] = ()) -> None:
        self._node = node
        self.log = Path(f"/tmp/csumfix-test-{time.monotonic_ns()}.log")
        with self.log.open("w") as stream:
            self.process = node.popen(
                [*prefix, *CSUMFIX, "run", *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, beginning: str, timeout: float = READY_TIMEOUT, count: int = 1) -> str:
        """Wait for so many log lines with this beginning and return the last."""

        def last() -> str | None:
            found = [line for line in self.lines() if line.startswith(beginning)]
            return found[-1] if len(found) >= count else None

        return until(last, timeout, lambda: f"no line {beginning!r} in {self.lines()}")

    def status(self) -> dict[str, Any]:
        shown = self._node.run([*CSUMFIX, "status", "--json"], check=False)
        state: dict[str, Any] = json.loads(shown.stdout)
        return state

    def reasons(self) -> dict[str, int]:
        """Packets by reason over all queues."""
        total: dict[str, int] = {}
        for queue in self.status()["service"]["queues"].values():
            for reason, count in queue["reasons"].items():
                total[reason] = total.get(reason, 0) + count
        return total

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send the signal and return the exit code."""
        self.process.send_signal(sig)
        return self.process.wait(10)


def on_other_kernel(queues: str) -> list[str]:
    """Return a prefix that runs the service on a kernel with other queues; see other_kernel.py."""
    return [sys.executable, str(Path(__file__).with_name("other_kernel.py")), queues]


def leave_descriptors(daemon: Service, count: int) -> None:
    """Let the service open so many more files, and then no more."""
    pid = daemon.process.command_pid()
    used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    subprocess.run(["prlimit", f"--pid={pid}", f"--nofile={used + count}:4096"], check=True)


@contextmanager
def service(
    node: Node, *options: str, prefix: Sequence[str] = (), ready: float = READY_TIMEOUT
) -> Iterator[Service]:
    """Run the service; on leaving it must stop with 0 and leave no rule behind.

    prefix: a command that executes it.
    ready: seconds that it may take to become so.
    """
    daemon = Service(node, *options, prefix=prefix)
    try:
        daemon.wait_for("ready", ready)
        yield daemon
        if daemon.process.poll() is None:
            assert daemon.stop() == 0, daemon.lines()
            assert_no_rules(node)
    finally:
        daemon.process.kill()
        daemon.log.unlink()


def assert_no_rules(node: Node) -> None:
    """Nothing of ours is in table mangle."""
    for command in ("iptables", "ip6tables"):
        rules = node.run([command, "-t", "mangle", "-S"]).stdout
        assert "CSUMFIX" not in rules, rules


@contextmanager
def foreign_queue(node: Node, number: int) -> Iterator[None]:
    """Have another program bind a queue."""
    holder = node.popen(
        [
            *(sys.executable, "-c"),
            "import netfilterqueue, sys, time; q = netfilterqueue.NetfilterQueue();"
            "q.bind(int(sys.argv[1]), print); print('bound', flush=True); time.sleep(60)",
            str(number),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "bound\n"
        yield
    finally:
        holder.kill()
        holder.communicate()


T = TypeVar("T")


def start_watching(lab: Lab, *command: str) -> Process:
    """Start a csumfix command that watches what the receiver gets; return when that has begun."""
    process = lab.receiver.popen(
        [*CSUMFIX, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr
    assert "watching eth0" in process.stderr.readline()
    return process


def until(look: Callable[[], T | None], timeout: float, complaint: Callable[[], str]) -> T:
    """Look until something is seen."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        seen = look()
        if seen:
            return seen
        time.sleep(0.02)
    raise AssertionError(complaint())


@dataclass(frozen=True)
class Delivery:
    """What became of some datagrams.

    late: those that came after one which the same socket had sent later.
    """

    sent: int
    arrived: int
    intact: int
    different: int
    late: int

    @property
    def whole(self) -> bool:
        """Whether each datagram arrived exactly once, byte for byte."""
        return self.sent == self.arrived == self.intact == self.different


def address(lab: Lab) -> str:
    """Return where the client reaches the pod through the tunnel and into the bug."""
    return lab.service_ip if lab.cause.service else lab.pod_ip


class Sink:
    """A receiver of datagrams in the service pod, or at another address of its node.

    prefix: a command that executes it elsewhere on the node.
    """

    def __init__(
        self,
        lab: Lab,
        count: int,
        patience: float = 0.5,
        *,
        at: str | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self._count = count
        options = f"--count={count}", f"--patience={patience}"
        self._process = _sink(lab, "sink", *options, at=at, prefix=prefix)

    def delivery(self) -> Delivery:
        """Now that all is sent, wait until everything came, or nothing more does."""
        out, _ = self._process.communicate(timeout=60)
        return Delivery(self._count, **json.loads(out))


def _sink(
    lab: Lab, what: str, *options: str, at: str | None = None, prefix: Sequence[str] = ()
) -> Process:
    process = lab.receiver.popen(
        [*prefix, sys.executable, PEER, what, at or lab.pod_ip, str(PORT), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == "listening\n"
    return process


def sender(
    lab: Lab, count: int, size: int, *, flows: int = 1, rate: float = 0, to: str | None = None
) -> Process:
    """Start to send datagrams from the client."""
    return lab.client.popen(
        [
            *(sys.executable, PEER, "send", to or address(lab), str(PORT)),
            *(f"--count={count}", f"--size={size}", f"--flows={flows}", f"--rate={rate}"),
        ],
        stdin=subprocess.DEVNULL,
    )


def send(
    lab: Lab, count: int, size: int, *, flows: int = 1, rate: float = 0, to: str | None = None
) -> Delivery:
    """Send datagrams to the pod and tell what became of them.

    to: another address of the receiver instead.
    """
    sink = Sink(lab, count, at=to)
    assert sender(lab, count, size, flows=flows, rate=rate, to=to).wait(60) == 0
    return sink.delivery()


@contextmanager
def trickle(node: Node, to: str, *, prefix: Sequence[str] = ()) -> Iterator[None]:
    """Have fifty datagrams a second sent to an address.

    prefix: a command that executes the sender elsewhere on the node.
    """
    options = ["--size=64", "--flows=4", "--rate=50"]
    process = node.popen(
        [*prefix, sys.executable, PEER, "flood", to, str(PORT), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def send_while_stopped(lab: Lab, process: Process, count: int, size: int, rate: float) -> Delivery:
    """Send datagrams while a process is stopped, more than its socket holds; then let it go on."""
    # Many sockets: a packet in the queue counts against its socket's send buffer, so that one
    # socket alone would block long before the queue is full.
    sink = Sink(lab, count)
    process.send_signal(signal.SIGSTOP)
    assert sender(lab, count, size, flows=400, rate=rate).wait(30) == 0
    wait_for_datagrams(lab, 10_000)
    process.send_signal(signal.SIGCONT)
    return sink.delivery()


def tcp_arrives(lab: Lab, size: int) -> bool:
    """Transfer `size` bytes over TCP; tell whether they arrived whole."""
    sink = _sink(lab, "tcp-sink")
    client = [sys.executable, PEER, "tcp-send", address(lab), str(PORT), f"--size={size}"]
    if lab.client.run(client, check=False).returncode:
        sink.kill()
        sink.wait(5)
        return False
    out, _ = sink.communicate(timeout=30)
    return bool(json.loads(out) == {"bytes": size, "sha256": peer.tcp_digest(size)})


@dataclass(frozen=True)
class Order:
    """What became of the order of a TCP connection's packets."""

    total: int  # bytes
    intact: bool
    out_of_order: int  # segments that came before one that was sent earlier
    retransmitted: int  # segments


def pipeline(lab: Lab, seconds: float, rate: float = 0) -> Order:
    """Send pairs of messages of 1,400 and 20,000 bytes, at most `rate` pairs a second (0: any)."""
    sent, received = lab.client.all_counters(), lab.receiver.all_counters()
    sink = _sink(lab, "tcp-sink")
    client = [sys.executable, PEER, "pipeline", address(lab), str(PORT)]
    options = [f"--seconds={seconds}", f"--rate={rate}"]
    expected = json.loads(lab.client.run([*client, *options], timeout=seconds + 30).stdout)
    arrived = json.loads(sink.communicate(timeout=30)[0])
    now_sent, now_received = lab.client.all_counters(), lab.receiver.all_counters()
    return Order(
        total=arrived["bytes"],
        intact=arrived == expected,
        out_of_order=now_received["TcpExtTCPOFOQueue"] - received["TcpExtTCPOFOQueue"],
        retransmitted=now_sent["TcpRetransSegs"] - sent["TcpRetransSegs"],
    )


@dataclass(frozen=True)
class Lateness:
    """What became of the order of numbered datagrams."""

    late: int  # came after one with a higher number
    missing: int
    duplicates: int


def gso(lab: Lab, count: int, rate: float) -> Lateness:
    """Send `count` times a single UDP packet and a GSO packet of ten, `rate` times a second."""
    sink = _sink(lab, "order-sink", f"--count={count * sum(peer.SEGMENTS)}")
    client = [sys.executable, PEER, "gso-send", address(lab), str(PORT)]
    lab.client.run([*client, f"--count={count}", f"--rate={rate}"], timeout=count / rate + 30)
    return Lateness(**json.loads(sink.communicate(timeout=60)[0]))


SIZES = (64, 1400, 8000)
"""Of datagrams, in bytes: smaller than a packet, and, at an MTU of 9000, as large as one."""


def assert_all_arrives(lab: Lab) -> None:
    """Datagrams of every size and a transfer over TCP arrive whole, with no checksum error."""
    errors = checksum_errors(lab)
    for size in SIZES:
        assert send(lab, 50, size).whole, size
    assert tcp_arrives(lab, 2_000_000)
    assert checksum_errors(lab) == errors


def checksum_errors(lab: Lab) -> int:
    """Datagrams and segments that the receiver's kernel dropped for their checksums."""
    counters = lab.receiver.counters()
    return counters.in_csum_errors + counters.in_csum_errors6 + counters.tcp_in_csum_errors


def rules_text(node: Node) -> str:
    return node.run(["iptables", "-t", "mangle", "-S"]).stdout


def wait_for_rules(node: Node, word: str, *, present: bool = True, timeout: float = 1.0) -> None:
    """Wait until the rules have, or lack, a word."""
    until(lambda: (word in rules_text(node)) is present, timeout, lambda: rules_text(node))


def link(lab: Lab, command: str) -> None:
    lab.sender.run(["ip", "link", *command.split()])


def wait_for_datagrams(lab: Lab, number: int) -> None:
    """Wait until the sink has read this many."""
    until(
        lambda: lab.receiver.counters().in_datagrams >= number or None,
        5.0,
        lambda: str(lab.receiver.counters()),
    )


class Load:
    """Datagrams at a steady rate that go on while things are done to the service."""

    def __init__(self, lab: Lab, *, flows: int = 8, rate: float = 20_000) -> None:
        self._errors = checksum_errors(lab)
        self._lab = lab
        self._sink = _sink(lab, "sink", "--count=1000000000")
        self._process = lab.client.popen(
            [
                *(sys.executable, PEER, "flood", address(lab), str(PORT)),
                *("--size=512", f"--flows={flows}", f"--rate={rate}"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        wait_for_datagrams(lab, 2000)

    def delivery(self) -> Delivery:
        """Stop sending and tell what has arrived."""
        sent, _ = self._process.communicate(timeout=10)
        arrived, _ = self._sink.communicate(timeout=60)
        return Delivery(**json.loads(sent), **json.loads(arrived))

    def dropped(self) -> int:
        """Return how many packets the receiver has dropped for their checksums."""
        return checksum_errors(self._lab) - self._errors

    def assert_whole(self) -> Delivery:
        delivery = self.delivery()
        assert delivery.whole, delivery
        assert self.dropped() == 0
        return delivery

    def assert_whole_and_in_order(self) -> None:
        delivery = self.assert_whole()
        assert delivery.late == 0, delivery
