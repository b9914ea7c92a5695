"""What ``csumfix doctor`` finds out without probes: it watches the packets that leave."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from csumfix.errors import CsumfixError
from csumfix.evidence import watch
from csumfix.evidence.case import Conclusion, Facts, Verdict
from csumfix.evidence.departures import Departure
from csumfix.evidence.rewriting import conclude_from_departures
from csumfix.evidence.watch import Stream
from csumfix.host import conntrack, natrules, nics, rules, tunnels, underlays
from csumfix.host.conntrack import Tracked
from csumfix.host.natrules import NatRules
from csumfix.host.remotes import Remote
from csumfix.host.tunnels import Tunnel
from csumfix.protocols import WELL_KNOWN, named
from csumfix.text import listing
from csumfix.views.diagnosis import Report, told

LOOK = 4.0
"""Seconds for which packets are watched."""


async def look_at_forwarded() -> Report:
    """Look at tunnels of other hosts whose packets this host forwards."""
    trouble = (
        "this network namespace has no vxlan or geneve device, and no packet that it forwards for "
        "another host's tunnel left wrong. Run this on a node, in the host's network namespace: "
        "nsenter --net=/proc/1/ns/net csumfix doctor"
    )
    try:
        devices = await underlays.find([], named=True)
        watched = await watch.departures(devices, WELL_KNOWN, LOOK)
    except OSError as error:
        return _blind(trouble, error)
    report = Report(trouble="" if watched.wrong() else trouble)
    for stream, seen in watched.wrong().items():
        wrong, total = seen.left[Departure.WRONG], seen.left.total()
        evidence = f"{wrong} of {total} packets from {stream.source} to {stream.dest} left wrong"
        conclusion = Conclusion(Verdict.FORWARDED, (evidence,))
        report.add(_remote(stream, ()), conclusion, [])
    return report


async def look_at_hidden(ports: Collection[int]) -> Report:
    """Look at what leaves by tunnels whose device is in another network namespace."""
    trouble = (
        f"the socket on port {listing(sorted(ports))} may be that of a vxlan or geneve device in "
        "another network namespace, as Docker Swarm has it, which cannot be probed from here."
    )
    return await look((), ports, trouble)


async def look_at_rules(found: Sequence[Tunnel], hidden: Collection[int]) -> Report:
    """Look at rules and at what leaves. Rules are never enough for a verdict."""
    trouble = "no probes were sent (--probe off), and rules alone prove nothing."
    report = await look(found, hidden, trouble)
    after = await natrules.read()
    report.notes += [
        f"these rules may rewrite packets to port {tunnel.port}: {told(rule)}"
        for tunnel in found
        for rule in after.rules
        if f"{tunnel.port}" in rule.text.split()
    ]
    if after.mark is not None and not after.clears_mark:
        report.notes.append(
            "kube-proxy's rules on this host do not clear its mark (kube-proxy up to 1.18.5)"
        )
    return report


async def look(found: Sequence[Tunnel], hidden: Collection[int], trouble: str) -> Report:
    """Judge the packets that leave by tunnels that are not probed.

    hidden: ports of tunnels whose device is not here.
    trouble: why there are no probes; if no packet leaves wrong, nothing is certain.
    """
    ports = {**tunnels.protocols(found), **named(hidden)}
    try:
        devices = await underlays.find(found, named=bool(hidden))
        watched = await watch.departures(devices, ports, LOOK)
    except OSError as error:
        return _blind(trouble, error)
    wrong = watched.wrong()
    if not wrong:
        seen = "No packet left meanwhile: run this again while the tunnel is used."
        if watched.total:
            seen = f"None of {watched.total} packets that left meanwhile was wrong."
        return Report(trouble=f"{trouble} {seen}")
    flows = {flow for outcome in wrong.values() for flow in outcome.wrong_flows}
    after, cards, loaded = await natrules.read(), nics.find(devices), lanes()
    tracked = await conntrack.look_up(list(flows))
    report = Report(notes=unread(after, tracked))
    for stream, outcome in wrong.items():
        facts = Facts(
            after=after,
            nics=cards,
            kernel=nics.kernel_version(),
            lanes=loaded.get(stream.port, frozenset()),
            tracked=tracked,
        )
        remote = _remote(stream, found)
        report.add(remote, conclude_from_departures(remote, outcome, facts), cards)
    return report


def _blind(trouble: str, error: OSError) -> Report:
    return Report(trouble=trouble, notes=[f"packets were not seen leaving: {error.strerror}"])


def _remote(stream: Stream, found: Sequence[Tunnel]) -> Remote:
    """Return the remote end of packets that were seen, of which no inner address is known."""
    hidden = Tunnel(f"port {stream.port}", stream.port, "both", 0, checksum=False)
    tunnel = next((one for one in found if one.port == stream.port), hidden)
    name = tunnel.name if tunnel.index else ""
    return Remote(tunnel, tunnel.index, name, "", stream.source, b"", b"", stream.dest, tunnel.mtu)


def lanes() -> dict[int, frozenset[str]]:
    """Return the lanes of csumfix that are loaded, by port; none if that cannot be read."""
    try:
        return rules.loaded().lanes
    except CsumfixError:
        return {}


def unread(after: NatRules, tracked: Tracked) -> list[str]:
    """Say which rules and flows could not be read."""
    notes = [tracked.trouble] if tracked.trouble else []
    if after.trouble:
        notes.append(f"not all rules could be read: {after.trouble}")
    return notes
