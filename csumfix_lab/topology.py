"""The topology: shell scripts that build the lab's namespaces, devices and routes.

Theory of operation
-------------------
A veth device passes a packet to its peer with partial checksums, and the peer accepts it without
verifying: between two directly joined namespaces no checksum is ever wrong. So a third namespace,
the *wire*, joins the nodes. It has a bridge whose ports have transmit offload off. For such a port
the kernel computes checksums and segments GSO packets before it passes them on, as a good NIC does
for the node. The node's own settings stay as they are. The receiver gets complete packets, and
verifies them.

A relay has its socket in the wire. Checksums are computed only when a packet leaves a port of the
wire, so the relay receives the partial inner checksums that the sender has left. Only the sender's
packets should be affected, so the receiver's NIC then offers no offload and its kernel computes
all checksums.

Each function returns a script for ``sh -eu`` in the network namespace it is named after.
"""

from csumfix_lab.spec import (
    DEVICE,
    GATEWAY,
    GUEST,
    GUEST_GATEWAY,
    GUEST_NET,
    RECEIVER,
    SENDER,
    VIRTUAL_VTEP,
    VNI,
    Dual,
    End,
    LabSpec,
)

LYING_NIC = "nic0"  # the TAP's name in the wire, before it becomes the sender's eth0
NIC_PORT = "p1"  # where the forwarder behind the TAP reaches the wire
MIDDLEBOX_IN, MIDDLEBOX_OUT = "p1", "m1"  # to the guest, to the sender

_NO_OFFLOAD = "tx off tso off gso off gro off"
# A new network namespace copies the machine's IPv4 settings, so every setting that matters is set.
# Duplicate address detection would cost two seconds: a router sends neighbour solicitations for
# forwarded IPv6 packets from its link-local address, and cannot before that address is checked.
_SYSCTLS = {
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/accept_redirects": 0,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/send_redirects": 0,
    "ipv6/conf/all/disable_ipv6": 0,
    "ipv6/conf/default/disable_ipv6": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/router_solicitations": 0,
    "ipv6/conf/default/forwarding": 1,
    "ipv6/conf/all/forwarding": 1,
    "ipv4/ip_forward": 1,
}


def _batch(tool: str, lines: list[str]) -> list[str]:
    return [f"{tool} -batch - <<'EOF'", *lines, "EOF"]


def settings() -> str:
    """Make a namespace a node. Run it first: devices copy these settings when created."""
    return _script([f"echo {value} >/proc/sys/net/{name}" for name, value in _SYSCTLS.items()])


def _no_ipv6() -> list[str]:
    """Keep a namespace that only passes frames on from sending its own."""
    return ["echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6"]


def _script(lines: list[str]) -> str:
    return "\n".join((*lines, ""))


def _addresses(device: str, *addresses: Dual) -> list[str]:
    return [
        line
        for one in addresses
        for line in (
            f"addr add {one.v4} dev {device}",
            f"addr add {one.v6} dev {device} nodad",
        )
    ]


def _default_route(gateway: Dual) -> list[str]:
    # kube-proxy's bug needs the IPv4 route on any underlay. The route of a query to a service IP
    # must lead to a device with checksum offload; otherwise the socket computes the inner
    # checksum.
    return [
        f"route add default via {gateway.ip(False)}",
        f"route add default via {gateway.ip(True)}",
    ]


def _tunnel(spec: LabSpec, here: End, there: End, remote: str) -> list[str]:
    """Return what flannel would set up on one end: device, forwarding, neighbours, routes."""
    ipv6 = spec.ipv6
    checksum = (
        "noudp6zerocsumtx noudp6zerocsumrx"
        if ipv6
        else "udpcsum"
        if spec.outer_checksum
        else "noudpcsum"
    )
    vtep, vtep6 = there.vtep.ip(False), there.vtep.ip(True)
    links = [
        f"link add {DEVICE} mtu {spec.tunnel_mtu} address {here.mac} type vxlan id {VNI} dev eth0"
        f" local {here.underlay.ip(ipv6)} dstport {spec.port} nolearning {checksum}",
        f"link set {DEVICE} up",
        f"link add cni0 mtu {spec.tunnel_mtu} type bridge",
        "link set cni0 up",
        *_addresses(DEVICE, here.vtep),
        *_addresses("cni0", here.gateway, here.pod),
        f"neigh add {vtep} lladdr {there.mac} dev {DEVICE} nud permanent",
        f"neigh add {vtep6} lladdr {there.mac} dev {DEVICE} nud permanent",
        f"route add {there.pod_net.v4} via {vtep} dev {DEVICE} onlink",
        f"route add {there.pod_net.v6} via {vtep6} dev {DEVICE} onlink",
    ]
    forwarding = [f"fdb append {there.mac} dev {DEVICE} dst {remote} self permanent"]
    return [*_batch("ip", links), *_batch("bridge", forwarding)]


def _wire_port(spec: LabSpec, port: str, peer: str, netns: str | None = None) -> list[str]:
    """Return the ip lines that make a port of the wire's bridge, with its peer in `netns`."""
    where = f" netns {netns}" if netns else ""
    mtu = f"mtu {spec.mtu}"
    return [
        f"link add {port} {mtu} type veth peer name {peer} {mtu}{where}",
        f"link set {port} master br0",
        f"link set {port} up",
    ]


def _bridge(spec: LabSpec) -> str:
    # Without a querier, snooping could block neighbour discovery.
    return f"link add br0 mtu {spec.mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"


def _relay_address() -> list[str]:
    """Give the wire's bridge an address, once it exists."""
    return [
        "echo 0 >/proc/sys/net/ipv6/conf/br0/disable_ipv6",
        *_batch("ip", _addresses("br0", VIRTUAL_VTEP)),
    ]


def wire(spec: LabSpec, *, lying_nic: bool) -> str:
    """Build the network between the nodes; with `lying_nic`, without the sender's veth pair."""
    sender = (
        [*_wire_port(spec, "p0", NIC_PORT), f"link set {NIC_PORT} up"]
        if lying_nic
        else _wire_port(spec, "p0", "eth0", "sender")
    )
    links = [
        "link set lo up",
        _bridge(spec),
        *sender,
        *_wire_port(spec, "p2", "eth0", "receiver"),
        "link set br0 up",
    ]
    offload = [f"ethtool -K {port} {_NO_OFFLOAD}" for port in ("p0", "p2")]
    relay = _relay_address() if spec.relay else []
    return _script([*_no_ipv6(), *_batch("ip", links), *offload, *relay])


def middlebox(spec: LabSpec) -> str:
    """Build the box between guest and sender, whose forwarder damages outer checksums.

    guest eth0 -- m0 -- br0 -- p0 (computes checksums) -- p1 -- forwarder -- m1 -- eth1 sender
    """
    mtu = f"mtu {spec.mtu}"
    links = [
        "link set lo up",
        _bridge(spec),
        *_wire_port(spec, "m0", "eth0", "guest"),
        *_wire_port(spec, "p0", MIDDLEBOX_IN),
        f"link add {MIDDLEBOX_OUT} {mtu} type veth peer name eth1 {mtu} netns sender",
        f"link set {MIDDLEBOX_IN} up",
        f"link set {MIDDLEBOX_OUT} up",
        "link set br0 up",
    ]
    offload = [f"ethtool -K {port} {_NO_OFFLOAD}" for port in ("m0", "p0")]
    return _script([*_no_ipv6(), *_batch("ip", links), *offload])


def sender(spec: LabSpec) -> str:
    """Set up the node with the bug, once it has its eth0 (and eth1 to a guest)."""
    links = [
        "link set lo up",
        f"link set eth0 mtu {spec.mtu} up",
        *_addresses("eth0", SENDER),
    ]
    if spec.guest:
        links += ["link set eth1 up", *_addresses("eth1", GUEST_GATEWAY)]
    links += _default_route(GATEWAY)
    tunnel = [] if spec.guest else _tunnel(spec, spec.client, spec.receiver, spec.remote_vtep)
    return _script([*_batch("ip", links), *tunnel])


def guest(spec: LabSpec) -> str:
    """Set up the tunnel's end behind the sender."""
    links = [
        "link set lo up",
        "link set eth0 up",
        *_addresses("eth0", GUEST),
        *_default_route(GUEST_GATEWAY),
    ]
    tunnel = _tunnel(spec, spec.client, spec.receiver, spec.remote_vtep)
    return _script([*_batch("ip", links), *tunnel])


def receiver(spec: LabSpec) -> str:
    """Set up the node with the service pod."""
    links = [
        "link set lo up",
        "link set eth0 up",
        *_addresses("eth0", RECEIVER),
        *_default_route(GATEWAY),
    ]
    if spec.guest:
        links += [
            f"route add {GUEST_NET.cidr(ipv6)} via {SENDER.ip(ipv6)}" for ipv6 in (False, True)
        ]
    tunnel = _tunnel(spec, spec.receiver, spec.client, spec.client_vtep)
    offload = ["ethtool -K eth0 tx off"] if spec.relay else []
    return _script([*_batch("ip", links), *tunnel, *offload])
