"""Recreates the lab's tunnel on the sender, with other parameters or over another underlay."""

from csumfix_lab import Lab

UNBOUND = "udpcsum"
"""Neither a local address nor an underlay: as Calico and Cilium make it."""


def rebuild(lab: Lab, options: str, *, forwarding: bool = True) -> None:
    """Replace the sender's vxlan device, if there is one.

    options: of the new device, besides its number, its port and its MAC address.
    forwarding: whether to make the FDB entry of the other end, too; see forward().
    """
    here, there = lab.spec.client, lab.spec.receiver
    family = "-6" if lab.spec.ipv6 else "-4"
    vtep, vtep6 = there.vtep.ip(False), there.vtep.ip(True)
    script = f"""
ip link del {lab.device} 2>/dev/null || true
ip {family} link add {lab.device} mtu {lab.spec.tunnel_mtu} address {here.mac} \
    type vxlan id 1 dstport {lab.spec.port} nolearning {options}
ip link set {lab.device} up
ip addr add {here.vtep.v4} dev {lab.device}
ip addr add {here.vtep.v6} dev {lab.device} nodad
ip neigh add {vtep} lladdr {there.mac} dev {lab.device} nud permanent
ip neigh add {vtep6} lladdr {there.mac} dev {lab.device} nud permanent
ip route add {there.pod_net.v4} via {vtep} dev {lab.device} onlink
ip route add {there.pod_net.v6} via {vtep6} dev {lab.device} onlink
"""
    lab.sender.run(["sh", "-eu"], input=script)
    if forwarding:
        forward(lab)


def forward(lab: Lab) -> None:
    """Make the FDB entry of the tunnel's other end."""
    entry = f"fdb append {lab.spec.receiver.mac} dev {lab.device} dst {lab.spec.remote_vtep} self"
    lab.sender.run(["bridge", *entry.split(), "permanent"])
