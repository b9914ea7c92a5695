"""Of a host's firewall rules only those are shown that may touch a tunnel."""

from __future__ import annotations

from csumfix.views import excerpt

IPTABLES = """\
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SVC-ABC - [0:0]
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SVC-ABC -j KUBE-SEP-DEF
-A KUBE-SEP-DEF -p udp -m udp -j DNAT --to-destination 10.0.0.1:53
-A WEB -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80
-A VTEP -d 192.0.2.9/32 -p udp -m udp --dport 8472 -j ACCEPT
-A VTEP -p udp -m udp --dport 84720 -j ACCEPT
-A OTHER -o flannel.1 -j ACCEPT
COMMIT
"""

KEPT = (
    "*nat",
    ":PREROUTING ACCEPT",
    "-A POSTROUTING",
    "-A KUBE-POSTROUTING",
    "-A KUBE-MARK-MASQ",
    "--dport 8472 -j ACCEPT",
    "-A OTHER -o flannel.1",
    "COMMIT",
    "# 5 lines that do not touch a tunnel were left out",
)

NFT = """\
table ip kube-proxy {
\tchain endpoint-1 {
\t\tip saddr 10.0.0.1 accept
\t}
\tchain masquerading {
\t\tmark and 0x4000 == 0 return
\t\tmasquerade fully-random
\t}
}
table ip lb {
\tchain output {
\t\ttype filter hook output priority raw; policy accept;
\t\tip daddr 192.0.2.9 notrack ip daddr set 192.0.2.2
\t}
}
"""


def test_rules_of_iptables() -> None:
    lines = excerpt.iptables(IPTABLES, {8472}, {"flannel.1"}).splitlines()
    assert len(lines) == len(KEPT)
    assert all(part in line for part, line in zip(KEPT, lines, strict=True))


def test_without_a_tunnel_nothing_is_found_by_its_port() -> None:
    assert "8472" not in excerpt.iptables(IPTABLES, (), ())


def test_rules_of_nft() -> None:
    text = excerpt.nft(NFT, {8472}, ())
    assert "masquerade fully-random" in text
    assert "ip daddr set 192.0.2.2" in text
    assert "type filter hook output priority raw" in text
    assert "endpoint-1" not in text


def test_an_excerpt_is_bounded() -> None:
    text = excerpt.iptables("-A X -j MASQUERADE\n" * 10_000, (), ())
    assert len(text.splitlines()) == excerpt.MOST + 2
    assert text.endswith("# 9500 lines more were cut off\n")
