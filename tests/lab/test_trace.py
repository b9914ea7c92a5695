"""``csumfix trace``: it shows what it repairs, and whatever happens to it, no packet is lost."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.utils import PcapNgReader

from csumfix.errors import Exit
from csumfix.host.queues import PROC_QUEUES
from csumfix_lab import Lab
from csumfix_lab.node import Node
from tests.lab.shim import (
    READY_TIMEOUT,
    Sink,
    send,
    send_while_stopped,
    sender,
    service,
    until,
)
from tests.packets import Shape, build

CSUMFIX = [sys.executable, "-m", "csumfix"]
LAST_QUEUE = 65535
MAX_LENGTH = 3840  # of a traced packet
LOAD, RATE = 60_000, 9_000  # datagrams that outlast what is tested, and how many a second
OVERHEAD = 20 + 8 + 8 + 14 + 20 + 8  # all headers of a datagram in the tunnel, over IPv4
BLOCK = re.compile(r"^\d\d:\d\d:\d\d\.\d{6} .*(?:\n  .*)+\n", re.MULTILINE)


class Tracer:
    """``csumfix trace`` on a node; what it printed is in files, unless it prints elsewhere."""

    def __init__(self, node: Node, directory: Path, *options: str, stdout: int | None) -> None:
        self._out, self._err = directory / "out", directory / "err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = node.popen(
                [*CSUMFIX, "trace", *options],
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err,
            )

    def lines(self) -> list[str]:
        return self._err.read_text().splitlines()

    def wait_until_ready(self) -> None:
        until(
            lambda: any(line.startswith("csumfix: tracing") for line in self.lines()) or None,
            READY_TIMEOUT,
            lambda: f"not ready: {self.lines()}",
        )

    def blocks(self) -> list[str]:
        """What was printed, packet by packet."""
        text = self._out.read_text()
        found = BLOCK.findall(text)
        assert "".join(found) == text
        return found

    def wait(self) -> None:
        """It must end by itself, as if nothing had happened."""
        assert self.process.wait(20) == 0, self.lines()
        assert len(self.lines()) == 2, self.lines()

    def stop(self, sig: int = signal.SIGINT) -> None:
        self.process.send_signal(sig)
        self.wait()

    def summary(self, what: str) -> int:
        """Return a number of the last line, from the words around it: "showed #,"."""
        found = re.search(re.escape(what).replace(r"\#", r"(\d+)"), self.lines()[-1])
        assert found, self.lines()
        return int(found[1])


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    cause, mtu = getattr(request, "param", ("none", 1500))
    with Lab(cause=cause, mtu=mtu) as lab:
        yield lab


def in_lab(cause: str, mtu: int = 1500) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("lab", [(cause, mtu)], indirect=True, ids=[cause])


@contextmanager
def tracer(
    lab: Lab, directory: Path, *options: str, stdout: int | None = None
) -> Iterator[Tracer]:
    """Trace; on leaving it must end with 0 and leave nothing behind."""
    trace = Tracer(lab.sender, directory, *options, stdout=stdout)
    try:
        trace.wait_until_ready()
        yield trace
        if trace.process.poll() is None:
            trace.stop()
        assert_nothing_left(lab.sender)
    finally:
        trace.process.kill()
        trace.process.wait(5)


def mangle(node: Node) -> str:
    return node.run(["iptables", "-t", "mangle", "-S"]).stdout


def rules_of(node: Node, chain: str) -> list[str]:
    return re.findall(rf"^-A {chain} .*", mangle(node), re.MULTILINE)


def postrouting(node: Node) -> list[str]:
    return rules_of(node, "POSTROUTING")


def queues(node: Node) -> set[int]:
    lines = node.run(["cat", str(PROC_QUEUES)]).stdout.splitlines()
    return {int(line.split()[0]) for line in lines}


def assert_nothing_left(node: Node) -> None:
    for command in ("iptables", "ip6tables"):
        assert "TRACE" not in node.run([command, "-t", "mangle", "-S"]).stdout
    assert LAST_QUEUE not in queues(node)


def wait_for_datagrams(lab: Lab, number: int) -> None:
    until(
        lambda: lab.receiver.counters().in_datagrams >= number or None,
        20.0,
        lambda: str(lab.receiver.counters()),
    )


# What it shows


@in_lab("dnat")
def test_wrong_packets_are_shown_before_and_after_and_arrive(lab: Lab, tmp_path: Path) -> None:
    lab.start_dns()
    assert lab.query(lab.pod_ip) is None
    with tracer(lab, tmp_path, "--bad-only") as trace:
        assert lab.query(lab.pod_ip) == lab.pod_ip
    (block,) = trace.blocks()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{6} flannel.1 VNI 1 rewritten: "
        r"repaired 0x(\w{4}) -> 0x(\w{4}) \(recomputed\)\n"
        r"  192\.0\.2\.1:\d+ > 192\.0\.2\.2:8472\n"
        r"  outer 0x\1 should be 0x\2 \(difference \d+\) inner right, \d+ bytes\n"
        r"  Ether / IP / UDP 10\.244\.0\.0:\d+ > 10\.244\.1\.10:domain "
        r"/ DNS Qry b'db\.lab\.test\.'\n",
        block,
    ), block
    assert trace.summary("(# recomputed)") == trace.summary("# handed on") == 1
    assert lab.query(lab.pod_ip) is None  # the trace, and nothing else, was the cure


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("cause", ["snat", "dnat", "kube-proxy", "forwarded"])
def test_every_cause_is_cured_while_it_runs(cause: str, ipv6: bool, tmp_path: Path) -> None:
    options = ("--port", "8472") if cause == "forwarded" else ()
    with Lab(cause, ipv6=ipv6) as lab:
        assert not send(lab, 10, 64).whole
        with tracer(lab, tmp_path, *options) as trace:
            for size in (64, 1400):
                assert send(lab, 20, size).whole
        assert not send(lab, 10, 64).whole
    blocks = trace.blocks()
    assert len(blocks) >= 40
    # Source NAT comes after us: what it would break is still right when it is seen.
    wrong = cause in ("dnat", "forwarded")
    assert sum("rewritten: repaired 0x" in block for block in blocks) == (40 if wrong else 0)
    assert max(map(len, "".join(blocks).splitlines())) <= 100


def send_raw(node: Node, packet: bytes) -> None:
    """Send a packet from its IP header on; the kernel leaves its checksums alone."""
    program = (
        "import socket, sys; data = bytes.fromhex(sys.argv[1]);"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW);"
        "s.sendto(data, (socket.inet_ntoa(data[16:20]), 0))"
    )
    node.run([sys.executable, "-c", program, packet.hex()])


def in_underlay(data: bytes) -> bytes:
    """Give a built packet addresses that the lab routes, and a right IP header."""
    packet = IP(data, src="192.0.2.1", dst="192.0.2.2")
    del packet.chksum
    return bytes(packet)


def test_bad_only_shows_what_was_wrong_repaired_or_not(lab: Lab, tmp_path: Path) -> None:
    good = build(Shape())
    damaged = good.with_bytes(good.inner_end - 1, b"\xff")
    with tracer(lab, tmp_path, "--bad-only") as trace:
        assert send(lab, 10, 64).whole
        send_raw(lab.sender, in_underlay(damaged.with_check(0x1234)))
        send_raw(lab.sender, in_underlay(good.with_check(0x1234)))
        until(lambda: len(trace.blocks()) == 2 or None, 5, lambda: str(trace.blocks()))
    corrupt, rewritten = trace.blocks()
    assert "port 8472 VNI 1193046 corrupt: left alone (inner_corrupt)\n" in corrupt
    assert " inner corrupt, " in corrupt
    assert "rewritten: repaired 0x1234 -> 0x" in rewritten
    assert trace.summary("# right") >= 10


def test_count_stops_it_and_loses_nothing(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path, "--count", "25") as trace:
        sink = Sink(lab, LOAD)
        load = sender(lab, LOAD, 512, flows=8, rate=RATE)
        trace.wait()
        assert load.poll() is None, "the load ended too early to prove anything"
        assert load.wait(30) == 0
        assert sink.delivery().whole
    assert len(trace.blocks()) == trace.summary("# handed on") == 25


@in_lab("dnat")
def test_the_capture_shows_bad_then_good_to_wireshark(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pcapng"
    with tracer(lab, tmp_path, "--bad-only", "--count=3", f"--pcap={path}") as trace:
        assert send(lab, 10, 64).whole
        trace.wait()
    with PcapNgReader(str(path)) as reader:
        packets = list(reader)
    assert len(packets) == 6
    for before, after in zip(packets[::2], packets[1::2], strict=True):
        assert before.time == after.time
        assert bytes(before)[:26] + bytes(before)[28:] == bytes(after)[:26] + bytes(after)[28:]
    fields = ("udp.checksum.status", "vxlan.vni", "frame.comment")
    shown = subprocess.run(
        [
            *("tshark", "-r", path, "-o", "udp.check_checksum:TRUE", "-d", "udp.port==8472,vxlan"),
            *("-T", "fields", "-E", "occurrence=f", *(f"-e{field}" for field in fields)),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    rows = [line.split("\t") for line in shown]
    assert [row[:2] for row in rows] == [["0", "1"], ["1", "1"]] * 3  # 0: bad, 1: good
    assert all(row[2].startswith("before: rewritten, outer 0x") for row in rows[::2])
    assert all(row[2] == "after: recomputed" for row in rows[1::2])


# Beside the service


def test_it_stands_before_the_service_whoever_came_first(lab: Lab, tmp_path: Path) -> None:
    lab.sender.run(["iptables", "-t", "mangle", "-A", "POSTROUTING", "-p", "tcp", "-j", "RETURN"])
    foreign = mangle(lab.sender)
    with tracer(lab, tmp_path):
        with service(lab.sender) as shim:
            together = postrouting(lab.sender)
            assert [rule.split()[-1] for rule in together] == [
                "RETURN",
                "CSUMFIX-TRACE",
                "CSUMFIX",
            ]
            assert shim.process.poll() is None
        assert "CSUMFIX-TRACE" in mangle(lab.sender)
    assert mangle(lab.sender) == foreign
    with service(lab.sender) as shim:
        alone = mangle(lab.sender)
        with tracer(lab, tmp_path):
            assert postrouting(lab.sender) == together
            assert queues(lab.sender) == {0, LAST_QUEUE}
            assert send(lab, 10, 64).whole
            assert shim.status()["service"]["queues"]["0"]["packets"] == 0
        assert mangle(lab.sender) == alone
        assert send(lab, 10, 64).whole
        assert shim.status()["service"]["queues"]["0"]["packets"] == 10


@in_lab("dnat")
@pytest.mark.parametrize("rate", [8_000, 30_000])
def test_coming_and_going_beside_the_service_loses_nothing(
    lab: Lab, tmp_path: Path, rate: int
) -> None:
    """Every packet needs repair here; those beyond the trace's limit get it from the service."""
    count = 8 * rate
    with service(lab.sender):
        sink = Sink(lab, count)
        load = sender(lab, count, 256, flows=64, rate=rate)
        wait_for_datagrams(lab, rate // 4)
        with tracer(lab, tmp_path) as trace:
            before = lab.receiver.counters().in_datagrams
            wait_for_datagrams(lab, before + rate // 2)
        assert load.poll() is None, "the load ended too early to prove anything"
        assert load.wait(60) == 0
        assert sink.delivery().whole
    assert trace.summary("# let through") == 0
    assert trace.summary("# recomputed") > 0


def test_the_policy_is_the_services(lab: Lab, tmp_path: Path) -> None:
    zero = in_underlay(build(Shape()).with_check(0))
    with service(lab.sender, "--zero=fill", "--divert=nat", "--port=5000"):
        with tracer(lab, tmp_path) as trace:
            (no_nat, _) = rules_of(lab.sender, "CSUMFIX-TRACE")
            assert "--ctstatus CONFIRMED" in no_nat
            assert trace.lines() == ["csumfix: tracing port 5000 8472; Ctrl-C ends it"]
            send_raw(lab.sender, zero)
        (block,) = trace.blocks()
        assert "zero: repaired 0x0000 -> 0x" in block


# Nothing is lost


@pytest.mark.parametrize("options", [(), ("--bad-only",)], ids=["all", "bad-only"])
def test_a_flood_loses_nothing(lab: Lab, tmp_path: Path, options: tuple[str, ...]) -> None:
    with tracer(lab, tmp_path, *options) as trace:
        sink = Sink(lab, 100_000)
        assert sender(lab, 100_000, 512, flows=64, rate=30_000).wait(60) == 0
        assert sink.delivery().whole
    traced, passed = trace.summary("traced # packets"), trace.summary("# passed by")
    assert traced + passed + trace.summary("# let through") == 100_000
    assert trace.summary("# handed on") == len(trace.blocks())


def test_what_pods_have_written_is_decoded_without_root(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path) as trace:
        children = Path(f"/proc/{trace.process.command_pid()}/task").glob("*/children")
        (display,) = "".join(each.read_text() for each in children).split()
        status = Path(f"/proc/{display}/status").read_text()
        assert "CapEff:\t0000000000000000\n" in status
        assert send(lab, 1, 64).whole


def test_a_frozen_trace_lets_through_what_its_socket_can_not_hold(
    lab: Lab, tmp_path: Path
) -> None:
    with tracer(lab, tmp_path, "--bad-only") as trace:
        assert send_while_stopped(lab, trace.process, 30_000, 1400, 9_000).whole
    assert trace.summary("# let through") > 10_000
    assert trace.summary("traced #") + trace.summary("# let through") == 30_000 - trace.summary(
        "# passed by"
    )


@pytest.mark.parametrize("lab", [("none", 9000), ("forwarded", 9000)], indirect=True)
def test_long_packets_go_by_whole(lab: Lab, tmp_path: Path) -> None:
    # Marks and a forwarding device lengthen what the kernel tells beside a packet.
    for chain in ("FORWARD", "OUTPUT"):
        mark = ["-t", "mangle", "-A", chain, "-j", "MARK", "--set-mark", "5"]
        lab.sender.run(["iptables", *mark])
    forwarded = lab.cause.guest
    with service(lab.sender, "--port=8472"), tracer(lab, tmp_path) as trace:
        for length in (MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 1, 4016, 4096, 8900):
            assert send(lab, 10, length - OVERHEAD).whole, length
    assert trace.summary("traced # packets") == 20
    assert trace.summary("# passed by") == 40
    assert len([b for b in trace.blocks() if "repaired" in b]) == (20 if forwarded else 0)


def test_a_closed_output_ends_it_and_loses_nothing(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path, stdout=subprocess.PIPE) as trace:
        sink = Sink(lab, LOAD)
        load = sender(lab, LOAD, 512, flows=8, rate=RATE)
        assert trace.process.stdout
        assert trace.process.stdout.readline()
        trace.process.stdout.close()
        trace.wait()
        assert load.poll() is None, "the load ended too early to prove anything"
        assert load.wait(30) == 0
        assert sink.delivery().whole


def test_a_closed_output_ends_it_without_any_packet(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path, stdout=subprocess.PIPE) as trace:
        assert trace.process.stdout
        trace.process.stdout.close()
        trace.wait()


def test_an_output_that_nobody_reads_costs_lines_only(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path, stdout=subprocess.PIPE) as trace:
        assert send(lab, 20_000, 512, flows=8, rate=9_000).whole
        trace.stop()
        assert trace.summary("# not, for want of speed") > 10_000
        assert trace.summary("# let through") == 0


# Ends


@pytest.mark.parametrize(
    "sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda s: s.name
)
def test_a_signal_under_load_loses_nothing(lab: Lab, tmp_path: Path, sig: signal.Signals) -> None:
    with tracer(lab, tmp_path) as trace:
        sink = Sink(lab, LOAD)
        load = sender(lab, LOAD, 512, flows=8, rate=RATE)
        wait_for_datagrams(lab, 2000)
        trace.process.send_signal(sig)
        trace.stop(sig)  # and once more, as people do
        assert load.poll() is None, "the load ended too early to prove anything"
        assert load.wait(30) == 0
        assert sink.delivery().whole


def test_traffic_goes_on_after_kill_9(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path) as trace:
        sink = Sink(lab, LOAD)
        load = sender(lab, LOAD, 512, flows=8, rate=RATE)
        wait_for_datagrams(lab, 2000)
        trace.process.send_signal(signal.SIGKILL)
        assert trace.process.wait(5) == -signal.SIGKILL
        assert load.wait(30) == 0
        delivery = sink.delivery()
        assert delivery.sent - delivery.arrived < 4096  # what was queued dies with its owner
        assert delivery.intact == delivery.different == delivery.arrived
        assert send(lab, 100, 1400).whole
        assert "CSUMFIX-TRACE" in mangle(lab.sender)
        with tracer(lab, tmp_path):  # the next one clears what it left behind
            assert send(lab, 100, 1400).whole


def test_the_operator_can_clear_what_a_killed_one_left(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path) as trace:
        trace.process.send_signal(signal.SIGKILL)
        trace.process.wait(5)
        lab.sender.run([*CSUMFIX, "rules", "remove"])
        assert "CSUMFIX-TRACE" in mangle(lab.sender)
        lab.sender.run([*CSUMFIX, "rules", "remove", "--trace"])


# Refusals: one line, the documented exit code, and nothing changed


def refused(lab: Lab, *arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    rules = mangle(lab.sender)
    result = lab.sender.run([*prefix, *CSUMFIX, "trace", *arguments], check=False, timeout=20)
    assert mangle(lab.sender) == rules
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stdout == ""
    return result.returncode, result.stderr


@pytest.mark.parametrize("path", ["/proc/nowhere/x.pcapng", "/proc", "/dev/full"])
def test_file_cannot_be_written(lab: Lab, path: str) -> None:
    code, line = refused(lab, "--pcap", path)
    assert code == Exit.USAGE
    assert path in line


def test_disk_full(lab: Lab, tmp_path: Path) -> None:
    lab.sender.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", "/mnt"])
    with tracer(lab, tmp_path, "--pcap", "/mnt/x.pcapng") as trace:
        assert send(lab, 200, 64).whole
        assert trace.process.wait(10) == Exit.BROKEN
        assert "No space left" in trace.lines()[-1]
        assert_nothing_left(lab.sender)


def test_no_permission(lab: Lab) -> None:
    code, line = refused(lab, prefix=("setpriv", "--bounding-set=-net_admin"))
    assert code == Exit.PERMISSION
    assert "CAP_NET_ADMIN" in line


def test_iptables_missing(lab: Lab, tmp_path: Path) -> None:
    hide = 'for d in /usr/sbin /sbin; do mount -t tmpfs none $d; done; exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", hide, "sh")
    code, line = refused(lab, "--pcap", str(tmp_path / "x.pcapng"), prefix=prefix)
    assert code == Exit.MISSING
    assert "apt-get install iptables" in line
    assert not (tmp_path / "x.pcapng").exists()


def test_no_device(lab: Lab) -> None:
    lab.sender.run(["ip", "link", "del", lab.device])
    code, line = refused(lab)
    assert code == Exit.NEGATIVE
    assert "--port" in line


def test_queue_in_use(lab: Lab) -> None:
    with service(lab.sender):
        code, line = refused(lab, "--queue=0")
        assert code == Exit.IN_USE
        assert "queue 0" in line


def test_a_second_trace_refuses(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path):
        code, line = refused(lab)
        assert code == Exit.IN_USE
        assert "runs already" in line
        assert send(lab, 10, 64).whole
