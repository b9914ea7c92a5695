"""Builds a lab for an operator, explains it, and runs a shell or a command in it."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from csumfix_lab.lab import Lab

_COUNTERS = "UdpInCsumErrors Udp6InCsumErrors TcpInCsumErrors"
_SIGNAL_EXIT = 128  # shells add this to the number of the signal that ended a command


def _shell(lab: Lab) -> tuple[list[str], dict[str, str]]:
    """Return an interactive shell with a prompt that names the node, and its environment."""
    shell = os.environ.get("SHELL") or "/bin/sh"
    # Start-up files would overwrite the prompt.
    plain = {"bash": ["--norc", "-i"], "zsh": ["-f", "-i"]}.get(Path(shell).name, ["-i"])
    return [shell, *plain], {"PS1": f"[lab {lab.cause.name}: sender] # "}


def _capture(receiver: str, csumfix: str, port: int) -> list[tuple[str, str]]:
    if os.geteuid() == 0:
        tcpdump = f"tcpdump -Z root -Q in -nvvi eth0 udp port {port}"
        return [("see it arrive", f"{receiver} {tcpdump} &")]
    file = "/tmp/lab.pcap"  # noqa: S108 - a proposal; the user types it
    return [  # see csumfix_lab.capture
        ("capture", f"{receiver} {sys.executable} -m csumfix_lab.capture eth0 >{file} &"),
        ("see what arrived", f"{csumfix} check {file}"),
    ]


def _hints(lab: Lab) -> list[str]:
    query = f"dig +tries=1 +time=1 +short {lab.dns_name}"
    if lab.client.name != lab.sender.name:
        query = f"nsenter --net=/run/netns/{lab.client.name} {query}"
    receiver = "nsenter --net=/run/netns/receiver"
    csumfix = shlex.join([sys.executable, "-m", "csumfix"])
    # With a guest, the sender itself has no vxlan device to discover.
    options = f" --port {lab.spec.port}" if lab.cause.guest else ""
    service = [("query by service IP", f"{query} @{lab.service_ip}")] if lab.cause.service else []
    rows = [
        ("query by pod IP", f"{query} @{lab.pod_ip}"),
        *service,
        ("what was dropped", f"{receiver} nstat -asz {_COUNTERS}"),
        *_capture(receiver, csumfix, lab.spec.port),
        ("cure it", f"{csumfix} run{options} &"),
    ]
    return [f"  {label:<21}{command}" for label, command in rows]


@contextlib.contextmanager
def _terminal_lent() -> Iterator[None]:
    """Leave Ctrl-C to the command, and take the terminal back afterwards."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if sys.stdin.isatty():
            output = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with contextlib.suppress(OSError):
                os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
            signal.signal(signal.SIGTTOU, output)
        signal.signal(signal.SIGINT, interrupt)


def run_session(cause: str, ipv6: bool, mtu: int, port: int, command: Sequence[str]) -> int:
    """Build a lab, explain it, run `command` (default: a shell) on the sender; return its code.

    If a signal ends the command, the code is 128 plus the signal's number. Raises CsumfixError if
    the lab cannot be built here.
    """
    with Lab(cause, ipv6=ipv6, mtu=mtu, port=port) as lab:
        lab.start_dns()
        # Standard output belongs to the command.
        hints = [f"You are on the sender. Symptom: {lab.cause.symptom}.", *_hints(lab)]
        sys.stderr.write("\n".join([lab.describe(), "", *hints, "", ""]))
        sys.stderr.flush()
        argv, env = (list(command), {}) if command else _shell(lab)
        with _terminal_lent():
            code = lab.sender.popen(argv, env=env).wait()
    return code if code >= 0 else _SIGNAL_EXIT - code
