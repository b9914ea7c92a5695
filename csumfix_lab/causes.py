"""The causes of wrong checksums in a tunnel, as data. rules.py has the rules that they load.

The outer checksum is on for both families, unless the cause says otherwise. That is the kernel's
default (over IPv4 since Linux 4.6, "Enable outer Tx checksum by default"), and flannel leaves it
so: its netlink library sends IFLA_VXLAN_UDP_CSUM only to turn it on (addVxlanAttrs in
vishvananda/netlink, link_linux.go). Cilium, Antrea and OVS send no outer checksum over IPv4. NAT
in a current kernel does not damage such packets, but a lying NIC does. So there is a lying NIC
with and one without the outer checksum.

With the outer checksum on, `ethtool -K flannel.1 tx-checksum-ip-generic off` does not cure a lying
NIC. The kernel then computes the inner checksum itself, but leaves the outer one to the NIC. Pings
are lost for the same reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

from csumfix_lab import rules
from csumfix_lab.rules import Rules
from csumfix_lab.spec import LabSpec


@dataclass(frozen=True)
class Cause:
    """One way in which a tunnel breaks."""

    name: str
    story: str  # what happens, for the operator
    symptom: str  # what the operator sees
    rules: Callable[[LabSpec], Rules] = rules.none  # loaded on the sender
    service: bool = False  # there is a service IP
    lying_nic: bool = False  # the sender's eth0 offers checksum offload and does not do it
    guest: bool = False  # see LabSpec
    virtual_vtep: str = ""  # see LabSpec; what happens to that address; {real} is the receiver's
    relay: bool = False  # see LabSpec
    outer_checksum: bool = True  # see LabSpec


_LOST = "small packets are lost: queries time out, TCP cannot connect"
_SERVICE_LOST = "a query to the pod IP is answered, one to the service IP times out"

_ALL = (
    Cause(
        name="none",
        story="Nothing is wrong.",
        symptom="every query is answered",
    ),
    Cause(
        name="kube-proxy",
        story=(
            "kube-proxy (up to v1.18.5) marks a query to a service IP and rewrites it to a pod's. "
            "The VXLAN packet around it inherits the mark, so the *outer* header is masqueraded "
            "as well, and its checksum is wrong afterwards."
        ),
        symptom=_SERVICE_LOST,
        rules=rules.kube_proxy,
        service=True,
    ),
    Cause(
        name="cni",
        story=(
            "A later kube-proxy clears the mark when it masquerades the query. But the CNI's own "
            "rule masquerades the query first, so the mark stays. The VXLAN packet inherits it, "
            "and kube-proxy's rule masquerades the *outer* header. Calico 3.28 did this."
        ),
        symptom=_SERVICE_LOST,
        rules=rules.cni,
        service=True,
    ),
    Cause(
        name="snat",
        story=(
            "nat/POSTROUTING masquerades the tunnel's outer header to another port, and its "
            "checksum is wrong afterwards."
        ),
        symptom=_LOST,
        rules=rules.snat,
    ),
    Cause(
        name="dnat",
        story=(
            "The tunnel's remote end is a virtual address. nat/OUTPUT rewrites the outer header "
            "to the real one, and its checksum is wrong afterwards."
        ),
        symptom=_LOST,
        rules=rules.dnat,
        virtual_vtep="which nat/OUTPUT rewrites to {real}",
    ),
    Cause(
        name="stateless",
        story=(
            "The tunnel's remote end is a virtual address. nft rewrites the outer header to the "
            "real one without conntrack, and its checksum is wrong afterwards."
        ),
        symptom=_LOST,
        rules=rules.stateless,
        virtual_vtep="which nft rewrites to {real} in raw/output",
    ),
    Cause(
        name="ipvs",
        story=(
            "The tunnel's remote end is a virtual address of IPVS, which rewrites the outer "
            "header to the real one. It updates the checksum in the wrong way, and even one that "
            "is 0 (ip_vs_proto_udp.c). The kernel must have IPVS (CONFIG_IP_VS)."
        ),
        symptom=_LOST,
        rules=rules.ipvs,
        virtual_vtep="which IPVS rewrites to {real}",
    ),
    Cause(
        name="nic",
        story=(
            "The sender's NIC offers transmit checksum offload and does not do it. Packets leave "
            "with the partial checksums that the driver got."
        ),
        symptom="UDP and TCP through the tunnel are lost, large packets included",
        lying_nic=True,
        outer_checksum=False,
    ),
    Cause(
        name="nic-udpcsum",
        story=(
            "The sender's NIC offers transmit checksum offload and does not do it. The outer "
            "checksum is on, which is the kernel's default, so pings are lost as well. (Over IPv6 "
            "the outer checksum is always on, so cause nic is the same there.)"
        ),
        symptom="everything through the tunnel is lost",
        lying_nic=True,
    ),
    Cause(
        name="relay",
        story=(
            "A user-mode program between the nodes receives the tunnel's datagrams and resends "
            "their payload, as slirp4netns, pasta or a UDP proxy does. The inner checksum is "
            "still partial at that point, and nothing computes it later. The outer checksum is "
            "right, but the pod drops the packet."
        ),
        symptom="UDP and TCP through the tunnel are lost; the pod's checksum errors rise",
        virtual_vtep="the relay's address; the relay resends to {real}",
        relay=True,
    ),
    Cause(
        name="forwarded",
        story=(
            "The tunnel starts in a guest behind the sender, and a middlebox between the two "
            "damages the outer checksum. The packet is already wrong when the sender forwards it."
        ),
        symptom="everything through the tunnel is lost, TCP and large packets included",
        guest=True,
    ),
)

BY_NAME = {cause.name: cause for cause in _ALL}
CAUSES = tuple(BY_NAME)
