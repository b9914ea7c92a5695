"""Which lane the operator wants for each tunnel port, and why: settings in, wishes out. Pure.

Devices have settings, but only ports have lanes. If the devices of a port want different lanes, it
takes the one that repairs most: queue before auto, auto before kernel. A device that is not named
in the settings wants what is set for all, and so does a port without a device.

With ``zero = "fill"``, a port that may send an outer checksum of 0 takes the queue lane, unless it
is told to stay in the kernel lane. Nothing fills it there: udp_set_csum() (net/ipv4/udp.c) writes
0 and leaves nothing to offload, so CHECKSUM completes only the inner checksum. In the queue lane
every packet is filled. GSO packets are segmented before they are queued, because the drain does
not set NFQA_CFG_F_GSO (net/netfilter/nfnetlink_queue.c: nfqnl_enqueue_packet()).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from csumfix.host.tunnels import Tunnel
from csumfix.options import LaneSetting, Options
from csumfix.text import listing

BY_REPAIR = (LaneSetting.QUEUE, LaneSetting.AUTO, LaneSetting.KERNEL)
"""The lanes, the one first that repairs most."""

NAMED = 3
"""How many devices a reason names."""


@dataclass(frozen=True)
class Wish:
    """The lane that the operator wants for a port, and the setting that says so."""

    lane: LaneSetting
    why: str


def wishes(options: Options, found: Iterable[Tunnel], ports: Collection[int]) -> dict[int, Wish]:
    """Return the wish for each of these ports."""
    devices = _by_port(found)
    return {port: _wish(options, devices.get(port, [])) for port in ports}


def missing(options: Options, found: Iterable[Tunnel]) -> list[str]:
    """Name the devices that have settings and are not here; they may appear later."""
    names = options.tunnels.keys() - {tunnel.name for tunnel in found}
    if not names:
        return []
    return [f"the settings name devices that are not here: {listing(sorted(names))}"]


def conflicts(options: Options, found: Iterable[Tunnel]) -> list[str]:
    """Say of each port whose devices want different lanes which one it takes."""
    if not options.tunnels:
        return []
    return [
        f"port {port} takes lane = {_wish(options, devices).lane}, because its devices want "
        f"different ones: {_by_lane(options, devices)}"
        for port, devices in sorted(_by_port(found).items())
        if len(set(_lanes(options, devices).values())) > 1
    ]


def unfilled(options: Options, found: Iterable[Tunnel]) -> list[str]:
    """Say which ports keep checksums of 0 although these are to be filled."""
    if not options.fill_zero:
        return []
    return [
        f"port {port} keeps outer checksums of 0, which only the queue lane fills: {wish.why}"
        for port, devices in sorted(_by_port(found).items())
        if _may_send_zero(devices) and (wish := _wish(options, devices)).lane is LaneSetting.KERNEL
    ]


def _by_port(found: Iterable[Tunnel]) -> dict[int, list[Tunnel]]:
    devices: dict[int, list[Tunnel]] = {}
    for tunnel in found:
        devices.setdefault(tunnel.port, []).append(tunnel)
    return devices


def _lanes(options: Options, devices: Iterable[Tunnel]) -> dict[str, LaneSetting]:
    """Return the lane that each device wants."""
    return {one.name: _own_lane(options, one.name) or options.lane for one in devices}


def _own_lane(options: Options, name: str) -> LaneSetting | None:
    own = options.tunnels.get(name)
    return own.lane if own else None


def _wish(options: Options, devices: Sequence[Tunnel]) -> Wish:
    lanes = _lanes(options, devices)
    lane = min(lanes.values(), key=BY_REPAIR.index, default=options.lane)
    if lane is LaneSetting.AUTO and options.fill_zero and _may_send_zero(devices):
        return Wish(LaneSetting.QUEUE, "setting zero = fill")
    wanting = [name for name, wanted in lanes.items() if wanted is lane]
    named = [name for name in wanting if _own_lane(options, name)]
    whose = f" for {listing(named, limit=NAMED)}" if named and named == wanting else ""
    return Wish(lane, f"setting lane = {lane}{whose}")


def _may_send_zero(devices: Sequence[Tunnel]) -> bool:
    """Tell whether a packet may leave with an outer checksum of 0; unknown devices may send it."""
    return not devices or any(map(_sends_zero, devices))


def _sends_zero(tunnel: Tunnel) -> bool:
    # Whoever sends by a collect-metadata device decides about each packet.
    over4 = tunnel.family != "6" and not tunnel.checksum
    over6 = tunnel.family != "4" and not tunnel.checksum6
    return tunnel.metadata or over4 or over6


def _by_lane(options: Options, devices: Sequence[Tunnel]) -> str:
    lanes = _lanes(options, devices)
    groups = {lane: [name for name in lanes if lanes[name] is lane] for lane in BY_REPAIR}
    return "; ".join(
        f"{lane} {listing(names, limit=NAMED)}" for lane, names in groups.items() if names
    )
