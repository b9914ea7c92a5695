"""From tunnels, lanes and options to rules, and to the arguments of the script."""

from csumfix.host.rules import RuleSet, parse
from csumfix.host.tunnels import Tunnel, local_port_range
from csumfix.options import Options
from csumfix.service.lanes import Lane, PortLane
from csumfix.service.ruleset import rule_set, tunnel_ports

QUEUE_0 = range(1)
FLANNEL = Tunnel("flannel.1", 8472, "4", 1450, source_ports=(32768, 60999))
OTHER6 = Tunnel("vx6", 4789, "6", 8930, source_ports=(40000, 50000))
METADATA = Tunnel("cilium_vxlan", 8472, "both", 65000, metadata=True)
KERNEL = PortLane(Lane.KERNEL, 0.0, "default")
QUEUE = PortLane(Lane.QUEUE, 0.0, "evidence")


def rules_for(
    lanes: dict[int, PortLane], *found: Tunnel, options: Options | None = None
) -> RuleSet:
    rules = rule_set(options or Options(), QUEUE_0, found, lanes, ())
    assert rules is not None
    return rules


def test_no_tunnel_needs_no_rule() -> None:
    assert rule_set(Options(), QUEUE_0, [], {}, ()) is None


def test_one_tunnel() -> None:
    lanes = {8472: KERNEL}
    assert rule_set(Options(), range(7, 9), [FLANNEL], lanes, ()) == RuleSet(
        kernel_ports=(8472,),
        queue_ports=(),
        queue_base=7,
        queues=2,
        family="4",
        source_ports=(32768, 60999),
    )


def test_a_tunnel_that_needs_the_queue_does_not_take_the_others_along() -> None:
    rules = rules_for({4789: QUEUE, 8472: KERNEL}, FLANNEL, OTHER6)
    assert rules.kernel_ports == (4789, 8472)
    assert rules.queue_ports == (4789,)
    assert rules.family == "both"
    assert rules.source_ports == (32768, 60999)


def test_a_port_may_do_without_the_kernel_lane() -> None:
    lanes = {4789: QUEUE, 8472: QUEUE}
    rules = rule_set(Options(), QUEUE_0, [FLANNEL], lanes, (), without_kernel=[8472])
    assert rules is not None
    assert (rules.kernel_ports, rules.queue_ports) == ((4789,), (4789, 8472))


def test_a_port_that_leaves_the_queue_is_in_the_kernel_lane_already() -> None:
    rules = rule_set(Options(), QUEUE_0, [FLANNEL], {8472: KERNEL}, (8472,), recording=True)
    assert rules is not None
    assert (rules.kernel_ports, rules.queue_ports, rules.leaving_ports) == ((8472,), (), (8472,))
    assert rules.queued_ports == (8472,)


def test_a_named_port_may_be_of_any_family_and_uses_ephemeral_source_ports() -> None:
    rules = rules_for({9999: KERNEL}, options=Options(ports=(9999,)))
    assert (rules.kernel_ports, rules.family) == ((9999,), "both")
    assert rules.source_ports == local_port_range()


def test_a_named_geneve_port_uses_any_source_port() -> None:
    rules = rules_for({9999: KERNEL}, options=Options(geneve_ports=(9999,)))
    assert (rules.kernel_ports, rules.source_ports) == ((9999,), (1, 65535))
    assert tunnel_ports(Options(ports=(6081,), geneve_ports=(9999,)), []) == {6081, 9999}
    rules = rules_for({6081: KERNEL}, options=Options(ports=(6081,)))
    assert rules.source_ports == (1, 65535)


def test_two_tunnels_of_one_port_name_it_once() -> None:
    assert tunnel_ports(Options(ports=(8472,)), [FLANNEL, METADATA]) == {8472}


def test_script_arguments() -> None:
    rules = RuleSet(
        kernel_ports=(4789, 8472),
        queue_ports=(4789,),
        queue_base=3,
        queues=2,
        family="6",
        source_ports=(1000, 2000),
        leaving_ports=(8472,),
        recording=True,
    )
    assert rules.arguments() == [
        "--kernel-port=4789",
        "--kernel-port=8472",
        "--queue-port=4789",
        "--leaving-port=8472",
        "--record",
        "--queue-base=3",
        "--queues=2",
        "--sport-range=1000:2000",
        "--family=6",
    ]


STATUS = """\
family=4 lane=kernel state=present ports=4789,8472 gate=conntrack
family=4 lane=kernel rule=fill-8472 packets=12 bytes=3400 text=-A CSUMFIX-FILL --dport 8472 \
-j CHECKSUM --checksum-fill
family=4 lane=queue state=incomplete ports=8472 queues=9000 leaving=6081 record=no bridged=queue
family=4 lane=queue rule=queue-0 packets=1 bytes=50 text=-A CSUMFIX-QUEUE -j NFQUEUE \
--queue-num 9000 --queue-bypass
family=6 lane=kernel state=present ports=8473 gate=none
family=6 lane=queue state=absent ports=- queues=- leaving=- record=- bridged=-
"""


def test_a_port_has_the_lanes_of_either_family_and_a_queue_number_is_no_port() -> None:
    assert parse(STATUS).lanes == {
        4789: {"kernel"},
        8472: {"kernel", "queue"},
        6081: {"queue"},
        8473: {"kernel"},
    }
