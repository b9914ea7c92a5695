"""The cures that an operator can choose between, each with its price and its commands. Pure.

The prices in microseconds come from `make bench`, packets of 600 bytes; see the README.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csumfix.evidence.case import Conclusion, Verdict
from csumfix.host.nics import Nic
from csumfix.host.remotes import Remote

VMXNET3_PORTS = frozenset({4789, 6081, 8472})
"""Ports for which vmxnet3 offloads tunnels (drivers/net/vmxnet3/vmxnet3_ethtool.c,
vmxnet3_features_check()); to others it offers nothing, and the kernel computes the checksums."""

ANOTHER_PORT = 8473


@dataclass(frozen=True)
class Cure:
    """One cure.

    commands: can be typed as they are.
    at_device: whether they have to do with the tunnel's device.
    """

    what: str
    price: str
    commands: tuple[str, ...]
    at_device: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"what": self.what, "price": self.price, "commands": list(self.commands)}


@dataclass(frozen=True)
class Place:
    """The tunnel and remote end that the cures are for.

    nics: that carry the tunnel, the upper ones first.
    """

    remote: Remote
    nics: tuple[Nic, ...]

    @property
    def tunnel(self) -> str:
        """The tunnel's device."""
        return self.remote.tunnel.name

    @property
    def port(self) -> int:
        """The tunnel's port."""
        return self.remote.tunnel.port

    @property
    def nic(self) -> str:
        """The device that carries the tunnel."""
        return self.nics[0].name if self.nics else "UNDERLAY-DEVICE"

    @property
    def vtep(self) -> str:
        """The other end's outer address."""
        return self.remote.vtep or "VTEP-ADDRESS"

    @property
    def has_device(self) -> bool:
        """Whether the tunnel's device is in this network namespace."""
        return bool(self.remote.device)


def cures(conclusion: Conclusion, place: Place) -> list[Cure]:
    """Return the cures of what was found, the cheapest first."""
    make = MAKERS.get(conclusion.verdict)
    found = make(conclusion, place) if make else []
    return [cure for cure in found if place.has_device or not cure.at_device]


def _kernel_lane(place: Place) -> list[Cure]:
    return [
        Cure(
            "csumfix's kernel lane: the kernel completes the checksum before NAT",
            "about 0.6 us of CPU per packet; a few iptables rules, no service (nft needs it)",
            (f"csumfix-rules apply --lane kernel --port {place.port}",),
        ),
        Cure(
            "the kernel lane, loaded by the csumfix service, which checks that it works",
            "the same, and a process that is mostly idle",
            ("csumfix run",),
        ),
    ]


def _queue_lane() -> Cure:
    return Cure(
        "csumfix's queue lane: csumfix verifies and repairs every packet of the tunnel",
        "about 7 us of CPU per packet",
        (
            "csumfix run",
            "# It chooses this lane by evidence. To choose it yourself:",
            "csumfix run --lane queue",
        ),
    )


def _inner_off(place: Place) -> Cure:
    return Cure(
        "turn off checksum offload on the tunnel's device",
        "TCP through the tunnel loses segmentation offload; undone when the device is recreated",
        (
            f"ethtool -K {place.tunnel} tx-checksum-ip-generic off",
            "# permanent, in /etc/systemd/network/50-csumfix.link:",
            f"#   [Match] OriginalName={place.tunnel}",
            "#   [Link]  TransmitChecksumOffload=no",
        ),
        at_device=True,
    )


def _outer_off(place: Place) -> Cure:
    return Cure(
        f"turn off checksum offload on {place.nic}",
        "the CPU computes the checksums of all traffic on this device, and segments its TCP",
        (
            f"ethtool -K {place.nic} tx off",
            "# permanent, in /etc/systemd/network/50-csumfix.link:",
            f"#   [Match] OriginalName={place.nic}",
            "#   [Link]  TransmitChecksumOffload=no",
        ),
    )


def _tunnel_offload_off(place: Place) -> Cure:
    return Cure(
        f"turn off tunnel segmentation offload on {place.nic}",
        "the CPU segments the tunnels' GSO packets; other traffic is not affected",
        (f"ethtool -K {place.nic} tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off",),
    )


def _kube_proxy(_: Conclusion, place: Place) -> list[Cure]:
    upgrade = Cure(
        "upgrade kube-proxy to 1.18.6 or later, which clears its mark",
        "none, if nothing else prevents the upgrade",
        ("kubectl -n kube-system get ds kube-proxy -o jsonpath='{..image}'",),
    )
    return [upgrade, *_kernel_lane(place), _inner_off(place)]


def _cni(conclusion: Conclusion, place: Place) -> list[Cure]:
    save = "ip6tables" if ":" in place.remote.address else "iptables"
    commands = [f"{save} -t nat -S POSTROUTING   # its jump must come after KUBE-POSTROUTING"]
    if any(rule.owner == "Calico" for rule in conclusion.rules):
        commands.append(
            "kubectl patch felixconfiguration default --type merge "
            """-p '{"spec":{"chainInsertMode":"Append"}}'"""
        )
    move = Cure(
        "make the CNI masquerade after kube-proxy: update it, or change its setting",
        "rules of other programs then come before the CNI's as well",
        tuple(commands),
    )
    return [move, *_kernel_lane(place), _inner_off(place)]


def _snat(_: Conclusion, place: Place) -> list[Cure]:
    program = "ip6tables" if ":" in place.remote.vtep else "iptables"
    exempt = Cure(
        "exempt the tunnel from source NAT, if its packets do not need it",
        "none; this rule must be, and remain, the first in its chain",
        (f"{program} -t nat -I POSTROUTING -p udp --dport {place.port} -j ACCEPT",),
    )
    return [exempt, *_kernel_lane(place), _inner_off(place)]


def _real_address(place: Place) -> Cure:
    return Cure(
        "configure the tunnel with the real address of its remote end",
        "none, if nothing else needs the virtual address",
        (f"bridge fdb show dev {place.tunnel} | grep {place.vtep}",),
        at_device=True,
    )


def _dnat(_: Conclusion, place: Place) -> list[Cure]:
    return [_real_address(place), *_kernel_lane(place), _inner_off(place)]


def _ipvs(_: Conclusion, place: Place) -> list[Cure]:
    # The gate asks conntrack whether NAT touches a flow, but conntrack may not know of IPVS.
    lane = Cure(
        "csumfix's kernel lane without its gate: the kernel completes checksums before IPVS",
        "the kernel computes the checksum of every non-GSO packet of the tunnel",
        (f"csumfix-rules apply --lane kernel --gate none --port {place.port}",),
    )
    return [_real_address(place), lane, _queue_lane(), _inner_off(place)]


def _forwarded(_: Conclusion, place: Place) -> list[Cure]:
    lane = Cure(
        "csumfix's queue lane on this host: it repairs the packets that pass through",
        "about 7 us of CPU per packet",
        (f"csumfix run --lane queue --port {place.port}",),
    )
    origin = Cure(
        "find what damages them between their sender and this host",
        "none",
        (f"csumfix doctor   # at {place.remote.source}",),
    )
    return [origin, lane]


def _stateless(_: Conclusion, place: Place) -> list[Cure]:
    later = Cure(
        "move the rewriting rule to a chain of priority -100, and load the kernel lane",
        "the kernel computes the checksum of every non-GSO packet of the tunnel",
        (
            "nft -a list ruleset",
            f"csumfix-rules apply --lane kernel --gate none --port {place.port}",
        ),
    )
    return [_real_address(place), later, _queue_lane(), _inner_off(place)]


def _zero(_: Conclusion, place: Place) -> list[Cure]:
    upgrade = Cure(
        "use a kernel with the fix: 5.7, 5.4.41, 4.19.123, 4.14.181 or later",
        "a reboot",
        ("uname -r",),
    )
    return [upgrade, _queue_lane()]


def _nic(_: Conclusion, place: Place) -> list[Cure]:
    off = _outer_off(place) if place.remote.has_outer_checksum else _inner_off(place)
    return [*_by_driver(place), off, _queue_lane()]


def _nic_outer(_: Conclusion, place: Place) -> list[Cure]:
    return [*_by_driver(place), _outer_off(place), _queue_lane()]


def _nic_gso(_: Conclusion, place: Place) -> list[Cure]:
    return [*_by_driver(place), _tunnel_offload_off(place), _queue_lane()]


def _by_driver(place: Place) -> list[Cure]:
    """Return the cures for drivers that are known to have the fault."""
    drivers = {nic.driver: nic for nic in place.nics}
    if "vmxnet3" in drivers and place.port in VMXNET3_PORTS:
        return [_other_port()]
    if drivers.keys() & {"ice", "i40e", "ena", "hv_netvsc", "virtio_net"}:
        update = Cure(
            "update the firmware, the driver or the hypervisor",
            "a reboot",
            tuple(f"ethtool -i {nic.name}" for nic in drivers.values() if nic.driver),
        )
        tunnel = any("tx-udp_tnl-segmentation" in nic.features for nic in place.nics)
        return [update, *([_tunnel_offload_off(place)] if tunnel else [])]
    return []


def _other_port() -> Cure:
    return Cure(
        f"choose another port: vmxnet3 offloads only {', '.join(map(str, sorted(VMXNET3_PORTS)))}",
        "all nodes must change at once; the kernel then computes the checksums",
        (
            "kubectl -n kube-flannel edit configmap kube-flannel-cfg   "
            f'# "Backend": {{"Type": "vxlan", "Port": {ANOTHER_PORT}}}',
        ),
    )


def _relay(_: Conclusion, place: Place) -> list[Cure]:
    return [_inner_off(place), _queue_lane()]


def _remote(_: Conclusion, place: Place) -> list[Cure]:
    return [
        Cure(
            f"look at the remote end, {place.vtep}: nothing on this host can cure it",
            "none",
            ("csumfix doctor   # there",),
        )
    ]


def _mtu(_: Conclusion, place: Place) -> list[Cure]:
    overhead = 70 if ":" in place.remote.vtep else 50
    size = place.remote.mtu - (20 if place.remote.version == 4 else 40) - 8  # noqa: PLR2004
    return [
        Cure(
            "not a checksum: find the largest size that passes, and lower the tunnel's MTU to it",
            "more packets for the same data",
            (
                f"ping -M do -s {size} {place.remote.address}   # smaller, until it is answered",
                f"ip link set {place.tunnel} mtu N   # path MTU less {overhead}",
            ),
        )
    ]


def _black_hole(_: Conclusion, place: Place) -> list[Cure]:
    return [
        Cure(
            f"not a checksum: allow UDP port {place.port} between the nodes; check security "
            "groups, network policies, firewalls and the hypervisor",
            "none",
            (f"tcpdump -ni any udp port {place.port}   # at {place.vtep}: does anything arrive?",),
        )
    ]


def _not_leaving(_: Conclusion, place: Place) -> list[Cure]:
    return [
        Cure(
            "not a checksum: find what drops the tunnel's packets on this host",
            "none",
            (
                f"ip route get {place.vtep}",
                f"nft list ruleset | grep -e drop -e reject   # udp dport {place.port}",
            ),
        )
    ]


def _loss(_: Conclusion, place: Place) -> list[Cure]:
    return [
        Cure(
            "not a checksum: look for a congested link, a bad cable or a policer",
            "none",
            (f"ip -s link show {place.nic}", f"ping -f -c 1000 {place.vtep}"),
        )
    ]


MAKERS = {
    Verdict.KUBE_PROXY: _kube_proxy,
    Verdict.CNI: _cni,
    Verdict.SNAT: _snat,
    Verdict.NAT: _snat,
    Verdict.DNAT: _dnat,
    Verdict.IPVS: _ipvs,
    Verdict.STATELESS: _stateless,
    Verdict.ZERO_NAT: _zero,
    Verdict.NIC: _nic,
    Verdict.NIC_OUTER: _nic_outer,
    Verdict.NIC_GSO: _nic_gso,
    Verdict.RELAY: _relay,
    Verdict.FORWARDED: _forwarded,
    Verdict.REMOTE: _remote,
    Verdict.MTU: _mtu,
    Verdict.BLACK_HOLE: _black_hole,
    Verdict.NOT_LEAVING: _not_leaving,
    Verdict.LOSS: _loss,
}
