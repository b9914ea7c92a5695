"""Rules that rewrite addresses, as iptables-save, nft and IPVS print them."""

from __future__ import annotations

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.host.natrules import SOMEBODY, owner, parse
from csumfix.views.doctor import DoctorOptions, options

SAVED = """*nat
:POSTROUTING ACCEPT [5:300]
[7:420] -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
[3:180] -A OUTPUT -d 192.0.2.9/32 -p udp -j DNAT --to-destination 192.0.2.2
[0:0] -A KUBE-MARK-MASQ -j MARK --or-mark 0x8000
[9:540] -A KUBE-POSTROUTING -m mark --mark 0x8000/0x8000 -j MASQUERADE
[1:60] -A POSTROUTING -m comment --comment "a -j SNAT trap" -j RETURN
COMMIT
"""

NFT = """table ip kube-proxy {
	chain mark-for-masquerade {
		meta mark set meta mark or 0x00004000
	}
	chain masquerading {
		meta mark & 0x00004000 == 0x00000000 return
		meta mark set meta mark xor 0x00004000
		masquerade fully-random
	}
}
table ip nat {
	chain POSTROUTING {
		type nat hook postrouting priority srcnat; policy accept;
		counter packets 7 bytes 420 masquerade
	}
}
table inet mine {
	chain out {
		type nat hook output priority -100; policy accept;
		udp dport 8472 counter packets 4 bytes 99 dnat ip to 192.0.2.2
		ip6 daddr set 2001:db8::2
	}
}
"""


def test_iptables_save_is_read_with_counters_and_owners() -> None:
    found = parse([("4", SAVED)])
    assert [(rule.rewrites, rule.owner, rule.packets) for rule in found.rules] == [
        ("source", "Docker", 7),
        ("destination", SOMEBODY, 3),
        ("source", "kube-proxy", 9),
    ]
    assert (found.mark, found.clears_mark) == (0x8000, False)


def test_nft_is_read_but_for_the_tables_of_iptables() -> None:
    found = parse([("both", NFT)])
    assert [(rule.rewrites, rule.owner, rule.packets) for rule in found.rules] == [
        ("source", "kube-proxy", None),
        ("destination", SOMEBODY, 4),
        ("stateless", SOMEBODY, None),
    ]
    assert (found.mark, found.clears_mark) == (0x4000, True)


def test_a_rule_keeps_its_key_while_its_counter_rises() -> None:
    later = NFT.replace("packets 4 bytes 99", "packets 8 bytes 198")
    before, after = parse([("both", NFT)]).rules, parse([("both", later)]).rules
    assert [rule.key for rule in before] == [rule.key for rule in after]
    assert before != after


def test_virtual_services_of_ipvs_are_read() -> None:
    text = (
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "UDP  C00002C8:2118 rr\n  -> C0000202:2118      Masq    1      0          0\n"
        "TCP  0A600001:01BB rr\nUDP  [2001:0db8::00c8]:2118 rr\n"
    )
    assert parse([], text).ipvs == {("192.0.2.200", 8472), ("2001:db8::c8", 8472)}


@pytest.mark.parametrize("text", ["", "garbage", "UDP\n", "UDP  zz:yy\n", "table\n[x:1] -A\n"])
def test_garbage_is_no_rule(text: str) -> None:
    found = parse([("4", text), ("both", text)], text)
    assert (found.rules, found.mark, found.ipvs) == ((), None, frozenset())


@pytest.mark.parametrize(
    ("chain", "name"),
    [
        ("cali-nat-outgoing", "Calico"),
        ("CILIUM_POST_nat", "Cilium"),
        ("DOCKER", "Docker"),
        ("FLANNEL-POSTRTG", "flannel"),
        ("POST_public_allow", "firewalld"),
        ("firewalld nat_POST_public_allow", "firewalld"),
        ("CNI-5f0c", "a CNI plugin"),
        ("POSTROUTING", SOMEBODY),
    ],
)
def test_chains_tell_who_made_them(chain: str, name: str) -> None:
    assert owner(chain, "-j MASQUERADE") == name


def test_options_are_addresses() -> None:
    wanted = DoctorOptions(("10.0.0.1",), ("fd00::1", 80), probe=True, as_json=False)
    assert options(["10.0.0.1"], "[fd00::1]:80", True, False) == wanted
    for to, tcp in ((["host"], None), ([], "10.0.0.1"), ([], "10.0.0.1:0"), ([], "host:80")):
        with pytest.raises(CsumfixError) as caught:
            options(to, tcp, True, False)
        assert caught.value.code == Exit.USAGE
