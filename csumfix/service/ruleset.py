"""From tunnels, lanes and options to the rules that they need."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from csumfix.host.rules import RuleSet
from csumfix.host.tunnels import GENEVE_SOURCE_PORTS, Family, Tunnel, local_port_range
from csumfix.options import Options
from csumfix.service.lanes import Lane, PortLane


def tunnel_ports(options: Options, found: Sequence[Tunnel]) -> frozenset[int]:
    """Return the UDP ports of all tunnels, those that no device shows included."""
    return frozenset({*options.protocols, *(tunnel.port for tunnel in found)})


def rule_set(  # noqa: PLR0913 - everything that the rules depend on
    options: Options,
    numbers: range,
    found: Sequence[Tunnel],
    lanes: Mapping[int, PortLane],
    leaving: Sequence[int],
    *,
    recording: bool = False,
    without_kernel: Collection[int] = (),
) -> RuleSet | None:
    """Compute the rules; None if there is no tunnel.

    numbers: of the queues.
    leaving: ports whose flows leave the queue lane one by one.
    recording: these flows are being recorded, and still all queued.
    without_kernel: ports that do without the kernel lane's rules.
    """
    if not lanes:
        return None
    # The kernel lane stays under the queue lane: it costs next to nothing there, and a port can
    # leave the queue lane without a gap.
    return RuleSet(
        kernel_ports=tuple(sorted(lanes.keys() - set(without_kernel))),
        queue_ports=tuple(sorted(p for p, one in lanes.items() if one.lane is Lane.QUEUE)),
        queue_base=numbers.start,
        queues=len(numbers),
        family=_family(options, found),
        source_ports=_source_ports(options, found),
        leaving_ports=tuple(sorted(leaving)),
        recording=recording,
    )


def _family(options: Options, found: Sequence[Tunnel]) -> Family:
    families: set[Family] = {tunnel.family for tunnel in found}
    if options.protocols or len(families) != 1:
        return "both"
    return families.pop()


def _source_ports(options: Options, found: Sequence[Tunnel]) -> tuple[int, int]:
    """Return the range of outer source ports; unknown devices have that of their kind."""
    ranges = [tunnel.source_ports for tunnel in found]
    unknown = options.protocols.values()
    if "vxlan" in unknown:
        ranges.append(local_port_range())
    if "geneve" in unknown:
        ranges.append(GENEVE_SOURCE_PORTS)
    return min(low for low, _ in ranges), max(high for _, high in ranges)
