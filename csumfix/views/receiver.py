"""``csumfix doctor --receiver``: who sends this host wrong packets, and what is wrong with them.

It watches the tunnel packets that arrive, as ``csumfix check --live`` does, and meanwhile the
checksum errors that the kernel counts: in this network namespace, and in those of pods.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import click

from csumfix.errors import Exit
from csumfix.evidence import drops
from csumfix.evidence.arrivals import WRONG, Diagnosis
from csumfix.evidence.captures import Examiner, address_text
from csumfix.evidence.causes import Tally
from csumfix.evidence.drops import Drops
from csumfix.evidence.live import LiveSource
from csumfix.evidence.tapsocket import Direction
from csumfix.host import sockets, tunnels
from csumfix.host.namespaces import Namespaces
from csumfix.protocols import Protocols, named
from csumfix.text import counted, listing, printable
from csumfix.views import findings, taps

OWNERS = 8
"""How many owners of network namespaces are named."""


class ArrivalState(enum.StrEnum):
    """The result."""

    HEALTHY = "healthy"
    FOUND = "found"
    UNDECIDED = "undecided"


EXITS = {
    ArrivalState.HEALTHY: Exit.OK,
    ArrivalState.FOUND: Exit.NEGATIVE,
    ArrivalState.UNDECIDED: Exit.BROKEN,
}


@dataclass(frozen=True)
class ArrivalReport:
    """What was seen.

    seconds: for which packets were watched.
    devices, ports: that were watched; Geneve's port always is.
    frames: packets to those ports.
    counters: the kernel's, this namespace's first.
    other_ports: a line for each port whose packets look like a tunnel's.
    """

    seconds: float
    devices: tuple[str, ...]
    ports: tuple[int, ...]
    frames: int
    tally: Tally
    counters: Sequence[Drops]
    other_ports: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> ArrivalState:
        """Whether packets arrive wrong. Packets that were dropped and not seen leave it open."""
        if self.tally.is_wrong:
            return ArrivalState.FOUND
        if self.dropped or not self.judged:
            return ArrivalState.UNDECIDED
        return ArrivalState.HEALTHY

    @property
    def judged(self) -> int:
        """Tunnel packets that could be judged."""
        return self.tally.diagnoses.total() - self.tally.diagnoses[Diagnosis.UNJUDGED]

    @property
    def wrong(self) -> int:
        """Tunnel packets that are certainly wrong."""
        return sum(self.tally.diagnoses[diagnosis] for diagnosis in WRONG)

    @property
    def dropped(self) -> int:
        """Packets that the kernel dropped for their checksum, of any kind."""
        return drops.of_host(self.counters) + drops.of_pods(self.counters)

    def verdict(self) -> str:
        """Return the result in one sentence; if it is undecided, also what to do next."""
        where = f"in {self.seconds:g} s on {listing(self.devices)}"
        if self.state is ArrivalState.FOUND:
            return (
                f"{self._who()} this host wrong packets: "
                f"{self.wrong} of {self.judged} tunnel packets {where}."
            )
        if self.state is ArrivalState.HEALTHY:
            packets = counted(self.judged, "tunnel packet")
            return f"All is well: {packets} arrived {where}, none of them wrong."
        if self.dropped:
            packets = counted(self.dropped, "packet")
            return (
                f"Undecided: the kernel dropped {packets} for a wrong checksum {where}, but no "
                "tunnel packet that was seen is wrong. They arrived at another device or port, or "
                "do not belong to a tunnel: see the counters, and 'ip -s link'."
            )
        return (
            f"Undecided: no tunnel packet arrived {where}. Repeat it while another node sends "
            "(--seconds 60). If nothing arrives then, something on the way drops the packets: "
            "look at firewalls, security groups and routes, and run 'csumfix doctor' on that node."
        )

    def _who(self) -> str:
        senders = {
            address
            for finding in self.tally.findings()
            if finding.diagnosis in WRONG
            for address in finding.senders
        }
        if len(senders) == 1:
            return f"{address_text(senders.pop())} sends"
        return f"{len(senders)} hosts send"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "state": self.state,
            "verdict": self.verdict(),
            "seconds": self.seconds,
            "devices": [printable(device) for device in self.devices],
            "ports": list(self.ports),
            "frames": self.frames,
            "judged": self.judged,
            "wrong": self.wrong,
            "summary": dict(self.tally.diagnoses),
            "findings": [findings.finding_as_json(one) for one in self.tally.findings()],
            "not_judged": {one.name.lower(): n for one, n in self.tally.reasons.items()},
            "counters": [one.as_json() for one in self.counters],
            "notes": [*self.other_ports, *self.notes],
        }

    def lines(self) -> Iterator[str]:
        """Yield lines for people: the verdict, the senders with remedies, the counters."""
        yield self.verdict()
        yield from findings.summary(self.tally)
        yield from counter_lines(self.counters)
        yield from self.other_ports
        yield from self.notes


def counter_lines(counters: Sequence[Drops]) -> Iterator[str]:
    """Say what was dropped for its checksum meanwhile, and where."""
    pods = sum(not one.is_host for one in counters)
    number = f"{drops.of_pods(counters)} in {counted(pods, 'other network namespace')}"
    yield (
        f"Dropped for a wrong checksum in that time: {drops.of_host(counters)} by this host"
        f"{f', {number}' if pods else ''}."
    )
    risen = sorted((one for one in counters if one.risen), key=lambda one: -one.number)
    for one in risen[:OWNERS]:
        yield printable(f"  {one.owner}: {one.counters}")
    if len(risen) > OWNERS:
        yield f"  and {len(risen) - OWNERS} more; --json lists all"


def observe(seconds: float, ports: Protocols) -> ArrivalReport:
    """Watch what arrives for this many seconds, or until Ctrl-C.

    ports: besides those of this namespace's devices.
    """
    found = asyncio.run(tunnels.discover())
    wanted = tunnels.protocols(found, {**named(sockets.hidden_ports(found)), **ports})
    examiner = Examiner(wanted, forced=Direction.IN)
    tally = Tally()
    # Counters first: what is seen to arrive must have been counted meanwhile.
    with drops.observed() as observation, taps.arrivals(None, wanted, found) as devices:
        click.echo(f"csumfix: watching {listing(devices)} for {seconds:g} s", err=True)
        began = time.monotonic()
        source = LiveSource(devices, seconds)
        notes = _hidden(observation.found)
        with _until_interrupted(notes):
            for captured in source:
                judged = examiner.examine(captured)
                if judged:
                    tally.add(judged)
        watched = min(seconds, round(time.monotonic() - began, 1))  # less if interrupted
        notes += source.notes()
        return ArrivalReport(
            watched,
            tuple(devices),
            tuple(sorted(wanted)),
            source.frames,
            tally,
            observation.drops(),
            tuple(findings.other_ports(examiner.other_ports)),
            notes,
        )


@contextlib.contextmanager
def _until_interrupted(notes: list[str]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        notes.append("Interrupted.")


def _hidden(seen: Namespaces) -> list[str]:
    """Say which counters could not be read."""
    notes = []
    if len(seen.namespaces) == 1:
        notes.append(
            "Counters of pods were not read: no process of another network namespace is visible. "
            "To see them, run this on the host itself, or in a pod with hostPID."
        )
    if seen.hidden:
        notes.append(f"Processes whose counters only root may read: {seen.hidden}.")
    if seen.passed_over:
        notes.append(f"Network namespaces beyond the limit, not read: {seen.passed_over}.")
    return notes


def run(
    seconds: float, ports: Protocols = MappingProxyType({}), *, as_json: bool = False
) -> tuple[Exit, dict[str, Any]]:
    """Watch, and print what was found; return the exit code, and the report as plain data."""
    report = observe(seconds, ports)
    document = report.as_json()
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(report.lines()))
    return EXITS[report.state], document
