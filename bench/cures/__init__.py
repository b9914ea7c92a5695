"""The cures, and how each is set up on the sender of a lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from csumfix.errors import CsumfixError, Exit
from csumfix_lab import Lab
from csumfix_lab.process import Process

QUEUES = 2
"""Queues of csumfix and of the floor. A flow uses one of them, whatever their number."""

VXLAN_OVERHEAD = 50  # bytes between the vxlan device's MTU and the outer IP packet, over IPv4

_HERE = Path(__file__).parent
_RULES = _HERE.parents[1] / "iptables" / "csumfix-rules"

# A rule with a conntrack match turns conntrack on for its namespace, even in a chain that no
# packet enters. So `none` pays for conntrack, as everything under NAT does, and for nothing else.
_CONNTRACK_ON = """\
*mangle
:BENCH-CONNTRACK - [0:0]
-A BENCH-CONNTRACK -m conntrack --ctstate INVALID -j RETURN
COMMIT
"""


@dataclass(frozen=True)
class Cure:
    """One way to mend a tunnel, or none.

    start: sets it up; returns the process that has to run, if any.
    queued: packets pass through NFQUEUE.
    """

    name: str
    start: Callable[[Lab], Process | None]
    queued: bool = False


def _none(lab: Lab) -> None:
    lab.sender.run(["iptables-restore", "--noflush"], input=_CONNTRACK_ON)


def _ethtool_off(lab: Lab) -> None:
    lab.sender.run(["ethtool", "-K", lab.device, "tx-checksum-ip-generic", "off"])


def _mangle(lab: Lab, *target: str) -> None:
    match = ["-p", "udp", "--dport", str(lab.plan.port)]
    lab.sender.run(["iptables", "-w", "-t", "mangle", "-A", "POSTROUTING", *match, "-j", *target])


def _checksum_target(lab: Lab) -> None:
    _mangle(lab, "CHECKSUM", "--checksum-fill")


def _csumfix_rules(lab: Lab, queues: int) -> None:
    longest = str(lab.plan.tunnel_mtu + VXLAN_OVERHEAD)
    lab.sender.run(
        [str(_RULES), "apply", "--port", str(lab.plan.port), "--queues", str(queues),
         "--family", "4", "--divert", "packets", "--max-length", longest]
    )  # fmt: skip


def _serve(lab: Lab, argv: list[str], sign: str) -> Process:
    """Start a server on the sender; return when it has printed a line that begins with `sign`."""
    server = lab.sender.popen(
        [sys.executable, *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C is for the benchmark, which then closes the lab
    )
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        if line.startswith(sign):
            return server
        said = line.strip() or said
    raise CsumfixError(f"{' '.join(argv)}: did not start: {said}", Exit.BROKEN)


def _scapy(lab: Lab) -> Process:
    server = _serve(lab, [str(_HERE / "scapy_shim.py"), "0"], "ready")
    _mangle(lab, "NFQUEUE", "--queue-num", "0", "--queue-bypass")
    return server


def _netfilterqueue(lab: Lab) -> Process:
    port = str(lab.plan.port)
    server = _serve(lab, [str(_HERE / "netfilterqueue_shim.py"), "0", port], "ready")
    _csumfix_rules(lab, 1)
    return server


def _accept_only(lab: Lab) -> Process:
    server = _serve(lab, [str(_HERE / "accept_only.py"), "0", str(QUEUES)], "ready")
    _csumfix_rules(lab, QUEUES)
    return server


def _csumfix(divert: str) -> Callable[[Lab], Process]:
    def start(lab: Lab) -> Process:
        options = ["--divert", divert, "--queues", str(QUEUES)]
        return _serve(lab, ["-m", "csumfix", "run", *options], "ready")

    return start


_ALL = (
    Cure("none", _none),
    Cure("ethtool-off", _ethtool_off),
    Cure("checksum-target", _checksum_target),
    Cure("scapy", _scapy, queued=True),
    Cure("netfilterqueue", _netfilterqueue, queued=True),
    Cure("csumfix-nat", _csumfix("nat"), queued=True),
    Cure("csumfix-packets", _csumfix("packets"), queued=True),
    Cure("csumfix-all", _csumfix("all"), queued=True),
    Cure("accept-only", _accept_only, queued=True),
)

BY_NAME = {cure.name: cure for cure in _ALL}
NAMES = tuple(BY_NAME)
