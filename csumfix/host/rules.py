"""Runs ``csumfix-rules``, the one implementation of the iptables rules.

The only module that executes anything, but for handover.py, which starts a successor.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from csumfix.errors import CsumfixError, Exit
from csumfix.host.tunnels import Family

SCRIPT = Path(sysconfig.get_path("scripts")) / "csumfix-rules"
SYSTEM_PATH = "/usr/sbin:/sbin"
"""Where iptables is, and a user's PATH often does not lead: csumfix-rules adds it, too."""

MAX_PORTS = 15
"""How many ports one rule can name (iptables' multiport match)."""


@dataclass(frozen=True)
class RuleSet:
    """What the rules divert; the arguments of ``csumfix-rules apply``.

    ports: UDP destination ports, sorted.
    source_ports: range that is split over the queues.
    max_length: longest IP packet in bytes that is no GSO packet.
    trace: those of ``csumfix trace``, which are beside the service's.
    limit: packets a second to divert at most; 0 for any number.
    """

    ports: tuple[int, ...]
    queue_base: int
    queues: int
    family: Family
    divert: str
    max_length: int
    source_ports: tuple[int, int]
    trace: bool = False
    limit: int = 0

    def arguments(self) -> list[str]:
        """Return the options of the script."""
        low, high = self.source_ports
        return [
            *(f"--port={port}" for port in self.ports),
            f"--queue-base={self.queue_base}",
            f"--queues={self.queues}",
            f"--family={self.family}",
            f"--divert={self.divert}",
            f"--max-length={self.max_length}",
            f"--sport-range={low}:{high}",
            *([f"--limit={self.limit}"] if self.limit else []),
            *_whose(self.trace),
        ]


def run(arguments: Sequence[str], *, capture: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the script with these arguments; its exit code is for the caller to judge."""
    # sh is named because a read-only or noexec mount may hold the script.
    return _execute(["sh", str(SCRIPT), *arguments], capture=capture)


def _execute(command: Sequence[str], *, capture: bool) -> subprocess.CompletedProcess[str]:
    # A terminal sends Ctrl-C to a whole process group: the script must do its work to the end.
    group = 0 if capture else None
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    try:
        return subprocess.run(
            command,
            check=False,
            text=True,
            capture_output=capture,
            process_group=group,
            env={**os.environ, "PATH": path},
        )
    except OSError as error:
        raise CsumfixError(
            f"can not run {command[0]}: {error.strerror}: "
            "too many open files or processes on this host, or it is not installed",
            Exit.MISSING if error.errno == errno.ENOENT else Exit.KERNEL,
        ) from None


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    lines = result.stderr.strip().splitlines() or ["csumfix-rules failed without a word"]
    return lines[-1]


def _must(arguments: Sequence[str]) -> None:
    result = run(arguments)
    if result.returncode:
        raise CsumfixError(_last_line(result), _exit_code(result.returncode))


def _exit_code(code: int) -> Exit:
    return Exit(code) if code in Exit.__members__.values() else Exit.KERNEL


def apply(rules: RuleSet) -> None:
    """Make exactly these rules be loaded."""
    _must(["apply", *rules.arguments()])


def difference(rules: RuleSet) -> str | None:
    """Say how the loaded rules differ from these; None if they do not."""
    result = run(["check", *rules.arguments()])
    if result.returncode == Exit.NEGATIVE:
        return _last_line(result).removeprefix("csumfix-rules: check: ").split(": run apply")[0]
    if result.returncode:
        raise CsumfixError(_last_line(result), _exit_code(result.returncode))
    return None


def remove(*, trace: bool = False) -> None:
    """Remove the service's rules, or those of trace; nothing happens if there are none."""
    _must(["remove", *_whose(trace)])


def packets(*, trace: bool = False) -> Counter[str]:
    """Count the packets that met our rules, by the rule's role ("jump", "queue-0")."""
    shown = run(["status", *_whose(trace)]).stdout
    found: Counter[str] = Counter()
    for role, number in re.findall(r" rule=(\S+) packets=(\d+) ", shown):
        found[role] += int(number)
    return found


def ring_on_change() -> bool:
    """Tell whether changes of rules ring doorbell.NFTABLES: legacy iptables is silent."""
    program = os.environ.get("CSUMFIX_IPTABLES", "iptables")
    return "nf_tables" in _execute([program, "--version"], capture=True).stdout


def _whose(trace: bool) -> list[str]:
    return ["--trace"] if trace else []
