"""``csumfix doctor``: diagnoses this host's tunnels by experiment.

It sends a few packets (evidence/outcomes.py lists their kinds), reads rules and devices, and
changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import click

from csumfix.errors import CsumfixError, Exit
from csumfix.evidence import bulk, drops
from csumfix.evidence.bulk import Bulk
from csumfix.evidence.case import Facts
from csumfix.evidence.conclusions import conclude
from csumfix.evidence.outcomes import Extent, Probes
from csumfix.evidence.probes import Prober
from csumfix.host import conntrack, natrules, nics, remotes, sockets, tunnels, underlays
from csumfix.host.conntrack import OuterTuple
from csumfix.host.remotes import Remote
from csumfix.host.tunnels import Tunnel
from csumfix.text import listing
from csumfix.views import passive
from csumfix.views.diagnosis import Report

DEFAULT_MARK = 0x4000
"""The mark of kube-proxy, where its rules cannot be read (--iptables-masquerade-bit)."""

LAST_PORT = 65535

MANY = 16
"""Remote ends that are probed at once, of all tunnels."""


@dataclass(frozen=True)
class DoctorOptions:
    """What ``csumfix doctor`` was asked to do.

    to: inner addresses at the other ends; none for those that the kernel knows.
    tcp: address and port to send 1 MB to.
    probe: whether anything may be sent.
    """

    to: tuple[str, ...] = ()
    tcp: tuple[str, int] | None = None
    probe: bool = True
    as_json: bool = False


def options(to: Sequence[str], tcp: str | None, probe: bool, as_json: bool) -> DoctorOptions:
    """Return the options on the command line; raise CsumfixError if they are wrong."""
    for address in to:
        _check(address, "--to")
    if tcp is None:
        return DoctorOptions(tuple(to), None, probe, as_json)
    host, _, port = tcp.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    _check(host, "--tcp")
    if not port.isdecimal() or not 0 < int(port) <= LAST_PORT:
        raise CsumfixError(f"--tcp: {tcp} has no port: give ADDRESS:PORT", Exit.USAGE)
    return DoctorOptions(tuple(to), (host, int(port)), probe, as_json)


def _check(address: str, option: str) -> None:
    try:
        ip_address(address)
    except ValueError:
        raise CsumfixError(
            f"{option}: {address} is not an IP address: give one, such as 10.244.1.10", Exit.USAGE
        ) from None


def run(options: DoctorOptions) -> tuple[Exit, dict[str, Any]]:
    """Diagnose and print the report; return the exit code, and the report as plain data."""
    report = asyncio.run(_examine(options))
    document = report.as_json()
    if options.as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo("\n".join(report.lines()))
    return report.code, document


# -------------------------------------------------------------------------------- finding out


async def _examine(options: DoctorOptions) -> Report:
    found = await tunnels.discover()
    hidden = sockets.hidden_ports(found)
    if not found:
        return await (passive.look_at_hidden(hidden) if hidden else passive.look_at_forwarded())
    if not options.probe:
        return await passive.look_at_rules(found, hidden)
    wanted = [*options.to, *([options.tcp[0]] if options.tcp else [])]
    to = await remotes.find(found, wanted)
    if not to:
        trouble = (
            "the kernel knows no inner address of another node behind "
            f"{listing(one.name for one in found)}. Name a pod or node there: "
            "csumfix doctor --to ADDRESS."
        )
        return await passive.look(found, hidden, trouble)
    if not hidden:
        return await _probe(options, found, to)
    report, other = await asyncio.gather(
        _probe(options, found, to), passive.look_at_hidden(hidden)
    )
    report.findings += other.findings
    report.notes += [other.trouble, *other.notes] if other.trouble else other.notes
    report.sort()
    return report


async def _probe(options: DoctorOptions, found: list[Tunnel], to: list[Remote]) -> Report:
    devices = await underlays.find(found, named=False)
    before = await natrules.read()
    mark = before.mark
    if mark is None and before.trouble:
        mark = DEFAULT_MARK
    ports = tunnels.protocols(found)
    prober = Prober(to[:MANY], ports, devices, mark, Extent())
    with _Progress() as progress, drops.observed() as observation:
        probes, moved = await asyncio.gather(prober.run(progress), _transfer(options))
        dropped = observation.drops()
    tracked = await conntrack.look_up(_flows(probes))
    after = await natrules.read()
    cards = nics.find(devices)
    lanes = passive.lanes()
    report = Report(notes=_notes(to, probes), probes=probes)
    report.notes += passive.unread(after, tracked) if not probes.blind else []
    report.notes += _about_bulk(moved, options)
    for probed in probes.probed:
        facts = Facts(
            before=before,
            after=after,
            nics=cards,
            kernel=nics.kernel_version(),
            lanes=lanes.get(probed.remote.tunnel.port, frozenset()),
            tracked=tracked,
            drops=dropped,
            blind=probes.blind,
            bulk=moved
            if options.tcp and probed.remote.address == options.tcp[0]
            else Bulk.NOT_TRIED,
        )
        for conclusion in conclude(probed, facts):
            report.add(probed.remote, conclusion, cards)
    report.sort()
    return report


def _flows(probes: Probes) -> list[OuterTuple]:
    """Return the outer flows of the probes, those that left wrong first."""
    outcomes = [one for probed in probes.probed for one in probed.outcomes.values()]
    wrong = {flow for one in outcomes for flow in one.wrong_flows}
    return [*wrong, *({flow for one in outcomes for flow in one.flows} - wrong)]


async def _transfer(options: DoctorOptions) -> Bulk:
    return await bulk.transfer(*options.tcp) if options.tcp else Bulk.NOT_TRIED


def _notes(to: Sequence[Remote], probes: Probes) -> list[str]:
    notes = []
    if probes.blind:
        notes.append(
            f"some tests need root: {probes.blind}. Run this as root for a certain verdict."
        )
    if len(to) > MANY:
        notes.append(f"{len(to) - MANY} more remote ends were not probed; see --to")
    return notes


def _about_bulk(moved: Bulk, options: DoctorOptions) -> list[str]:
    if not options.tcp or moved in (Bulk.NOT_TRIED, Bulk.STUCK):
        return []
    address, port = options.tcp
    told = {
        Bulk.ARRIVED: "took 1 MB over TCP",
        Bulk.NO_CONNECTION: "did not accept a connection, so no GSO packets could be tried",
        Bulk.CLOSED: "closed the connection early, so few GSO packets were tried",
    }
    return [f"{address} port {port} {told[moved]}"]


class _Progress:
    """Shows on a terminal how much has been done."""

    BAR = 30

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()

    def __enter__(self) -> Callable[[float], None]:
        return self.show

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            self._write("\r\x1b[K")

    def show(self, part: float) -> None:
        """Draw it."""
        if self._is_shown:
            full = int(part * self.BAR)
            self._write(f"\rprobing [{'#' * full}{'.' * (self.BAR - full)}] ")

    def _write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
