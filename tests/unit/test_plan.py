"""From tunnels and options to rules, and to the arguments of the script."""

import logging

import pytest

from csumfix.host.rules import RuleSet
from csumfix.host.tunnels import Tunnel, local_port_range
from csumfix.options import Options
from csumfix.service.plan import needs_underlay_mtu, plan

QUEUE_0 = range(1)
FLANNEL = Tunnel("flannel.1", 8472, "4", 1450, source_ports=(32768, 60999))
OTHER6 = Tunnel("vx6", 4789, "6", 8930, source_ports=(40000, 50000))
METADATA = Tunnel("cilium_vxlan", 8472, "both", 65000, metadata=True)


def test_nothing_to_divert() -> None:
    assert plan(Options(), QUEUE_0, [], underlay_mtu=1500) is None


def test_one_tunnel() -> None:
    assert plan(Options(), range(7, 9), [FLANNEL], 1500) == RuleSet(
        ports=(8472,),
        queue_base=7,
        queues=2,
        family="4",
        divert="packets",
        max_length=1508,
        source_ports=(32768, 60999),
    )


def test_tunnels_of_both_families_share_the_widest_limits() -> None:
    rules = plan(Options(divert="nat"), QUEUE_0, [FLANNEL, OTHER6], 1500)
    assert rules is not None
    assert rules.ports == (4789, 8472)
    assert rules.family == "both"
    assert rules.max_length == 8930 + 78
    assert rules.source_ports == (32768, 60999)


def test_a_named_port_is_as_wide_as_it_could_be() -> None:
    rules = plan(Options(ports=(9999,)), QUEUE_0, [], underlay_mtu=9000)
    assert rules is not None
    assert (rules.ports, rules.family) == ((9999,), "both")
    assert rules.max_length == 9078
    assert rules.source_ports == local_port_range()


def test_two_tunnels_of_one_port_name_it_once() -> None:
    rules = plan(Options(ports=(8472,)), QUEUE_0, [FLANNEL, METADATA], 1500)
    assert rules is not None
    assert rules.ports == (8472,)


def test_the_underlay_matters_only_where_the_device_does_not_tell() -> None:
    assert not needs_underlay_mtu(Options(), [FLANNEL, OTHER6])
    assert needs_underlay_mtu(Options(), [METADATA])
    assert needs_underlay_mtu(Options(ports=(1,)), [])


def test_too_many_ports_keep_the_named_ones(caplog: pytest.LogCaptureFixture) -> None:
    many = [Tunnel(f"v{port}", port, "4", 1450) for port in range(1000, 1020)]
    with caplog.at_level(logging.ERROR):
        rules = plan(Options(ports=(9999,)), QUEUE_0, many, 1500)
    assert rules is not None
    assert len(rules.ports) == 15
    assert 9999 in rules.ports
    assert "1019" in caplog.text


def test_script_arguments() -> None:
    rules = RuleSet((4789, 8472), 3, 2, "both", "nat", 1508, (100, 200))
    assert rules.arguments() == [
        "--port=4789",
        "--port=8472",
        "--queue-base=3",
        "--queues=2",
        "--family=both",
        "--divert=nat",
        "--max-length=1508",
        "--sport-range=100:200",
    ]
