"""The cures, and how to set them up on the sender of a lab."""

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
"""Queues of csumfix and of accept-only. A flow always uses one of them."""

VXLAN_OVERHEAD = 50  # bytes between the vxlan device's MTU and the outer IP packet, over IPv4

_HERE = Path(__file__).parent
_RULES = _HERE.parents[1] / "iptables" / "csumfix-rules"

# A rule with a conntrack match switches conntrack on for its namespace, even in a chain that no
# packet enters (nf_ct_netns_get() in net/netfilter/xt_conntrack.c). So a tunnel without the bug
# pays for conntrack, as all traffic on a node with NAT does, and for nothing else.
_CONNTRACK_ON = """\
*mangle
:BENCH-CONNTRACK - [0:0]
-A BENCH-CONNTRACK -m conntrack --ctstate INVALID -j RETURN
COMMIT
"""


@dataclass(frozen=True)
class Cure:
    """One cure, or no cure.

    title: its name in README and chart.
    start: sets it up; returns the process that must run, if any.
    queued: packets may pass through NFQUEUE.
    """

    name: str
    title: str
    start: Callable[[Lab], Process | None]
    queued: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is csumfix."""
        return "csumfix" in self.title


def conntrack_on(lab: Lab) -> None:
    """Make the sender's kernel track connections, as on a node with NAT rules."""
    lab.sender.run(["iptables-restore", "--noflush"], input=_CONNTRACK_ON)
    # csumfix-rules checks whether the kernel tracks a connection.
    lab.sender.run(["ping", "-n", "-q", "-c1", "-W1", lab.spec.receiver.underlay.ip(False)])


def _none(_lab: Lab) -> None:
    pass


def _ethtool_off(lab: Lab) -> None:
    lab.sender.run(["ethtool", "-K", lab.device, "tx-checksum-ip-generic", "off"])


def _mangle(lab: Lab, *rule: str) -> None:
    match = ["-p", "udp", "--dport", str(lab.spec.port)]
    lab.sender.run(["iptables", "-w", "-t", "mangle", "-A", "POSTROUTING", *match, *rule])


def _checksum_target(lab: Lab) -> None:
    _mangle(lab, "-j", "CHECKSUM", "--checksum-fill")


def _csumfix_rules(lab: Lab, *options: str) -> None:
    port = str(lab.spec.port)
    lab.sender.run([str(_RULES), "apply", "--port", port, "--family", "4", *options])


def _serve(lab: Lab, argv: list[str]) -> Process:
    """Start a server on the sender; return when it has printed a line starting with `ready`."""
    server = lab.sender.popen(
        [sys.executable, *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C should reach the benchmark only, which closes the lab
    )
    assert server.stdout is not None
    last = ""
    for line in server.stdout:
        if line.startswith("ready"):
            return server
        last = line.strip() or last
    raise CsumfixError(f"{' '.join(argv)} did not start: {last}", Exit.BROKEN)


def _scapy(lab: Lab) -> Process:
    server = _serve(lab, [str(_HERE / "scapy_shim.py"), "0"])
    _mangle(lab, "-j", "NFQUEUE", "--queue-num", "0", "--queue-bypass")
    return server


def _netfilterqueue(lab: Lab) -> Process:
    """Queue no GSO packets, as the shim's author would: they would make TCP nine times slower."""
    server = _serve(lab, [str(_HERE / "netfilterqueue_shim.py"), "0", str(lab.spec.port)])
    longest = lab.spec.tunnel_mtu + VXLAN_OVERHEAD
    length = ["-m", "length", "--length", f"0:{longest}"]
    _mangle(lab, *length, "-j", "NFQUEUE", "--queue-num", "0", "--queue-bypass")
    return server


def _accept_only(lab: Lab) -> Process:
    server = _serve(lab, [str(_HERE / "accept_only.py"), "0", str(QUEUES)])
    _csumfix_rules(lab, "--lane", "queue", "--queues", str(QUEUES))
    return server


def _kernel_rules(lab: Lab) -> None:
    _csumfix_rules(lab, "--lane", "kernel")


def _csumfix(*options: str) -> Callable[[Lab], Process]:
    def start(lab: Lab) -> Process:
        return _serve(lab, ["-m", "csumfix", "run", "--queues", str(QUEUES), *options])

    return start


ALL = (
    Cure("none", "no bug, no cure", _none),
    Cure("ethtool-off", "ethtool -K ... off", _ethtool_off),
    Cure("checksum-target", "CHECKSUM in POSTROUTING", _checksum_target),
    Cure("scapy", "NetfilterQueue and scapy", _scapy, queued=True),
    Cure("netfilterqueue", "NetfilterQueue and C repair", _netfilterqueue, queued=True),
    Cure("kernel-rules", "csumfix-rules --lane kernel", _kernel_rules),
    Cure("csumfix", "csumfix run", _csumfix(), queued=True),
    Cure("csumfix-queue", "csumfix run --lane queue", _csumfix("--lane", "queue"), queued=True),
    Cure("accept-only", "NFQUEUE, accept only", _accept_only, queued=True),
)

BY_NAME = {cure.name: cure for cure in ALL}
NAMES = tuple(BY_NAME)
