"""Builds our own senders and receivers, and starts and ends all of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from csumfix_lab import Node
from csumfix_lab.process import Process
from csumfix_lab.sandbox import require

START = 0.15
"""Seconds for sender and receiver to start."""

WARM_UP = 0.25
"""Seconds of traffic before counting begins: ARP, conntrack, caches, TCP's slow start."""

TIMEOUT = 8.0
"""Seconds after the end of its run until a tool is killed."""

_ROOT = Path(__file__).parents[1]


def binary(name: str) -> str:
    """Return the path of one of our own programs."""
    return str(_ROOT / "build" / f"bench-{name}")


def build(*names: str) -> None:
    """Build our own programs, unless they are up to date."""
    for name in names:
        sources = [_ROOT / "bench" / f"{name}.c", _ROOT / "bench" / "load.h"]
        _build(Path(binary(name)), sources)


def _build(output: Path, sources: Sequence[Path]) -> None:
    newest = max(source.stat().st_mtime for source in sources)
    if output.exists() and output.stat().st_mtime >= newest:
        return
    require("gcc")
    output.parent.mkdir(exist_ok=True)
    fresh = output.with_suffix(".new")
    subprocess.run(
        ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", str(sources[0]), "-o", str(fresh)],
        check=True,
    )
    fresh.replace(output)


def start(node: Node, argv: Sequence[str]) -> Process:
    """Start a program on a node, with its output in a pipe."""
    return node.popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C should reach the benchmark only
    )


@contextlib.contextmanager
def running(node: Node, argv: Sequence[str], *, ready: bool = False) -> Iterator[Process]:
    """Run a program; kill it at the end. With `ready`, wait for its first line of output."""
    process = start(node, argv)
    try:
        if ready:
            assert process.stdout is not None
            process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Count:
    """The counts of one end of a load, in packets or bytes; see load.c and messages.c."""

    window: int
    total: int
    bad: int
    overflows: int
    late: int


def parse_count(text: str) -> Count:
    """Parse the output of load or messages."""
    lines = [line for line in text.splitlines() if line != "ready"]
    return Count(*map(int, lines[-1].split()))


def on_core(number: int) -> list[str]:
    """Return the prefix of a command line that pins it to one core, if there are several."""
    return ["taskset", "-c", str(number)] if (os.cpu_count() or 1) > 1 else []
