"""From tunnels and options to the rules that they need. Pure."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from csumfix.host import rules, tunnels
from csumfix.host.rules import RuleSet
from csumfix.host.tunnels import Tunnel
from csumfix.options import Options

log = logging.getLogger("csumfix")


def plan(
    options: Options, numbers: range, found: Sequence[Tunnel], underlay_mtu: int
) -> RuleSet | None:
    """Compute the rules that these tunnels need; None if there is nothing to divert.

    numbers: of the queues.
    underlay_mtu: the largest of this host in bytes; see needs_underlay_mtu().
    """
    every = [*found, *_named_tunnels(options, underlay_mtu)]
    if not every:
        return None
    families = {tunnel.family for tunnel in every}
    return RuleSet(
        ports=_ports(options, found),
        queue_base=numbers.start,
        queues=len(numbers),
        family=families.pop() if len(families) == 1 else "both",
        divert=options.divert,
        max_length=max(tunnel.longest_packet(underlay_mtu) for tunnel in every),
        source_ports=(
            min(tunnel.source_ports[0] for tunnel in every),
            max(tunnel.source_ports[1] for tunnel in every),
        ),
    )


def needs_underlay_mtu(options: Options, found: Sequence[Tunnel]) -> bool:
    """Tell whether plan() depends on underlay_mtu, which costs a look at every device."""
    return bool(options.ports) or any(tunnel.metadata for tunnel in found)


def _named_tunnels(options: Options, underlay_mtu: int) -> list[Tunnel]:
    """Stand in for the unknown devices behind --port, as wide as they could be."""
    source_ports = tunnels.local_port_range() if options.ports else (0, 0)
    return [
        Tunnel("--port", port, "both", underlay_mtu, source_ports=source_ports)
        for port in options.ports
    ]


def _ports(options: Options, found: Sequence[Tunnel]) -> tuple[int, ...]:
    """Return the ports to divert, the operator's first if they are too many for one rule."""
    wanted = list(dict.fromkeys([*options.ports, *(tunnel.port for tunnel in found)]))
    if len(wanted) > rules.MAX_PORTS:
        log.error(
            "too many ports: one rule names at most %d: not repaired: %s",
            rules.MAX_PORTS,
            " ".join(map(str, wanted[rules.MAX_PORTS :])),
            extra={"event": "too_many_ports"},
        )
    return tuple(sorted(wanted[: rules.MAX_PORTS]))
