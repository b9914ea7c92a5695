"""Runs ``csumfix-rules``, the one implementation of the iptables rules.

The only module that executes anything.
"""

from __future__ import annotations

import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from csumfix.errors import CsumfixError, Exit
from csumfix.tunnels import Family

SCRIPT = Path(sysconfig.get_path("scripts")) / "csumfix-rules"
MAX_PORTS = 15
"""How many ports one rule can name (iptables' multiport match)."""


@dataclass(frozen=True)
class RuleSet:
    """What the rules divert; the arguments of ``csumfix-rules apply``.

    ports: UDP destination ports, sorted.
    source_ports: range that is split over the queues.
    max_length: longest IP packet in bytes that is no super-packet.
    """

    ports: tuple[int, ...]
    queue_base: int
    queues: int
    family: Family
    divert: str
    max_length: int
    source_ports: tuple[int, int]

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
        ]


def run(arguments: Sequence[str], *, capture: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the script with these arguments; its exit code is for the caller to judge."""
    # sh is named because a read-only or noexec mount may hold the script.
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments], check=False, text=True, capture_output=capture
    )


def _must(arguments: Sequence[str]) -> None:
    result = run(arguments)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["csumfix-rules failed without a word"]
        raise CsumfixError(lines[-1], _exit_code(result.returncode))


def _exit_code(code: int) -> Exit:
    return Exit(code) if code in Exit.__members__.values() else Exit.KERNEL


def apply(rules: RuleSet) -> None:
    """Make exactly these rules be loaded."""
    _must(["apply", *rules.arguments()])


def remove() -> None:
    """Remove our rules; nothing happens if there are none."""
    _must(["remove"])
