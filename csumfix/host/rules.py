"""Runs ``csumfix-rules``, the one implementation of the rules, of iptables and of nft.

The only module that executes anything, except programs.py and natrules.py, which only read, and
handover.py, which starts a successor.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from csumfix import installation
from csumfix.errors import CsumfixError, Exit
from csumfix.host.tunnels import Family

AUTO, IPTABLES, NFT = "auto", "iptables", "nft"
"""Values of the setting "backend"."""

SCRIPT = installation.scripts() / "csumfix-rules"
SYSTEM_PATH = "/usr/sbin:/sbin"
"""Where iptables is. A user's PATH often lacks these; csumfix-rules adds them as well."""

LATER = (
    " lane=kernel rule=gate what=missing",
    " lane=kernel rule=nat what=missing",
    *(f" lane=kernel rule={role} what=missing" for role in ("busy", "burst", "opening")),
    " lane=queue rule=bridged what=missing",
)
"""Differences by rules that are loaded as soon as the kernel has what they need."""

CONNTRACK_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")

_RULE = re.compile(
    r"^family=(?P<family>\d) lane=(?P<lane>\S+) rule=(?P<role>\S+) "
    r"packets=(?P<packets>\d+) bytes=(?P<bytes>\d+) text=(?P<text>.*)",
    re.MULTILINE,
)
_BACKEND = re.compile(r"^backend=(?P<name>\w+) why=(?P<why>.*)", re.MULTILINE)
_LANE = re.compile(
    r"^family=\d lane=(?P<lane>\S+) state=\S+ ports=(?P<ports>\S+)(.* leaving=(?P<leaving>\S+))?",
    re.MULTILINE,
)
_REFUSED = re.compile(r"^refused family=\d lane=(\w+)", re.MULTILINE)


@dataclass(frozen=True)
class RuleSet:
    """The rules that should be loaded; the arguments of ``csumfix-rules apply``.

    kernel_ports, queue_ports: UDP destination ports of each lane, sorted.
    leaving_ports: ports of the queue lane whose flows leave it as they fall idle.
    recording: the first step of leaving: flows are recorded, and all are still queued.
    source_ports: range that is split over the queues.
    backend: what is to load them; see the setting.
    """

    kernel_ports: tuple[int, ...]
    queue_ports: tuple[int, ...]
    queue_base: int
    queues: int
    family: Family
    source_ports: tuple[int, int]
    leaving_ports: tuple[int, ...] = ()
    recording: bool = False
    backend: str = AUTO

    @property
    def queued_ports(self) -> tuple[int, ...]:
        """Ports of the queue lane: any packet may be queued."""
        return tuple(sorted({*self.queue_ports, *self.leaving_ports}))

    def arguments(self) -> list[str]:
        """Return the options of the script."""
        low, high = self.source_ports
        return [
            *(f"--kernel-port={port}" for port in self.kernel_ports),
            *(f"--queue-port={port}" for port in self.queue_ports),
            *(f"--leaving-port={port}" for port in self.leaving_ports),
            *(["--record"] if self.recording else []),
            f"--queue-base={self.queue_base}",
            f"--queues={self.queues}",
            f"--sport-range={low}:{high}",
            f"--family={self.family}",
            *([] if self.backend == AUTO else [f"--backend={self.backend}"]),
        ]


@dataclass(frozen=True)
class Backend:
    """What has loaded the rules.

    why: for what reason csumfix-rules has chosen it; empty if it is iptables, or was asked for.
    """

    name: str
    why: str = ""


@dataclass(frozen=True)
class LoadedRule:
    """A rule of ours, or one in our chains, as csumfix-rules reads it back.

    role: what it is for, such as "gate", "fill-8472" or "queue-0".
    """

    family: str
    lane: str
    role: str
    packets: int
    bytes: int
    text: str


@dataclass(frozen=True)
class Loaded:
    """What is loaded.

    lanes: those that have rules for a port, by port.
    trouble: why it could not be read; None if it could.
    """

    lanes: dict[int, frozenset[str]]
    rules: tuple[LoadedRule, ...]
    trouble: str | None


class LanesRefusedError(CsumfixError):
    """The kernel refused the rules of these lanes."""

    def __init__(self, message: str, lanes: frozenset[str]) -> None:
        super().__init__(message, Exit.KERNEL)
        self.lanes = lanes


def search_path() -> str:
    """Return PATH with the directories of system programs, which a user's PATH may lack."""
    return f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"


def run(arguments: Sequence[str], *, capture: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the script with these arguments; its exit code is for the caller to judge."""
    # sh is named because a read-only or noexec mount may hold the script.
    return _execute(["sh", str(SCRIPT), *arguments], capture=capture)


def _execute(command: Sequence[str], *, capture: bool) -> subprocess.CompletedProcess[str]:
    # A terminal sends Ctrl-C to a whole process group: the script must do its work to the end.
    group = 0 if capture else None
    try:
        return subprocess.run(
            command,
            check=False,
            text=True,
            errors="backslashreplace",
            capture_output=capture,
            process_group=group,
            env={**os.environ, "PATH": search_path()},
        )
    except OSError as error:
        raise CsumfixError(
            f"cannot run {command[0]}: {error.strerror}: "
            "too many open files or processes on this host, or it is not installed",
            Exit.MISSING if error.errno == errno.ENOENT else Exit.KERNEL,
        ) from None


def _must(arguments: Sequence[str]) -> str:
    result = run(arguments)
    if result.returncode:
        raise _failure(result)
    return result.stdout


def _failure(result: subprocess.CompletedProcess[str]) -> CsumfixError:
    lines = result.stderr.strip().splitlines() or ["csumfix-rules failed without a message"]
    refused = frozenset(_REFUSED.findall(result.stdout))
    if refused:
        return LanesRefusedError(lines[-1], refused)
    known = result.returncode in Exit.__members__.values()
    return CsumfixError(lines[-1], Exit(result.returncode) if known else Exit.KERNEL)


def kernel_lane(port: int) -> str:
    """Return the kernel lane's rules for one port, which iptables-restore of either family takes.

    Needs neither privileges nor iptables.
    """
    # Both families have the same rules.
    return _must(
        [
            *("show", "--lane=kernel", "--gate=conntrack", "--family=4", f"--port={port}"),
            f"--backend={IPTABLES}",
        ]
    )


def apply(rules: RuleSet) -> Backend:
    """Make exactly these rules be loaded; return what has loaded them."""
    chosen = _BACKEND.search(_must(["apply", *rules.arguments()]))
    if chosen:
        return Backend(chosen["name"], chosen["why"])
    return Backend(IPTABLES if rules.backend == AUTO else rules.backend)


def loaded_by() -> str:
    """Return the name of the backend that has rules of ours; if none has, of the first choice."""
    chosen = _BACKEND.search(run(["status"]).stdout)
    return chosen["name"] if chosen else IPTABLES


def differences(rules: RuleSet) -> tuple[str, ...]:
    """Return how the loaded rules differ from these, a line for each difference.

    See is_about_kernel() for differences that are no other program's work.
    """
    result = run(["check", *rules.arguments()])
    if result.returncode not in (Exit.OK, Exit.NEGATIVE):
        raise _failure(result)
    lines = result.stdout.splitlines()
    return tuple(line.removeprefix("difference ") for line in lines)


def is_about_kernel(difference: str) -> bool:
    """Tell whether a difference only says that conntrack or br_netfilter has been switched on.

    csumfix-rules leaves out the rules that need them while they are off, because loading such a
    rule would switch them on.
    """
    return any(words in difference for words in LATER)


def remove() -> None:
    """Remove our rules; nothing happens if there are none."""
    _must(["remove"])


def packets() -> Counter[str]:
    """Count the packets that met our rules, by the rule's role ("fill-8472", "queue-0")."""
    found: Counter[str] = Counter()
    for rule in loaded().rules:
        found[rule.role] += rule.packets
    return found


def loaded() -> Loaded:
    """Return what is loaded."""
    result = run(["status"])
    trouble = result.stderr.strip().splitlines()
    return parse(result.stdout, trouble[-1] if trouble else None)


def parse(text: str, trouble: str | None = None) -> Loaded:
    """Read what ``csumfix-rules status`` printed."""
    lanes: dict[int, frozenset[str]] = {}
    for lane in _LANE.finditer(text):
        for port in re.findall(r"\d+", f"{lane['ports']} {lane['leaving']}"):
            lanes[int(port)] = lanes.get(int(port), frozenset()) | {lane["lane"]}
    found = (
        LoadedRule(
            m["family"], m["lane"], m["role"], int(m["packets"]), int(m["bytes"]), m["text"]
        )
        for m in _RULE.finditer(text)
    )
    return Loaded(lanes, tuple(found), trouble)


def conntrack_is_on() -> bool:
    """Tell whether conntrack follows any connection in this network namespace."""
    try:
        return int(CONNTRACK_COUNT.read_text()) > 0
    except (OSError, ValueError):  # conntrack is not in this kernel
        return False


def changes_are_announced() -> bool:
    """Tell whether changes of rules are netlink events: legacy iptables makes none."""
    program = os.environ.get("CSUMFIX_IPTABLES", "iptables")
    if not shutil.which(program, path=search_path()):
        return True  # nft loads the rules
    return "nf_tables" in _execute([program, "--version"], capture=True).stdout
