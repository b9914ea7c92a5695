"""What a lab consists of: its names, addresses, MTU and port, as data.

The *client* is the tunnel's end on the side with the bug. It is the sender node itself, unless a
guest behind the sender starts the traffic.
"""

from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

DEVICE = "flannel.1"
VNI = 1
POD_CIDR = "10.244.0.0/16"  # what kube-proxy calls the cluster CIDR
POD_IP = "10.244.1.10"
POD_IP6 = "fd00:10:244:1::10"
CLIENT_POD_IP = "10.244.0.10"
CLIENT_POD_IP6 = "fd00:10:244::10"
SERVICE_IP = "10.96.0.10"
DNS_NAME = "db.lab.test"

_MTU_MIN = 1280 + 70  # so that the tunnel can carry IPv6
_MTU_MAX = 9000
_PORT_MAX = 0xFFFF


@dataclass(frozen=True)
class Dual:
    """An address of each family with its prefix length, such as 192.0.2.1/24."""

    v4: str
    v6: str

    def cidr(self, ipv6: bool) -> str:
        """Return address/prefix of one family."""
        return self.v6 if ipv6 else self.v4

    def ip(self, ipv6: bool) -> str:
        """Return the bare address of one family."""
        return str(ip_interface(self.cidr(ipv6)).ip)


SENDER = Dual("192.0.2.1/24", "2001:db8::1/64")
RECEIVER = Dual("192.0.2.2/24", "2001:db8::2/64")
GATEWAY = Dual("192.0.2.254/24", "2001:db8::fe/64")  # no node has it; no packet is sent to it
# No node has it: rules rewrite it, or the relay uses it.
VIRTUAL_VTEP = Dual("192.0.2.200/24", "2001:db8::c8/64")
GUEST = Dual("198.51.100.2/24", "2001:db8:1::2/64")
GUEST_GATEWAY = Dual("198.51.100.1/24", "2001:db8:1::1/64")  # the sender's second interface
GUEST_NET = Dual("198.51.100.0/24", "2001:db8:1::/64")


@dataclass(frozen=True)
class End:
    """One end of the tunnel, with the values that flannel would choose."""

    underlay: Dual
    mac: str  # of the vxlan device
    vtep: Dual  # the vxlan device's own address, next hop for the other end
    gateway: Dual  # the pod bridge's own address
    pod: Dual
    pod_net: Dual


def _end(number: int, underlay: Dual, pod: str, pod6: str) -> End:
    net6 = f"fd00:10:244:{number}" if number else "fd00:10:244"
    return End(
        underlay=underlay,
        mac=f"02:00:0a:f4:0{number}:00",
        vtep=Dual(f"10.244.{number}.0/32", f"{net6}::f/128"),
        gateway=Dual(f"10.244.{number}.1/24", f"{net6}::1/64"),
        pod=Dual(f"{pod}/24", f"{pod6}/64"),
        pod_net=Dual(f"10.244.{number}.0/24", f"{net6}::/64"),
    )


@dataclass(frozen=True)
class LabSpec:
    """What to build. `mtu` is the underlay's, in bytes; `port` is the tunnel's UDP port."""

    ipv6: bool = False
    mtu: int = 1500
    port: int = 8472
    guest: bool = False  # the client is a guest behind the sender, not the sender itself
    virtual_vtep: bool = False  # the client sends to VIRTUAL_VTEP
    relay: bool = False  # the receiver also sends to it; a relay in the wire has that address
    outer_checksum: bool = True  # over IPv4; over IPv6 it is always on (RFC 8200, 8.1)

    def __post_init__(self) -> None:
        if not _MTU_MIN <= self.mtu <= _MTU_MAX:
            raise ValueError(f"the lab's MTU is {_MTU_MIN} to {_MTU_MAX} bytes, not {self.mtu}")
        if not 1 <= self.port <= _PORT_MAX:
            raise ValueError(f"a UDP port is 1 to {_PORT_MAX}, not {self.port}")

    @property
    def tunnel_mtu(self) -> int:
        """The vxlan device's MTU: the underlay's minus outer IP, UDP, VXLAN and inner Ethernet."""
        return self.mtu - (70 if self.ipv6 else 50)

    @property
    def client(self) -> End:
        """The end on the side with the bug."""
        return _end(0, GUEST if self.guest else SENDER, CLIENT_POD_IP, CLIENT_POD_IP6)

    @property
    def receiver(self) -> End:
        """The end with the service pod."""
        return _end(1, RECEIVER, POD_IP, POD_IP6)

    @property
    def remote_vtep(self) -> str:
        """The underlay address to which the client sends."""
        return (VIRTUAL_VTEP if self.virtual_vtep else RECEIVER).ip(self.ipv6)

    @property
    def client_vtep(self) -> str:
        """The underlay address to which the receiver sends."""
        return (VIRTUAL_VTEP if self.relay else self.client.underlay).ip(self.ipv6)

    @property
    def host_prefix(self) -> str:
        """Prefix length of a single underlay address."""
        return f"/{ip_address(self.remote_vtep).max_prefixlen}"
