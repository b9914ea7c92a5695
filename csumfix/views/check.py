"""``csumfix check``: diagnoses the packets of a capture, or arriving packets, and names causes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import click
from rich.console import Console
from rich.progress import Progress

from csumfix.errors import CsumfixError, Exit
from csumfix.evidence.captures import Captured, Examiner, FileSource, Judged
from csumfix.evidence.causes import Tally
from csumfix.evidence.live import LiveSource
from csumfix.evidence.pcap import Capture, NotACaptureError
from csumfix.evidence.tapsocket import Direction
from csumfix.host import sockets, tunnels
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import Protocols, named
from csumfix.text import counted, listing
from csumfix.views import findings, taps

LARGE = 8 << 20
"""Least size in bytes of a file with a progress bar."""

TICK = 0.2
"""Seconds between updates of the progress bar."""


@dataclass(frozen=True)
class CheckOptions:
    """What ``csumfix check`` was asked to do.

    source: a file, "-" for standard input or, if live, a device; None for the devices that carry
        tunnels.
    direction: of all packets; None to find it from the file or the addresses.
    local: addresses of the host where the packets were captured.
    """

    source: str | None
    ports: Protocols
    live: bool = False
    seconds: float = 10
    direction: Direction | None = None
    local: tuple[str, ...] = ()
    verbose: bool = False
    as_json: bool = False


class Source(Protocol):
    """A source of captured packets.

    frames: number of frames read so far, of all kinds.
    """

    frames: int

    def notes(self) -> list[str]:
        """Return what was not read. The source must still be open."""

    def __iter__(self) -> Iterator[Captured]: ...


def run(options: CheckOptions) -> bool:
    """Check, and print the result; tell whether any packet is certainly wrong."""
    found = asyncio.run(tunnels.discover()) if options.live else []
    hidden = sockets.hidden_ports(found) if options.live else ()
    ports = tunnels.protocols(found, {**named(hidden), **options.ports})
    options = replace(options, ports=ports)
    check = Check(options)
    with _live(options, found) if options.live else _file(options) as source:
        check.judge(source)
    check.report()
    return check.is_wrong


class Check:
    """One run over one source."""

    def __init__(self, options: CheckOptions) -> None:
        local = [_packed(address) for address in options.local]
        self._options = options
        self._examiner = Examiner(options.ports, local, options.direction)
        self._tally = Tally(assumed=options.direction is not None)
        self._notes: list[str] = []
        self._frames = 0
        self._shown = 0

    @property
    def is_wrong(self) -> bool:
        """Whether any packet is certainly wrong."""
        return self._tally.is_wrong

    def judge(self, source: Source) -> None:
        """Judge all packets until the end or Ctrl-C; print each one if requested."""
        show = self._shower()
        try:
            for captured in source:
                judged = self._examiner.examine(captured)
                if judged:
                    self._tally.add(judged)
                    if show:
                        show(judged)
        except KeyboardInterrupt:
            self._notes.append("interrupted: the rest was not checked")
        self._tally.settle()
        self._frames = source.frames
        self._notes += source.notes()

    def report(self) -> None:
        """Print the summary."""
        if self._tally.is_contradicted:
            self._notes.append(
                "the packets go both ways: give --local instead of --receiver or --sender"
            )
        if self._options.as_json:
            beginning = "" if self._shown else '{"packets": ['
            # The document printed so far ends within the list of packets.
            click.echo(f"{beginning}\n], {json.dumps(self._document(), indent=2)[1:]}")
        else:
            click.echo("\n".join(self._lines()))

    def _shower(self) -> Callable[[Judged], None] | None:
        """Return the function that prints a packet; None if only the summary is printed."""
        if self._options.as_json:
            return self._show_json
        return self._show_line if self._options.verbose else None

    def _show_json(self, judged: Judged) -> None:
        before = "," if self._shown else '{"packets": ['
        self._shown += 1
        sys.stdout.write(f"{before}\n{json.dumps(findings.as_json(judged))}")

    def _show_line(self, judged: Judged) -> None:
        sys.stdout.write(f"{findings.line(judged)}\n")

    def _document(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        others = self._examiner.other_ports
        return {
            "frames": self._frames,
            "wrong": self._tally.is_wrong,
            "summary": self._tally.diagnoses,
            "findings": [findings.finding_as_json(one) for one in self._tally.findings()],
            "not_judged": {one.name.lower(): n for one, n in self._tally.reasons.items()},
            "other_ports": {port: number for (port, _), number in others.items()},
            "notes": self._notes,
        }

    def _lines(self) -> Iterator[str]:
        """Yield the lines of the summary."""
        frames = counted(self._frames, "packet")
        yield f"{frames}: {findings.tunnels(self._tally, self._options.ports)}"
        yield from findings.summary(self._tally)
        yield from findings.other_ports(self._examiner.other_ports)
        yield from self._notes


def _packed(address: str) -> bytes:
    try:
        return ip_address(address).packed
    except ValueError:
        raise CsumfixError(
            f"--local: {address} is not an IP address; give one, such as 192.0.2.1",
            Exit.USAGE,
        ) from None


# ----------------------------------------------------------------------------------- a file


@contextlib.contextmanager
def _file(options: CheckOptions) -> Iterator[Source]:
    """Open a capture file, or standard input."""
    name = options.source or "-"
    try:
        stream = _stream(name)
        source = FileSource(Capture(stream))
    except NotACaptureError as error:
        raise CsumfixError(f"{name} is not a capture: {error}", Exit.USAGE) from None
    except OSError as error:
        raise CsumfixError(
            f"{name} cannot be read: {error.strerror}; give a file written by 'tcpdump -w'",
            Exit.USAGE,
        ) from None
    quiet = options.verbose or options.as_json
    with stream, contextlib.nullcontext() if quiet else _progress(stream):
        yield source


def _stream(name: str) -> BinaryIO:
    if name != "-":
        return Path(name).open("rb")
    if sys.stdin.isatty():
        raise NotACaptureError("pipe one in: tcpdump -w - | csumfix check -")
    # Ctrl-C also reaches tcpdump, which then writes the packets that it still has.
    signal.signal(signal.SIGINT, _read_on)
    return sys.stdin.buffer


def _read_on(*_: object) -> None:
    """Let the first Ctrl-C end only the program that writes to our pipe."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _progress(stream: BinaryIO) -> Iterator[None]:
    """Show on a terminal how much of a large file has been read."""
    size = os.fstat(stream.fileno()).st_size
    if size < LARGE or not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("reading", total=size)

        def watch() -> None:
            while not done.wait(TICK):
                progress.update(task, completed=os.lseek(stream.fileno(), 0, os.SEEK_CUR))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


# -------------------------------------------------------------------------- what arrives here


@contextlib.contextmanager
def _live(options: CheckOptions, found: list[Tunnel]) -> Iterator[Source]:
    """Watch one device, or those that carry tunnels."""
    with taps.arrivals(options.source, options.ports, found) as watched:
        seconds = f"{options.seconds:g} s"
        click.echo(f"csumfix: watching {listing(watched)} for {seconds}", err=True)
        yield LiveSource(watched, options.seconds)
