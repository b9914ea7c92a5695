"""TCP loads: iperf3 sends as fast as it can, messages.c sends messages of two sizes."""

from __future__ import annotations

import json
import math
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.clock import Window, busy_share, sleep_until
from bench.programs import START, TIMEOUT, WARM_UP, Count, binary, parse_count, running
from bench.stats import Sample
from csumfix_lab import Lab
from csumfix_lab.process import Process

PORT = 5301
BITS, GIGA, MEGA, MICRO = 8, 1e9, 1e6, 1e6


@dataclass(frozen=True)
class Order:
    """Counters of the kernels since their namespaces were created.

    out_of_order: TcpExtTCPOFOQueue of the receiver, packets that arrived before an earlier one.
    retransmitted: TcpRetransSegs of the sender.
    """

    out_of_order: int
    retransmitted: int


def counter(text: str, protocol: str, name: str) -> int:
    """Return one counter from /proc/net/snmp or netstat: one line of names, one of values."""
    names, values = (
        line.split()[1:] for line in text.splitlines() if line.startswith(f"{protocol}:")
    )
    return int(values[names.index(name)])


def _read(process: Process, name: str) -> str:
    # A process's /proc/PID/net shows its own network namespace.
    return Path(f"/proc/{process.command_pid()}/net/{name}").read_text(encoding="ascii")


def _order(sender: Process, receiver: Process) -> Order:
    return Order(
        out_of_order=counter(_read(receiver, "netstat"), "TcpExt", "TCPOFOQueue"),
        retransmitted=counter(_read(sender, "snmp"), "Tcp", "RetransSegs"),
    )


def judge_messages(got: Count, before: Order, after: Order, seconds: float, busy: float) -> Sample:
    """Turn the counts of the receiver and the kernels into a sample."""
    if got.window == 0 or got.bad:
        return Sample(None)
    return Sample(
        value=got.window * BITS / seconds / GIGA,
        cpu_us=busy * seconds * MICRO / (got.window / MEGA),
        out_of_order=(after.out_of_order - before.out_of_order) / seconds,
        retransmitted=(after.retransmitted - before.retransmitted) / seconds,
    )


def messages(lab: Lab, seconds: float) -> Sample:
    """Measure pipelined messages of two sizes on one connection."""
    window = Window.after(START + WARM_UP, seconds)
    target = [lab.pod_ip, str(PORT), str(window.start_ns), str(window.end_ns)]
    receive, send = ([binary("messages"), verb, *target] for verb in ("recv", "send"))
    with (
        running(lab.receiver, receive, ready=True) as receiver,
        running(lab.sender, send) as sender,
    ):
        try:
            sleep_until(window.start_ns)
            before = _order(sender, receiver)
            busy = busy_share(window)
            after = _order(sender, receiver)
        except FileNotFoundError:  # one has ended: they did not connect
            return Sample(None)
        text = receiver.communicate(timeout=TIMEOUT)[0]
        sender.communicate(timeout=TIMEOUT)
    if sender.returncode or receiver.returncode:
        return Sample(None)
    got = parse_count(text)
    return judge_messages(got, before, after, seconds, busy)


def parse_iperf(report: dict[str, Any], skip: float) -> float | None:
    """Return the server's rate after the first `skip` seconds, in Gbit/s."""
    sums = [interval["sum"] for interval in report.get("intervals", ())]
    counted = [one for one in sums if one["start"] >= skip - 0.01 and not one.get("omitted")]
    seconds = sum(one["seconds"] for one in counted)
    total = sum(one["bytes"] for one in counted)
    return total * BITS / seconds / GIGA if seconds and total else None


def bulk(lab: Lab, seconds: float) -> Sample:
    """Measure one connection of iperf3."""
    whole = math.ceil(WARM_UP + seconds)
    serve = ["iperf3", "-s", "-1", "-J", "-i", str(WARM_UP), "-B", lab.pod_ip]
    with running(lab.receiver, serve) as server:
        time.sleep(START)
        window = Window.after(START + WARM_UP, whole - START - WARM_UP)
        ask = ["iperf3", "-c", lab.pod_ip, "-t", str(whole), "--connect-timeout", "1000"]
        with running(lab.sender, ask) as client:
            busy = busy_share(window)
            try:
                client.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                return Sample(None)
        if client.returncode:
            return Sample(None)
        report = json.loads(server.communicate(timeout=TIMEOUT)[0])
    gbit = parse_iperf(report, WARM_UP)
    if gbit is None:
        return Sample(None)
    return Sample(value=gbit, cpu_us=busy * MICRO / (gbit * GIGA / BITS / MEGA))
