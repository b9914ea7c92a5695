"""``csumfix doctor``: diagnoses this host's tunnels by experiment.

It sends a few packets (evidence/probes.py says which), reads rules and devices, and changes
nothing.
"""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from typing import Any

import click

from csumfix.errors import CsumfixError, Exit
from csumfix.evidence import bulk, drops, forwarded
from csumfix.evidence.bulk import Bulk
from csumfix.evidence.conclusions import HEALTHY, Conclusion, Facts, Verdict, conclude
from csumfix.evidence.departures import Departure
from csumfix.evidence.probes import Probed, Prober, Probes
from csumfix.host import conntrack, natrules, nics, remotes, rules, sockets, tunnels, underlays
from csumfix.host.conntrack import OuterTuple
from csumfix.host.natrules import NatRule, NatRules
from csumfix.host.nics import Nic
from csumfix.host.remotes import Remote
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import WELL_KNOWN, named
from csumfix.text import listing, printable, printable_data
from csumfix.views.cures import Cure, Place, cures

WIDTH = 80  # columns
DEFAULT_MARK = 0x4000
"""The mark of kube-proxy, where its rules cannot be read (--iptables-masquerade-bit)."""

LAST_PORT = 65535

MANY = 16
"""Remote ends that are probed at once, of all tunnels."""

LOOK = 4.0
"""Seconds for which a host without tunnels is watched for tunnels of other hosts."""

SHOWN = 3
"""Findings that are shown with evidence and cures."""

HEADLINES = {
    Verdict.KUBE_PROXY: "kube-proxy's mark survives encapsulation, so kube-proxy masquerades the "
    "outer header of packets to services and leaves its checksum wrong.",
    Verdict.CNI: "the CNI masquerades before kube-proxy can clear its mark, so kube-proxy "
    "masquerades the outer header of packets to services and leaves its checksum wrong.",
    Verdict.SNAT: "source NAT rewrites the outer header and leaves its checksum wrong.",
    Verdict.DNAT: "destination NAT rewrites the outer header and leaves its checksum wrong.",
    Verdict.IPVS: "IPVS rewrites the outer address and leaves the checksum wrong.",
    Verdict.STATELESS: "an nft rule rewrites the outer header without conntrack and leaves its "
    "checksum wrong.",
    Verdict.NAT: "something rewrites the outer header and leaves its checksum wrong.",
    Verdict.ZERO_NAT: "this kernel's NAT turns a checksum of 0 (none) into a wrong one.",
    Verdict.NIC: "the NIC or hypervisor claims to compute inner checksums, but does not.",
    Verdict.NIC_OUTER: "the NIC or hypervisor claims to compute outer checksums, but does not.",
    Verdict.NIC_GSO: "the NIC or hypervisor ruins GSO packets.",
    Verdict.RELAY: "a program between the nodes resends packets whose inner checksum was never "
    "computed (slirp4netns, pasta).",
    Verdict.FORWARDED: "packets that this host forwards for other hosts leave it with a wrong "
    "outer checksum.",
    Verdict.REMOTE: "packets from the remote end arrive with wrong checksums.",
    Verdict.MTU: "not a checksum: packets as long as the tunnel's MTU are lost.",
    Verdict.NOT_LEAVING: "not a checksum: the tunnel's packets do not leave this host.",
    Verdict.BLACK_HOLE: "not a checksum: nothing that this host sends is answered.",
    Verdict.LOSS: "not a checksum: the path loses packets of every kind.",
    Verdict.UNDECIDED: "undecided.",
    Verdict.CURED: "healthy, because csumfix repairs its packets.",
    Verdict.HEALTHY: "healthy.",
}
"""Sentences about a tunnel, printed after its name."""


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


@dataclass
class Finding:
    """A conclusion about one tunnel, and the remote ends that it holds for."""

    tunnel: Tunnel
    conclusion: Conclusion
    place: Place
    to: list[Remote] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """The sentence about it."""
        return f"{self.tunnel.name}: {HEADLINES[self.conclusion.verdict]}"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        conclusion = self.conclusion
        plain: dict[str, Any] = printable_data(
            {
                "tunnel": self.tunnel.name,
                "port": self.tunnel.port,
                "verdict": conclusion.verdict,
                "sentence": self.headline,
                "to": [{"address": one.address, "vtep": one.vtep} for one in self.to],
                "evidence": conclusion.evidence,
                "against": conclusion.against,
                "experiment": conclusion.experiment,
                "rules": [asdict(rule) for rule in conclusion.rules],
                "cures": [asdict(cure) for cure in cures(conclusion, self.place)],
            }
        )
        return plain


def run(options: DoctorOptions) -> tuple[Exit, dict[str, Any]]:
    """Diagnose and print the report; return the exit code, and the report as plain data."""
    report = asyncio.run(_examine(options))
    document = report.as_json()
    if options.as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo("\n".join(report.lines()))
    return report.code, document


@dataclass
class Report:
    """The whole diagnosis.

    trouble: why there is no finding.
    notes: what could not be done.
    """

    findings: list[Finding] = field(default_factory=list)
    trouble: str = ""
    notes: list[str] = field(default_factory=list)
    probes: Probes | None = None

    @property
    def code(self) -> Exit:
        """The exit code: found, undecided, or healthy."""
        verdicts = {finding.conclusion.verdict for finding in self.findings}
        if verdicts - HEALTHY - {Verdict.UNDECIDED}:
            return Exit.NEGATIVE
        return Exit.OK if verdicts and verdicts <= HEALTHY else Exit.BROKEN

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "verdict": self.findings[0].conclusion.verdict if self.findings else "undecided",
            "exit_code": int(self.code),
            "findings": [finding.as_json() for finding in self.findings],
            "probes": [_probed_as_json(one) for one in self.probes.probed] if self.probes else [],
            "trouble": self.trouble,
            "notes": self.notes,
        }

    def lines(self) -> Iterator[str]:
        """Yield it as lines for people, the verdict first."""
        if self.trouble:
            yield from _wrapped(f"Undecided: {self.trouble}")
        for number, finding in enumerate(self.findings):
            if number:
                yield ""
            yield from _wrapped(finding.headline)
            if number < SHOWN:
                yield from _details(finding)
        for note in self.notes:
            yield ""
            yield from _wrapped(f"Note: {note}")


def _probed_as_json(probed: Probed) -> dict[str, Any]:
    return {
        "address": probed.remote.address,
        "vtep": probed.remote.vtep,
        "kinds": {
            kind.name.lower(): {
                "sent": one.sent,
                "answered": one.answered,
                "left": dict(one.left),
                "arrived": dict(one.arrived),
                "fault": one.fault,
            }
            for kind, one in probed.outcomes.items()
        },
    }


# ------------------------------------------------------------------------------- for people


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        printable(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
    )


def _details(finding: Finding) -> Iterator[str]:
    conclusion = finding.conclusion
    yield ""
    is_probed = conclusion.verdict is not Verdict.FORWARDED
    probes = f", from probes to {listing(finding.to, limit=2)}" if is_probed else ""
    yield from _wrapped(f"Evidence{probes}:", "", "  ")
    for line in conclusion.evidence:
        yield from _wrapped(line, "  - ", "    ")
    for rule in conclusion.rules:
        yield from _wrapped(_told(rule), "  - ", "    ")
    if conclusion.against:
        yield "Evidence against it, or missing:"
        for line in conclusion.against:
            yield from _wrapped(line, "  - ", "    ")
    if conclusion.experiment:
        yield from _wrapped(f"Next: {conclusion.experiment}", "", "  ")
    found = cures(conclusion, finding.place)
    if found:
        yield ""
        yield "Cures, cheapest first:" if len(found) > 1 else "What to do:"
        for number, cure in enumerate(found, start=1):
            yield from _cure(number, cure)


def _told(rule: NatRule) -> str:
    count = "" if rule.packets is None else f" ({rule.packets} packets so far)"
    return f"rule of {rule.owner}{count}, in {rule.chain}: {rule.text}"


def _cure(number: int, cure: Cure) -> Iterator[str]:
    yield from _wrapped(cure.what, f"  {number}. ", "     ")
    yield from _wrapped(f"Price: {cure.price}.", "     ", "     ")
    for command in cure.commands:
        yield f"       {printable(command)}"


# -------------------------------------------------------------------------------- finding out


async def _examine(options: DoctorOptions) -> Report:
    found = await tunnels.discover()
    if not found:
        return await _without_tunnels()
    if not options.probe:
        return await _without_probes(found)
    wanted = [*options.to, *([options.tcp[0]] if options.tcp else [])]
    to = await remotes.find(found, wanted)
    if not to:
        return Report(
            trouble="the kernel knows no inner address of another node behind "
            f"{listing(one.name for one in found)}. Name a pod or node there: "
            "csumfix doctor --to ADDRESS",
        )
    return await _probe(options, found, to)


async def _without_tunnels() -> Report:
    """Look at tunnels of other hosts whose packets this host forwards."""
    hidden = sockets.hidden_ports(())
    if hidden:
        return await _without_device(hidden)
    trouble = (
        "this network namespace has no vxlan or geneve device, and no packet that it forwards for "
        "another host's tunnel left wrong. Run this on a node, in the host's network namespace: "
        "nsenter --net=/proc/1/ns/net csumfix doctor"
    )
    try:
        devices = await underlays.find([], named=True)
        seen = await forwarded.watch(devices, WELL_KNOWN, LOOK)
    except OSError as error:
        return Report(trouble=trouble, notes=[f"packets were not seen leaving: {error.strerror}"])
    report = Report(trouble="" if seen.wrong() else trouble)
    for stream, counts in seen.wrong().items():
        tunnel = Tunnel(f"port {stream.port}", stream.port, "both", 0)
        remote = Remote(tunnel, 0, "", stream.dest, stream.source, b"", b"", stream.dest, 0)
        wrong, total = counts[Departure.WRONG], counts.total()
        evidence = f"{wrong} of {total} packets from {stream.source} to {stream.dest} left wrong"
        conclusion = Conclusion(Verdict.FORWARDED, (evidence,))
        _add(report.findings, remote, conclusion, ([], NatRules()))
    return report


async def _without_device(ports: Collection[int]) -> Report:
    """Look at what leaves by tunnels whose device is in another namespace; none can be probed."""
    trouble = (
        f"the socket on port {listing(sorted(ports))} may be that of a vxlan or geneve device in "
        "another network namespace, as Docker Swarm has it, which cannot be probed from here. "
        "See what leaves: csumfix trace"
    )
    try:
        devices = await underlays.find([], named=True)
        seen = await forwarded.watch(devices, named(ports), LOOK)
    except OSError as error:
        return Report(trouble=trouble, notes=[f"departures were not seen: {error.strerror}"])
    notes = [
        f"port {stream.port}: {counts[Departure.WRONG]} of {counts.total()} packets from "
        f"{stream.source} to {stream.dest} left wrong"
        for stream, counts in seen.wrong().items()
    ]
    return Report(trouble=trouble, notes=notes)


async def _probe(options: DoctorOptions, found: list[Tunnel], to: list[Remote]) -> Report:
    devices = await underlays.find(found, named=False)
    before = await natrules.read()
    mark = before.mark
    if mark is None and before.trouble:
        mark = DEFAULT_MARK
    ports = tunnels.protocols(found)
    prober = Prober(to[:MANY], ports, devices, mark)
    with _Progress() as progress, drops.observed() as counters:
        probes, moved = await asyncio.gather(prober.run(progress), _transfer(options))
        counted = counters.drops()
    tracked = await conntrack.look_up(_flows(probes))
    after = await natrules.read()
    cards = nics.find(devices)
    lanes = _lanes()
    report = Report(notes=_notes(options, to, probes, after), probes=probes)
    report.notes += [tracked.trouble] if tracked.trouble else []
    report.notes += _about_bulk(moved, options)
    for probed in probes.probed:
        facts = Facts(
            before=before,
            after=after,
            nics=cards,
            kernel=nics.kernel_version(),
            lanes=lanes.get(probed.remote.tunnel.port, frozenset()),
            tracked=tracked,
            drops=counted,
            blind=probes.blind,
            bulk=moved
            if options.tcp and probed.remote.address == options.tcp[0]
            else Bulk.NOT_TRIED,
        )
        for conclusion in conclude(probed, facts):
            _add(report.findings, probed.remote, conclusion, (cards, after))
    report.findings.sort(key=lambda one: list(Verdict).index(one.conclusion.verdict))
    return report


def _flows(probes: Probes) -> list[OuterTuple]:
    """Return the outer flows of the probes, those that left wrong first."""
    outcomes = [one for probed in probes.probed for one in probed.outcomes.values()]
    wrong = {flow for one in outcomes for flow in one.wrong_flows}
    return [*wrong, *({flow for one in outcomes for flow in one.flows} - wrong)]


async def _transfer(options: DoctorOptions) -> Bulk:
    return await bulk.transfer(*options.tcp) if options.tcp else Bulk.NOT_TRIED


def _add(
    findings: list[Finding],
    remote: Remote,
    conclusion: Conclusion,
    host: tuple[Sequence[Nic], NatRules],
) -> None:
    """Add a conclusion, or a remote end to a finding that says the same."""
    for finding in findings:
        same = finding.conclusion.verdict is conclusion.verdict
        if same and finding.tunnel == remote.tunnel:
            finding.to.append(remote)
            return
    place = Place(remote, tuple(host[0]), host[1])
    findings.append(Finding(remote.tunnel, conclusion, place, [remote]))


async def _without_probes(found: list[Tunnel]) -> Report:
    """Report what rules and devices show. That is never enough for a verdict."""
    after = await natrules.read()
    notes = [
        f"these rules may rewrite packets to port {tunnel.port}: {_told(rule)}"
        for tunnel in found
        for rule in after.rules
        if f"{tunnel.port}" in rule.text.split()
    ]
    if after.mark is not None and not after.clears_mark:
        notes.append(
            "kube-proxy's rules on this host do not clear its mark (kube-proxy up to 1.18.5)"
        )
    return Report(
        trouble="no probes were sent (--probe off), and rules alone prove nothing.", notes=notes
    )


def _lanes() -> dict[int, frozenset[str]]:
    """Return the lanes of csumfix that are loaded, by port."""
    found: dict[int, set[str]] = {}
    try:
        loaded = rules.loaded()
    except CsumfixError:
        return {}
    for rule in loaded.rules:
        for word in rule.text.replace(",", " ").split():
            if word.isdecimal() and rule.lane in ("kernel", "queue"):
                found.setdefault(int(word), set()).add(rule.lane)
    return {port: frozenset(lanes) for port, lanes in found.items()}


def _notes(
    options: DoctorOptions, to: Sequence[Remote], probes: Probes, after: NatRules
) -> list[str]:
    notes = []
    if probes.blind:
        notes.append(
            f"some tests need root: {probes.blind}. Run this as root for a certain verdict."
        )
    elif after.trouble:
        notes.append(f"not all rules could be read: {after.trouble}")
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
