"""The causes: why the outer checksum goes wrong, as data and as NAT rules.

Rules are text for iptables-restore and ip6tables-restore.

The outer checksum is on, which is the kernel's default for both families; flannel itself asks for
`noudpcsum` over IPv4, and then a current kernel shows none of the NAT bugs. The lying NIC breaks
either kind, so over IPv4 it has flannel's. With the outer checksum on, `ethtool -K flannel.1
tx-checksum-ip-generic off` would be no cure there: the kernel then finishes the inner checksum
itself, but leaves the outer one to the NIC instead. Pings are lost for the same reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

from csumfix_lab.plan import POD_CIDR, POD_IP, RECEIVER, SERVICE_IP, VIRTUAL_VTEP, Plan

Rules = dict[str, str]  # "iptables" or "ip6tables" -> input of its -restore


@dataclass(frozen=True)
class Cause:
    """One way to break a tunnel."""

    name: str
    story: str  # what happens, for the operator
    symptom: str  # what they will see
    rules: Callable[[Plan], Rules]  # loaded on the sender
    service: bool = False  # there is a service IP
    lying_nic: bool = False  # the sender's eth0 claims checksum offload and does not do it
    guest: bool = False  # see Plan
    virtual_vtep: bool = False  # see Plan
    outer_checksum: bool = True  # see Plan


def _nat(*rules: str) -> str:
    return "\n".join(("*nat", *rules, "COMMIT", ""))


def _underlay(plan: Plan, text: str) -> Rules:
    return {"ip6tables" if plan.ipv6 else "iptables": text}


def _no_rules(_plan: Plan) -> Rules:
    return {}


def _snat(plan: Plan) -> Rules:
    # --random-fully, because MASQUERADE that keeps address and port changes no checksum.
    rule = f"-A POSTROUTING -o eth0 -p udp --dport {plan.port} -j MASQUERADE --random-fully"
    return _underlay(plan, _nat(rule))


def _dnat(plan: Plan) -> Rules:
    virtual, real = VIRTUAL_VTEP.ip(plan.ipv6), RECEIVER.ip(plan.ipv6)
    match = f"-d {virtual}{plan.host_prefix} -p udp --dport {plan.port}"
    return _underlay(plan, _nat(f"-A OUTPUT {match} -j DNAT --to-destination {real}"))


# The chains and rules which kube-proxy keeps in both families, whatever the services. The packet
# mark outlives encapsulation, so the last rule catches the outer packet a second time.
_KUBE_COMMON = (
    ":KUBE-SERVICES - [0:0]",
    ":KUBE-MARK-MASQ - [0:0]",
    ":KUBE-POSTROUTING - [0:0]",
    '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" '
    "-m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully",
)


def _kube_service(protocol: str, svc: str, sep: str) -> list[str]:
    """Return the rules of the DNS service for one protocol; `svc` and `sep` name its chains."""
    portname = "dns-tcp" if protocol == "tcp" else "dns"
    comment = f'-m comment --comment "kube-system/kube-dns:{portname}'
    service = f'-d {SERVICE_IP}/32 -p {protocol} {comment} cluster IP" -m {protocol} --dport 53'
    return [
        f":{svc} - [0:0]",
        f":{sep} - [0:0]",
        f"-A KUBE-SERVICES ! -s {POD_CIDR} {service} -j KUBE-MARK-MASQ",
        f"-A KUBE-SERVICES {service} -j {svc}",
        f'-A {svc} {comment}" -j {sep}',
        f'-A {sep} -s {POD_IP}/32 {comment}" -j KUBE-MARK-MASQ',
        f'-A {sep} -p {protocol} {comment}" -m {protocol} -j DNAT --to-destination {POD_IP}:53',
    ]


def _kube_proxy(_plan: Plan) -> Rules:
    services = [
        *_kube_service("udp", "KUBE-SVC-LABDNSUDPAAAAAAA", "KUBE-SEP-LABDNSUDPAAAAAAA"),
        *_kube_service("tcp", "KUBE-SVC-LABDNSTCPAAAAAAA", "KUBE-SEP-LABDNSTCPAAAAAAA"),
    ]
    return {"iptables": _nat(*_KUBE_COMMON, *services), "ip6tables": _nat(*_KUBE_COMMON)}


_ALL = (
    Cause(
        name="none",
        story="Nothing is wrong.",
        symptom="every query is answered",
        rules=_no_rules,
    ),
    Cause(
        name="kube-proxy",
        story=(
            "kube-proxy (up to v1.18.5) marks a query to a service IP and rewrites it to a pod's. "
            "The VXLAN packet around it inherits the mark, so the *outer* header is masqueraded "
            "too, and its checksum comes out wrong."
        ),
        symptom="a query to the pod IP is answered, one to the service IP times out",
        rules=_kube_proxy,
        service=True,
    ),
    Cause(
        name="snat",
        story=(
            "nat/POSTROUTING masquerades the tunnel's outer header to another port, and its "
            "checksum comes out wrong."
        ),
        symptom="small packets are lost: queries time out, TCP cannot connect",
        rules=_snat,
    ),
    Cause(
        name="dnat",
        story=(
            "The tunnel's remote end is a virtual address; nat/OUTPUT rewrites the outer header "
            "to the real one, and its checksum comes out wrong."
        ),
        symptom="small packets are lost: queries time out, TCP cannot connect",
        rules=_dnat,
        virtual_vtep=True,
    ),
    Cause(
        name="nic",
        story=(
            "The sender's NIC claims transmit checksum offload and does not do it: packets leave "
            "as the driver left them, with checksums not finished."
        ),
        symptom="UDP and TCP through the tunnel are lost, large packets included",
        rules=_no_rules,
        lying_nic=True,
        outer_checksum=False,
    ),
    Cause(
        name="forwarded",
        story=(
            "The tunnel starts in a guest behind the sender, and something between the two "
            "damages the outer checksum: the packet is wrong already when the sender forwards it."
        ),
        symptom="everything through the tunnel is lost, TCP and large packets included",
        rules=_no_rules,
        guest=True,
    ),
)

BY_NAME = {cause.name: cause for cause in _ALL}
CAUSES = tuple(BY_NAME)
