"""What ``csumfix doctor`` has found, as text for people and as plain data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from csumfix.errors import Exit
from csumfix.evidence.case import HEALTHY, Conclusion, Verdict
from csumfix.evidence.outcomes import Probed, Probes
from csumfix.host.natrules import NatRule
from csumfix.host.nics import Nic
from csumfix.host.remotes import Remote
from csumfix.host.tunnels import Tunnel
from csumfix.text import listing, printable, printable_data
from csumfix.views.cures import Cure, Place, cures

WIDTH = 80  # columns

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
                "cures": [cure.as_json() for cure in cures(conclusion, self.place)],
            }
        )
        return plain


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

    def add(self, remote: Remote, conclusion: Conclusion, cards: Sequence[Nic]) -> None:
        """Add a conclusion, or a remote end to a finding that says the same."""
        for finding in self.findings:
            same = finding.conclusion.verdict is conclusion.verdict
            if same and finding.tunnel == remote.tunnel:
                finding.to.append(remote)
                return
        place = Place(remote, tuple(cards))
        self.findings.append(Finding(remote.tunnel, conclusion, place, [remote]))

    def sort(self) -> None:
        """Put the worst findings first."""
        self.findings.sort(key=lambda one: list(Verdict).index(one.conclusion.verdict))

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
    probed = [remote for remote in finding.to if remote.address]
    probes = f", from probes to {listing(probed, limit=2)}" if probed else ""
    yield from _wrapped(f"Evidence{probes}:", "", "  ")
    for line in conclusion.evidence:
        yield from _wrapped(line, "  - ", "    ")
    for rule in conclusion.rules:
        yield from _wrapped(told(rule), "  - ", "    ")
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


def told(rule: NatRule) -> str:
    """Show a rule, with its owner and chain."""
    count = "" if rule.packets is None else f" ({rule.packets} packets so far)"
    return f"rule of {rule.owner}{count}, in {rule.chain}: {rule.text}"


def _cure(number: int, cure: Cure) -> Iterator[str]:
    yield from _wrapped(cure.what, f"  {number}. ", "     ")
    yield from _wrapped(f"Price: {cure.price}.", "     ", "     ")
    for command in cure.commands:
        yield f"       {printable(command)}"
