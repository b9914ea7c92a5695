"""Network namespaces: whose they are, and what their counters say."""

from __future__ import annotations

import pytest

from csumfix.evidence import drops
from csumfix.evidence.drops import Drops
from csumfix.host import namespaces

UID = "0f3d5b6c-1a2b-4c3d-8e9f-aabbccddeeff"
CONTAINER = "ab12" * 16
NAMES = {UID: "shop/web-0"}
SNMP = """\
Tcp: RtoAlgorithm InSegs InCsumErrors
Tcp: 1 -1 7
Udp: InDatagrams NoPorts InErrors InCsumErrors MemErrors
Udp: 100 2 5 4 0
UdpLite: InDatagrams InCsumErrors
UdpLite: 0 9
"""
SNMP6 = "Ip6InReceives                   \t80\nUdp6InCsumErrors                \t3\n"


@pytest.mark.parametrize(
    ("cgroup", "name"),
    [
        (f"0::/kubepods/burstable/pod{UID}/{CONTAINER}\n", "pod shop/web-0"),
        (
            f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/"
            f"cri-containerd-{CONTAINER}.scope\n",
            "pod shop/web-0",
        ),
        (
            "0::/kubepods/besteffort/pod00000000-0000-0000-0000-000000000000/x\n",
            "pod with UID 00000000-0000-0000-0000-000000000000",
        ),
        (f"12:cpu:/docker/{CONTAINER}\n0::/docker/{CONTAINER}\n", f"container {CONTAINER[:12]}"),
        (f"0::/system.slice/docker-{CONTAINER}.scope\n", f"container {CONTAINER[:12]}"),
        ("0::/system.slice/systemd-resolved.service\n", "service systemd-resolved.service"),
        ("0::/user.slice\n", "process sleep"),
        ("", "process sleep"),
    ],
)
def test_a_namespace_has_its_pods_or_containers_or_units_name(cgroup: str, name: str) -> None:
    assert namespaces.owner(cgroup, "sleep\n", NAMES) == name


def test_pods_are_named_by_their_log_directories() -> None:
    directories = [f"shop_web-0_{UID}", "nonsense", "kube-system_kube-proxy-x_0a1b"]
    assert namespaces.pod_names(directories) == {
        **NAMES,
        "0a1b": "kube-system/kube-proxy-x",
    }


def test_counters_are_read_by_name() -> None:
    assert namespaces.parse([SNMP, SNMP6]) == {
        "TcpInCsumErrors": 7,
        "UdpInCsumErrors": 4,
        "Udp6InCsumErrors": 3,
    }


@pytest.mark.parametrize(
    "text", ["", "\n\n", "Udp:\n", "Udp: InCsumErrors\nUdp: x\n", "\x00 \x01"]
)
def test_counters_that_are_not_there_are_left_out(text: str) -> None:
    assert namespaces.parse([text]) == {}


def test_this_process_sees_its_own_namespace_first() -> None:
    with namespaces.opened() as found:
        first = found.namespaces[0]
        assert (first.owner, first.is_host) == ("this host", True)
        assert "UdpInCsumErrors" in first.errors()
        assert not any(one.is_host for one in found.namespaces[1:])


def test_only_what_rose_counts() -> None:
    host = Drops("this host", True, {"a": 1, "b": 5, "c": 9}, {"a": 4, "b": 5, "d": 7})
    pod = Drops("pod shop/web-0", False, {"a": 2}, {"a": 1})
    assert (host.risen, pod.risen) == ({"a": 3}, {})
    assert (drops.of_host([host, pod]), drops.of_pods([host, pod])) == (3, 0)
