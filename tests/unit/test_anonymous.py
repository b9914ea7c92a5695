"""Addresses and names are replaced wherever they stand, each by the same one."""

from __future__ import annotations

import pytest

from csumfix.views.anonymous import Replacer, names_of


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("from 192.0.2.1:8472 to 192.0.2.2.", "from 198.18.0.1:8472 to 198.18.0.2."),
        ("10.0.0.0/8 via 10.0.0.0", "198.18.0.1/8 via 198.18.0.1"),
        (
            "[fd00::1]:8472, fd00::1/64, FD00:0::1",
            "[2001:db8::1]:8472, 2001:db8::1/64, 2001:db8::1",
        ),
        ("see fd00::1.", "see 2001:db8::1."),
        ("fe80::1%eth0 ::ffff:192.0.2.1", "2001:db8::1%eth0 2001:db8::2"),
        ("lladdr:0a:1b:2c:3d:4e:5f", "lladdr:02:00:00:00:00:01"),
        ("0A:1b:2c:3d:4e:5f 0a:1b:2c:3d:4e:5f", "02:00:00:00:00:01 02:00:00:00:00:01"),
        ("from:fd00::1", "from:2001:db8::1"),
        ("addr:fd00::1", "addr:2001:db8::1"),
        ("ip-10-1-2-3.ec2.internal ip-10-1-2-3.ec2.internal", "host-1 host-1"),
        ("aa:" * 40, "address-1"),
    ],
)
def test_addresses_are_replaced(text: str, replaced: str) -> None:
    assert Replacer({}).text(text) == replaced


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0/0 127.0.0.1 255.255.255.0",
        "::/0 [::1]:9478 fe80::/10 ff00::/8",
        "00:00:00:00:00:00 ff:ff:ff:ff:ff:ff",
        "12:34:56 and 2026-11-29T04:22:56Z",
        ":OUTPUT ACCEPT [0:0]\n[12:3400] -A OUTPUT --sport 0:46883",
        "iptables v1.8.9 (nf_tables), 6.18.44 1.2.3 999.1.1.1",
        '{"UdpInCsumErrors": 12, "a": {"b": []}}',
        "difference 0x1234::what",
    ],
)
def test_everything_else_stays(text: str) -> None:
    assert Replacer({}).text(text) == text


def test_one_replacer_remembers_over_texts() -> None:
    replacer = Replacer({})
    assert replacer.text("192.0.2.7 192.0.2.8") == "198.18.0.1 198.18.0.2"
    assert replacer.text("192.0.2.8") == "198.18.0.2"


def test_names_are_replaced_as_words() -> None:
    replacer = Replacer(names_of("db1.corp.example", ["eth0", "flannel.1", "secretlan", "x"]))
    text = "db1 db1.corp.example db1-x secretlan secretlan.100 eth0 flannel.1 x"
    assert replacer.text(text) == "host-1 host-2 db1-x device-1 device-1.100 eth0 flannel.1 x"


def test_names_of_kubernetes_are_replaced() -> None:
    replacer = Replacer({})
    rule = '-A KUBE-SVC-X -m comment --comment "shop/web:http cluster IP" -j RETURN'
    assert replacer.text(rule) == rule.replace("shop/web:http", "name-1")
    assert replacer.text("--comment shop/web:http") == "--comment name-1"
    kept = '--comment "kubernetes service portals"'
    assert replacer.text(kept) == kept
    assert replacer.text('"owner": "pod shop/web-0"') == '"owner": "pod name-2"'
