"""``csumfix trace``: it shows what leaves, and whatever happens to it, no packet is touched."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import IP

from csumfix.errors import Exit
from csumfix_lab import Lab
from csumfix_lab.node import Node
from tests.lab.harness import (
    ALONE,
    CSUMFIX,
    HEALTHY,
    QUEUE,
    READY_TIMEOUT,
    Load,
    rules_text,
    send,
    service,
    until,
)
from tests.packets import Shape, build

BLOCK = re.compile(r"^\d\d:\d\d:\d\d\.\d{6} .*(?:\n  .*)+\n", re.MULTILINE)
OVERHEAD = 20 + 8 + 8 + 14 + 20 + 8  # all headers of a datagram in the tunnel, over IPv4


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

    def wait_for_blocks(self, count: int) -> list[str]:
        return until(
            lambda: blocks if len(blocks := self.blocks()) >= count else None,
            10,
            lambda: str(self.blocks()),
        )

    def wait(self) -> None:
        """It must end by itself, as if nothing had happened."""
        assert self.process.wait(20) == 0, self.lines()
        assert len(self.lines()) == 2, self.lines()

    def stop(self, sig: int = signal.SIGINT) -> None:
        self.process.send_signal(sig)
        self.wait()

    def number(self, pattern: str) -> int:
        """Return a number of the last line, 0 if the line does not speak of it."""
        found = re.search(pattern, self.lines()[-1])
        return int(found[1]) if found else 0


@contextmanager
def tracer(
    lab: Lab, directory: Path, *options: str, stdout: int | None = None
) -> Iterator[Tracer]:
    """Trace; on leaving it must end with 0, and have changed no rule."""
    rules = rules_text(lab.sender)
    trace = Tracer(lab.sender, directory, *options, stdout=stdout)
    try:
        trace.wait_until_ready()
        yield trace
        if trace.process.poll() is None:
            trace.stop()
        assert rules_text(lab.sender) == rules
    finally:
        trace.process.kill()
        trace.process.wait(5)


# What it shows


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("cause", ["snat", "dnat"])
def test_it_shows_what_leaves_wrong_and_with_the_service_that_nothing_does(
    cause: str, ipv6: bool, tmp_path: Path
) -> None:
    with Lab(cause, ipv6=ipv6) as lab:
        with tracer(lab, tmp_path, "--bad-only") as trace:
            assert send(lab, 20, 64).arrived == 0, "being traced must not cure"
            blocks = trace.wait_for_blocks(20)
        assert len(blocks) == trace.number(r"(\d+) wrong") == trace.number(r"(\d+) shown") == 20
        end = r"\[2001:db8::{}\]" if ipv6 else r"192\.0\.2\.{}"
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d\.\d{6} flannel.1 VNI 1 WRONG: off by \d+\n"
            rf"  {end.format(1)}:\d+ > {end.format(2)}:8472\n"
            r"  outer 0x\w{4}, complete 0x\w{4}, inner \w+, \d+ bytes by eth0\n"
            r"  Ether / IP / UDP 10\.244\.0\.0:\d+ > 10\.244\.1\.10:domain .*\n",
            blocks[-1],
        ), blocks[-1]
        assert max(map(len, "".join(blocks).splitlines())) <= 100
        with service(lab.sender):
            with tracer(lab, tmp_path, "--bad-only") as trace:
                assert send(lab, 20, 64).whole
            assert trace.blocks() == []
            assert trace.number(r"(\d+) packets left") == 20
            with tracer(lab, tmp_path) as trace:
                assert send(lab, 20, 1400).whole
                assert all("VNI 1 right\n" in block for block in trace.wait_for_blocks(20))


def send_raw(node: Node, packet: bytes) -> None:
    """Send a packet from its IP header on; the kernel leaves its checksums alone."""
    program = (
        "import socket, sys; data = bytes.fromhex(sys.argv[1]);"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW);"
        "s.sendto(data, (socket.inet_ntoa(data[16:20]), 0))"
    )
    node.run(["python3", "-c", program, packet.hex()])


def in_underlay(data: bytes) -> bytes:
    """Give a built packet addresses that the lab routes, and a right IP header."""
    packet = IP(data, src="192.0.2.1", dst="192.0.2.2")
    del packet.chksum
    return bytes(packet)


@HEALTHY
def test_bad_only_tells_damage_from_a_wrong_header(lab: Lab, tmp_path: Path) -> None:
    good = build(Shape())
    damaged = good.with_bytes(good.inner_end - 1, b"\xff")
    with tracer(lab, tmp_path, "--bad-only") as trace:
        assert send(lab, 10, 64).whole
        send_raw(lab.sender, in_underlay(damaged.with_check(0x1234)))
        send_raw(lab.sender, in_underlay(good.with_check(0x1234)))
        corrupt, wrong = trace.wait_for_blocks(2)
    assert "port 8472 VNI 1193046 WRONG, and the inner packet is damaged: off by" in corrupt
    assert " inner corrupt, " in corrupt
    assert "port 8472 VNI 1193046 WRONG: off by" in wrong


def test_count_ends_it(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path, "--bad-only", "--count", "7") as trace:
        send(lab, 20, 64)
        trace.wait()
    assert len(trace.blocks()) == trace.number(r"(\d+) shown") == 7


def test_tshark_reads_the_capture(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pcapng"
    with tracer(lab, tmp_path, "--bad-only", "--count=3", f"--pcap={path}") as trace:
        send(lab, 10, 64)
        trace.wait()
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
    assert [row[:2] for row in rows] == [["0", "1"]] * 3  # 0: bad
    assert all(re.fullmatch(r"WRONG: off by \d+", row[2]) for row in rows)


@pytest.mark.parametrize("lane", ["--lane=kernel", QUEUE])
def test_long_packets_are_seen_whole(tmp_path: Path, lane: str) -> None:
    with Lab(mtu=9000) as lab, service(lab.sender, lane), tracer(lab, tmp_path) as trace:
        for length in (3840, 4016, 4097, 9000):
            assert send(lab, 2, length - OVERHEAD).whole, length
        blocks = trace.wait_for_blocks(8)
    sizes = [int(found[1]) for block in blocks if (found := re.search(r"(\d+) bytes by", block))]
    assert sizes == [3840, 3840, 4016, 4016, 4097, 4097, 9000, 9000]
    assert all("VNI 1 right\n" in block for block in blocks)


@pytest.mark.parametrize("name", ["vx-\u00fc", "[red]b"], ids=["utf-8", "signs"])
def test_devices_may_have_odd_names(lab: Lab, tmp_path: Path, name: str) -> None:
    lab.sender.run(["ip", "link", "set", "eth0", "down"])
    lab.sender.run(["ip", "link", "set", "eth0", "name", name])
    lab.sender.run(["ip", "link", "set", name, "up"])
    with tracer(lab, tmp_path, "--bad-only") as trace:
        assert trace.lines()[0].endswith(f"port 8472 on {name}; stop with Ctrl-C")
        send(lab, 2, 64)
        assert f"bytes by {name}\n" in trace.wait_for_blocks(1)[0]


def test_what_pods_have_written_is_decoded_without_root(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path) as trace:
        status = Path(f"/proc/{trace.process.command_pid()}/status").read_text()
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE), status
    assert re.search(r"^CapPrm:\t0+$", status, re.MULTILINE), status


# It touches no packet


@ALONE
@HEALTHY
@pytest.mark.parametrize("options", [(), ("--bad-only",)], ids=["all", "bad-only"])
def test_all_arrives_whether_it_keeps_up_or_not(
    lab: Lab, tmp_path: Path, options: tuple[str, ...]
) -> None:
    load = Load(lab)
    with tracer(lab, tmp_path, *options) as trace:
        time.sleep(2)
    load.assert_whole_and_in_order()
    assert trace.number(r"(\d+) packets left") > 1000


@HEALTHY
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_ends_it_and_loses_nothing(lab: Lab, tmp_path: Path, sig: signal.Signals) -> None:
    load = Load(lab, rate=5000)
    with tracer(lab, tmp_path) as trace:
        trace.wait_for_blocks(10)
        if sig is signal.SIGKILL:
            trace.process.send_signal(sig)
            assert trace.process.wait(5) == -sig
        else:
            trace.stop(sig)
    load.assert_whole()


@HEALTHY
def test_a_closed_output_ends_it(lab: Lab, tmp_path: Path) -> None:
    load = Load(lab, rate=5000)
    with tracer(lab, tmp_path, stdout=subprocess.PIPE) as trace:
        assert trace.process.stdout
        assert trace.process.stdout.readline()
        trace.process.stdout.close()
        trace.wait()
    load.assert_whole()


@HEALTHY
def test_a_closed_output_ends_it_without_any_packet(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path, stdout=subprocess.PIPE) as trace:
        assert trace.process.stdout
        trace.process.stdout.close()
        trace.wait()


@HEALTHY
def test_an_output_that_nobody_reads_costs_sight_only(lab: Lab, tmp_path: Path) -> None:
    with tracer(lab, tmp_path, stdout=subprocess.PIPE) as trace:
        assert send(lab, 20_000, 1400, flows=8, rate=9_000).whole
        trace.stop()
    assert trace.number(r"(\d+) more were missed") > 1000


# Refusals: one line, the documented exit code, and nothing changed


def refused(lab: Lab, *arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    rules = rules_text(lab.sender)
    result = lab.sender.run([*prefix, *CSUMFIX, "trace", *arguments], check=False, timeout=20)
    assert rules_text(lab.sender) == rules
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
        send(lab, 200, 64)
        assert trace.process.wait(10) == Exit.BROKEN
        assert "No space left" in trace.lines()[-1]


def test_no_permission(lab: Lab) -> None:
    code, line = refused(lab, prefix=("setpriv", "--bounding-set=-net_raw"))
    assert code == Exit.PERMISSION
    assert "CAP_NET_RAW" in line


def test_no_device(lab: Lab) -> None:
    lab.sender.run(["ip", "link", "del", lab.device])
    code, line = refused(lab)
    assert code == Exit.NEGATIVE
    assert "--port" in line
