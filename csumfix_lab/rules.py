"""The rules that the causes load on the sender, as input of each tool."""

from csumfix_lab.spec import DEVICE, POD_CIDR, POD_IP, RECEIVER, SERVICE_IP, VIRTUAL_VTEP, LabSpec

Rules = dict[str, str]  # a key of LOADERS -> its input

LOADERS = {
    "iptables": ["iptables-restore", "-w"],
    "ip6tables": ["ip6tables-restore", "-w"],
    "nft": ["nft", "-f", "-"],
    "ipvsadm": ["ipvsadm", "-R"],
}


def _nat(*rules: str) -> str:
    return "\n".join(("*nat", *rules, "COMMIT", ""))


def _underlay(spec: LabSpec, text: str) -> Rules:
    return {"ip6tables" if spec.ipv6 else "iptables": text}


def none(_spec: LabSpec) -> Rules:
    """No rules."""
    return {}


def snat(spec: LabSpec) -> Rules:
    """Masquerade the outer header."""
    # --random-fully: a MASQUERADE that keeps address and port changes no checksum.
    rule = f"-A POSTROUTING -o eth0 -p udp --dport {spec.port} -j MASQUERADE --random-fully"
    return _underlay(spec, _nat(rule))


def dnat(spec: LabSpec) -> Rules:
    """Rewrite the virtual VTEP to the real one, by conntrack."""
    virtual, real = VIRTUAL_VTEP.ip(spec.ipv6), RECEIVER.ip(spec.ipv6)
    match = f"-d {virtual}{spec.host_prefix} -p udp --dport {spec.port}"
    return _underlay(spec, _nat(f"-A OUTPUT {match} -j DNAT --to-destination {real}"))


def stateless(spec: LabSpec) -> Rules:
    """Rewrite the virtual VTEP to the real one, without conntrack."""
    family = "ip6" if spec.ipv6 else "ip"
    virtual, real = VIRTUAL_VTEP.ip(spec.ipv6), RECEIVER.ip(spec.ipv6)
    return {
        "nft": f"""
table {family} stateless {{
    chain output {{
        type filter hook output priority raw;
        {family} daddr {virtual} udp dport {spec.port} notrack {family} daddr set {real}
    }}
}}
"""
    }


def ipvs(spec: LabSpec) -> Rules:
    """Rewrite the virtual VTEP to the real one, by IPVS."""
    virtual, real = (
        f"[{address}]:{spec.port}" if spec.ipv6 else f"{address}:{spec.port}"
        for address in (VIRTUAL_VTEP.ip(spec.ipv6), RECEIVER.ip(spec.ipv6))
    )
    return {"ipvsadm": f"-A -u {virtual} -s rr\n-a -u {virtual} -r {real} -m\n"}


# The chains and rules that kube-proxy loads in both families for any set of services.
_KUBE_COMMON = (
    ":KUBE-SERVICES - [0:0]",
    ":KUBE-MARK-MASQ - [0:0]",
    ":KUBE-POSTROUTING - [0:0]",
    '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
)
_KUBE_MASQUERADE = '-m comment --comment "kubernetes service traffic requiring SNAT"'

# Up to v1.18.5. The mark outlives encapsulation, so this rule catches the outer packet as well.
_KUBE_KEEPS_MARK = (
    f"-A KUBE-POSTROUTING {_KUBE_MASQUERADE} -m mark --mark 0x4000/0x4000 "
    "-j MASQUERADE --random-fully",
)

# Later versions clear the mark before they masquerade (kubernetes/kubernetes#92035).
_KUBE_CLEARS_MARK = (
    "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
    f"-A KUBE-POSTROUTING {_KUBE_MASQUERADE} -j MASQUERADE --random-fully",
)

# A CNI's chain ahead of kube-proxy's, like Calico's cali-POSTROUTING (projectcalico/calico#9091,
# felix/rules/static.go). It masquerades packets that enter the tunnel from an address of the node
# that is not the tunnel's own. MASQUERADE ends the traversal of table nat.
_CNI = (
    ":CNI-POSTROUTING - [0:0]",
    "-I POSTROUTING -j CNI-POSTROUTING",
    f"-A CNI-POSTROUTING -o {DEVICE} -m addrtype ! --src-type LOCAL --limit-iface-out "
    "-m addrtype --src-type LOCAL -j MASQUERADE --random-fully",
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


def _kube(*rules: str) -> Rules:
    services = [
        *_kube_service("udp", "KUBE-SVC-LABDNSUDPAAAAAAA", "KUBE-SEP-LABDNSUDPAAAAAAA"),
        *_kube_service("tcp", "KUBE-SVC-LABDNSTCPAAAAAAA", "KUBE-SEP-LABDNSTCPAAAAAAA"),
    ]
    common = (*_KUBE_COMMON, *rules)
    return {"iptables": _nat(*common, *services), "ip6tables": _nat(*common)}


def kube_proxy(_spec: LabSpec) -> Rules:
    """Load what kube-proxy up to v1.18.5 loads for one service."""
    return _kube(*_KUBE_KEEPS_MARK)


def cni(_spec: LabSpec) -> Rules:
    """Load what a later kube-proxy loads, behind a CNI that masquerades first."""
    return _kube(*_KUBE_CLEARS_MARK, *_CNI)
