"""The table of diagnoses: what was seen, and the one verdict that follows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from csumfix.core import Inspection, Outer, Status
from csumfix.evidence.arrivals import Diagnosis
from csumfix.evidence.bulk import Bulk
from csumfix.evidence.case import HEALTHY, Conclusion, Facts, Verdict
from csumfix.evidence.conclusions import conclude
from csumfix.evidence.departures import Departure
from csumfix.evidence.drops import Drops
from csumfix.evidence.outcomes import Kind, KindOutcome, Probed
from csumfix.evidence.rewriting import conclude_from_departures, has_zero_checksum_bug
from csumfix.host import natrules
from csumfix.host.conntrack import OuterTuple, Tracked
from csumfix.host.natrules import NatRules
from csumfix.host.nics import Nic
from csumfix.host.remotes import Remote
from csumfix.host.tunnels import Tunnel
from csumfix.views.cures import MAKERS, Place, cures
from csumfix.views.diagnosis import HEADLINES

VTEP = "192.0.2.2"
TUNNEL = Tunnel("flannel.1", 8472, "4", 1450, vni=1, source_ports=(32768, 60999), index=3)
REMOTE = Remote(TUNNEL, 3, "flannel.1", "10.244.1.0", "10.244.0.0", bytes(6), bytes(6), VTEP, 1450)
GENERIC = Nic("eth0", "veth", frozenset({"tx-checksum-ip-generic"}))
HERE = Facts(nics=(GENERIC,))
LOADED = replace(HERE, lanes=frozenset({"kernel"}))

KINDS = (
    *(Kind.PING, Kind.PING_OFFLOADED, Kind.PING_LARGE, Kind.SYN, Kind.SYN_OFFLOADED),
    *(Kind.WRAPPED, Kind.WRAPPED_OFFLOADED, Kind.CONNECT, Kind.DATA, Kind.GSO),
)
MARKED = (Kind.MARKED, Kind.MARKED_HOST)
OWN = (Kind.WRAPPED, Kind.WRAPPED_OFFLOADED)


def answered(port: int = 40000) -> KindOutcome:
    return KindOutcome(
        12,
        12,
        Counter({Departure.PARTIAL: 12}),
        {port},
        {VTEP},
        arrived=Counter({Diagnosis.RIGHT: 12}),
        sources={port},
    )


def lost(sent: int = 40) -> KindOutcome:
    return KindOutcome(sent, 0, Counter({Departure.PARTIAL: sent}), {40000}, {VTEP})


def wrong(differences: dict[int, int], dest: str = VTEP, found: int = 0) -> KindOutcome:
    seen = {
        port: Inspection(Status.OK, Outer.WRONG, found or port, 0, off, port, 8472)
        for port, off in differences.items()
    }
    return KindOutcome(40, 0, Counter({Departure.WRONG: 40}), set(seen), {dest}, seen)


def probed(*losses: Kind, **others: KindOutcome) -> Probed:
    """All kinds are answered, except these; others are given by name."""
    outcomes = {
        kind: lost() if kind in losses else answered(40000 + index)
        for index, kind in enumerate(KINDS)
    }
    outcomes |= {Kind[name.upper()]: outcome for name, outcome in others.items()}
    return Probed(REMOTE, outcomes)


def only(what: Probed, facts: Facts = HERE) -> Verdict:
    (conclusion,) = conclude(what, facts)
    return conclusion.verdict


NEW_PORTS = {2000: (2000 - 40000) % 0xFFFF, 3000: (3000 - 41007) % 0xFFFF}
NEW_ADDRESS = {40000: 777, 41000: 777}

KUBE = """
[{0}:0] -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
[{0}:0] -A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
"""
KUBE_CLEARS = """
[{0}:0] -A KUBE-MARK-MASQ -j MARK --set-xmark 0x8000/0x8000
[{0}:0] -A KUBE-POSTROUTING -m mark ! --mark 0x8000/0x8000 -j RETURN
[{0}:0] -A KUBE-POSTROUTING -j MARK --set-xmark 0x8000/0x0
[{0}:0] -A KUBE-POSTROUTING -j MASQUERADE --random-fully
[{0}:0] -A cali-POSTROUTING -o vxlan.calico -j MASQUERADE --random-fully
"""
SNAT = "[{0}:0] -A POSTROUTING -p udp -m udp --dport 8472 -j MASQUERADE\n"
DNAT = "[{0}:0] -A OUTPUT -d 192.0.2.200/32 -p udp -j DNAT --to-destination 192.0.2.2\n"
NFT = """table ip mine {
	chain out {
		type filter hook output priority raw; policy accept;
		ip daddr 192.0.2.200 udp dport 8472 notrack ip daddr set 192.0.2.2
	}
}
"""


def rules(text: str, packets: int, ipvs: str = "") -> NatRules:
    family = "both" if "table" in text else "4"
    return natrules.parse([(family, text.replace("{0}", str(packets)))], ipvs)


def facts(text: str, ipvs: str = "") -> Facts:
    return replace(HERE, before=rules(text, 10, ipvs), after=rules(text, 50, ipvs))


def marked(*broken: Kind) -> dict[str, KindOutcome]:
    return {
        kind.name.lower(): wrong(NEW_PORTS) if kind in broken else answered() for kind in MARKED
    }


TABLE = [
    (Verdict.HEALTHY, probed(), HERE),
    (Verdict.HEALTHY, probed(**marked()), facts(KUBE)),
    (Verdict.KUBE_PROXY, probed(**marked(*MARKED)), facts(KUBE)),
    # One of its ports had been given to a marked flow.
    (Verdict.KUBE_PROXY, probed(**marked(*MARKED), syn_offloaded=wrong(NEW_PORTS)), facts(KUBE)),
    (Verdict.CNI, probed(**marked(Kind.MARKED_HOST)), facts(KUBE_CLEARS)),
    (Verdict.SNAT, probed(syn_offloaded=wrong(NEW_PORTS), connect=wrong(NEW_PORTS)), facts(SNAT)),
    (Verdict.DNAT, probed(syn_offloaded=wrong(NEW_ADDRESS, "192.0.2.3")), facts(DNAT)),
    (Verdict.STATELESS, probed(syn_offloaded=wrong(NEW_ADDRESS, "192.0.2.3")), facts(NFT)),
    (
        Verdict.IPVS,
        probed(syn_offloaded=wrong(NEW_ADDRESS, "192.0.2.3")),
        facts("", "UDP  C0000202:2118 rr\n"),
    ),
    (Verdict.NIC, probed(Kind.SYN_OFFLOADED, Kind.PING_OFFLOADED, Kind.CONNECT), HERE),
    (Verdict.NIC_OUTER, probed(*(kind for kind in KINDS if kind is not Kind.WRAPPED)), HERE),
    (Verdict.NIC_OUTER, probed(*(kind for kind in KINDS if kind not in OWN)), HERE),
    (Verdict.BLACK_HOLE, probed(*KINDS), HERE),
    (Verdict.MTU, probed(Kind.PING_LARGE), HERE),
    (Verdict.NIC_GSO, probed(), replace(HERE, bulk=Bulk.STUCK)),
    (Verdict.NIC_GSO, probed(Kind.GSO), HERE),
    (Verdict.HEALTHY, probed(Kind.GSO, Kind.DATA), HERE),
    (Verdict.MTU, probed(Kind.PING_LARGE), replace(HERE, bulk=Bulk.STUCK)),
    (Verdict.HEALTHY, probed(), replace(HERE, bulk=Bulk.CLOSED)),
    # One of two flows is right by chance.
    (
        Verdict.NIC_OUTER,
        probed(
            *(kind for kind in KINDS if kind is not Kind.WRAPPED),
            syn=replace(answered(), lost_flows=1),
        ),
        HERE,
    ),
    (Verdict.UNDECIDED, probed(syn_offloaded=replace(answered(), lost_flows=1)), HERE),
    # A firewall drops every SYN: pings left to offload tell, where the device computes those.
    (Verdict.HEALTHY, probed(Kind.SYN, Kind.SYN_OFFLOADED, Kind.CONNECT), HERE),
    (
        Verdict.NIC,
        probed(Kind.SYN, Kind.SYN_OFFLOADED, Kind.CONNECT, Kind.PING_OFFLOADED),
        HERE,
    ),
    (Verdict.UNDECIDED, probed(Kind.SYN, Kind.SYN_OFFLOADED, Kind.CONNECT), Facts()),
    # Another drops pings only.
    (Verdict.HEALTHY, probed(Kind.PING, Kind.PING_OFFLOADED), HERE),
    (Verdict.LOSS, probed(ping=KindOutcome(40, 26, Counter({Departure.PARTIAL: 40}))), HERE),
    (Verdict.HEALTHY, probed(ping=KindOutcome(40, 38, Counter({Departure.PARTIAL: 40}))), HERE),
    (Verdict.UNDECIDED, probed(syn_offloaded=lost(4)), HERE),
    (Verdict.NOT_LEAVING, Probed(REMOTE, {kind: KindOutcome(40, 0) for kind in KINDS}), HERE),
    (Verdict.UNDECIDED, Probed(REMOTE, {}), HERE),
    (
        Verdict.CURED,
        probed(syn_offloaded=answered(2000)),
        replace(HERE, lanes=frozenset({"kernel"})),
    ),
    (Verdict.HEALTHY, probed(syn_offloaded=answered(2000)), HERE),
    (Verdict.HEALTHY, probed(), LOADED),
]


@pytest.mark.parametrize(
    ("verdict", "what", "facts"), TABLE, ids=[f"{n}-{row[0]}" for n, row in enumerate(TABLE)]
)
def test_each_row_has_one_verdict(verdict: Verdict, what: Probed, facts: Facts) -> None:
    assert only(what, facts) == verdict


def test_the_table_has_every_verdict() -> None:
    elsewhere = {Verdict.FORWARDED, Verdict.RELAY, Verdict.REMOTE, Verdict.ZERO_NAT, Verdict.NAT}
    assert {row[0] for row in TABLE} == set(Verdict) - elsewhere


def test_one_source_port_of_all_answers_betrays_a_relay() -> None:
    what = probed(Kind.SYN_OFFLOADED, Kind.PING_OFFLOADED, Kind.CONNECT)
    for outcome in what.outcomes.values():
        outcome.sources = {8472} if outcome.sources else set()
    assert only(what) == Verdict.RELAY


def test_one_flow_does_not_tell_what_rewrote_it() -> None:
    (conclusion,) = conclude(probed(syn_offloaded=wrong({2000: 99})), HERE)
    assert conclusion.verdict == Verdict.NAT
    assert "no rule that does this was found" in conclusion.against[0]


def test_a_checksum_made_of_none_is_told_from_a_wrong_one() -> None:
    remote = replace(REMOTE, tunnel=replace(TUNNEL, checksum=False))
    what = probed(syn_offloaded=wrong({2000: 11, 3000: 12}, found=0x1234))
    assert only(replace(what, remote=remote)) == Verdict.ZERO_NAT
    assert only(what) == Verdict.NAT


@pytest.mark.parametrize(
    ("kernel", "place"), [((4, 14, 0), "evidence"), ((6, 1, 0), "against"), ((), "")]
)
def test_the_kernel_version_speaks_for_or_against_a_checksum_made_of_none(
    kernel: tuple[int, ...], place: str
) -> None:
    remote = replace(REMOTE, tunnel=replace(TUNNEL, checksum=False))
    what = replace(probed(syn_offloaded=wrong({2000: 11, 3000: 12}, found=0x1234)), remote=remote)
    (conclusion,) = conclude(what, replace(HERE, kernel=kernel))
    found = {
        name
        for name in ("evidence", "against")
        if any(line.startswith("Linux ") for line in getattr(conclusion, name))
    }
    assert found == ({place} if place else set())


SENT = OuterTuple("192.0.2.1", 40000, VTEP, 8472)
NEW_SOURCE = OuterTuple("192.0.2.1", 2000, VTEP, 8472)
NEW_DEST = OuterTuple("192.0.2.1", 40000, "192.0.2.3", 8472)


@pytest.mark.parametrize(
    ("leaves", "sent", "verdict"),
    [
        (NEW_SOURCE, SENT, Verdict.SNAT),
        (NEW_DEST, SENT, Verdict.DNAT),
        (SENT, SENT, Verdict.NAT),
        (SENT, None, Verdict.NAT),
    ],
)
def test_conntrack_tells_which_nat_it_is_if_checksums_do_not(
    leaves: OuterTuple, sent: OuterTuple | None, verdict: Verdict
) -> None:
    one_flow = probed(syn_offloaded=replace(wrong({leaves.source_port: 99}), flows={leaves}))
    (conclusion,) = conclude(one_flow, replace(HERE, tracked=Tracked({leaves: sent})))
    assert conclusion.verdict == verdict
    is_shown = any(line.startswith("conntrack: the flow") for line in conclusion.evidence)
    assert is_shown == (verdict is not Verdict.NAT)
    unknown = any("conntrack does not know" in line for line in conclusion.against)
    assert unknown == (sent is None)


def test_flows_that_conntrack_does_not_know_were_rewritten_without_it() -> None:
    outcome = replace(wrong(NEW_ADDRESS, "192.0.2.3"), flows={NEW_DEST})
    rewritten = probed(syn_offloaded=outcome)
    both = facts(DNAT + NFT)
    both = replace(both, after=NatRules((*facts(DNAT).after.rules, *facts(NFT).after.rules)))
    assert only(rewritten, both) == Verdict.DNAT
    assert only(rewritten, replace(both, tracked=Tracked({NEW_DEST: None}))) == Verdict.STATELESS


@pytest.mark.parametrize(
    ("verdict", "what", "facts"), TABLE, ids=[f"{n}-{row[0]}" for n, row in enumerate(TABLE)]
)
def test_counters_are_told_and_change_no_verdict(
    verdict: Verdict, what: Probed, facts: Facts
) -> None:
    host = Drops("this host", True, {"UdpInCsumErrors": 5}, {"UdpInCsumErrors": 7})
    (conclusion,) = conclude(what, replace(facts, drops=[host]))
    assert conclusion.verdict == verdict
    if verdict in (Verdict.HEALTHY, Verdict.BLACK_HOLE):
        assert any("UdpInCsumErrors +2" in line for line in conclusion.against)


def test_answers_that_arrive_wrong_show_that_the_question_arrived() -> None:
    what = probed(Kind.SYN, Kind.SYN_OFFLOADED, Kind.CONNECT)
    for kind in (Kind.SYN, Kind.SYN_OFFLOADED):
        what.outcomes[kind].arrived[Diagnosis.REWRITTEN] = 7
    assert only(what) == Verdict.REMOTE


def test_both_ends_are_named() -> None:
    what = probed(syn_offloaded=wrong(NEW_PORTS), connect=wrong(NEW_PORTS))
    what.outcomes[Kind.PING].arrived[Diagnosis.REWRITTEN] = 7
    assert [one.verdict for one in conclude(what, facts(SNAT))] == [Verdict.SNAT, Verdict.REMOTE]


def test_without_privileges_a_loss_is_undecided_and_success_is_not() -> None:
    blind = Facts(blind="CAP_NET_RAW is missing")
    what = Probed(REMOTE, {Kind.PING: KindOutcome(12, 12), Kind.CONNECT: KindOutcome(20, 0)})
    assert only(what, blind) == Verdict.UNDECIDED
    what.outcomes[Kind.CONNECT] = KindOutcome(2, 2)
    (conclusion,) = conclude(what, blind)
    assert conclusion.verdict == Verdict.HEALTHY
    assert any("not seen" in line for line in conclusion.against)


def test_marked_packets_that_are_lost_but_right_are_undecided() -> None:
    what = probed(marked=lost(20), marked_host=answered())
    assert only(what, facts(KUBE)) == Verdict.UNDECIDED
    assert only(what, replace(facts(KUBE), blind="x")) == Verdict.KUBE_PROXY


def test_loaded_rules_that_do_not_help_speak_against() -> None:
    (conclusion,) = conclude(probed(Kind.SYN_OFFLOADED, Kind.PING_OFFLOADED), LOADED)
    assert conclusion.verdict == Verdict.NIC
    assert "do not repair" in conclusion.against[0]


def test_the_rule_whose_counter_rose_is_named_with_its_owner() -> None:
    (conclusion,) = conclude(probed(syn_offloaded=wrong(NEW_PORTS)), facts(SNAT + KUBE))
    assert [rule.owner for rule in conclusion.rules] == [natrules.SOMEBODY, "kube-proxy"]
    still = replace(HERE, before=rules(SNAT, 10), after=rules(SNAT, 10))
    (conclusion,) = conclude(probed(syn_offloaded=wrong(NEW_PORTS)), still)
    assert conclusion.rules == ()


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ((6, 1, 0), False),
        ((5, 7, 0), False),
        ((5, 6, 19), True),
        ((5, 4, 41), False),
        ((5, 4, 40), True),
        ((4, 19, 123), False),
        ((4, 18, 0), True),
        ((4, 14, 180), True),
        ((3, 10, 0), True),
    ],
)
def test_kernels_with_the_zero_checksum_bug(version: tuple[int, ...], has: bool) -> None:
    assert has_zero_checksum_bug(version) is has


# Without probes, because the device is in another namespace

HIDDEN = replace(REMOTE, device=0, address="", tunnel=replace(TUNNEL, checksum=False))


@pytest.mark.parametrize(
    ("verdict", "seen", "text"),
    [
        (Verdict.SNAT, wrong(NEW_PORTS), SNAT),
        (Verdict.DNAT, wrong(NEW_ADDRESS), DNAT),
        (Verdict.STATELESS, wrong(NEW_ADDRESS), NFT),
        (Verdict.ZERO_NAT, wrong(NEW_PORTS, found=77), SNAT),
    ],
)
def test_packets_that_leave_wrong_name_what_rewrites_them(
    verdict: Verdict, seen: KindOutcome, text: str
) -> None:
    seen.left[Departure.RIGHT] = 2
    # Their flows may be old, so that no counter of table nat rises.
    found = conclude_from_departures(HIDDEN, seen, Facts(after=rules(text, 10)))
    assert found.verdict is verdict
    assert found.evidence[0] == "40 of 42 packets left this host with a wrong outer checksum"
    assert len(found.rules) == 1


def test_nothing_is_to_be_done_to_a_device_that_is_not_here() -> None:
    assert "ethtool -K flannel.1" in commands(Verdict.SNAT)
    assert "flannel.1" not in commands(Verdict.SNAT, remote=HIDDEN)
    assert "flannel.1" not in commands(Verdict.DNAT, remote=HIDDEN)


# What is said about them


def test_every_verdict_has_a_sentence_and_every_fault_something_to_do() -> None:
    assert HEADLINES.keys() == set(Verdict)
    assert MAKERS.keys() == set(Verdict) - HEALTHY - {Verdict.UNDECIDED}


def commands(verdict: Verdict, nic: Nic = GENERIC, remote: Remote = REMOTE) -> str:
    place = Place(remote, (nic,))
    found = cures(Conclusion(verdict), place)
    return "\n".join(line for cure in found for line in (cure.what, cure.price, *cure.commands))


def test_csumfix_is_offered_only_where_it_helps() -> None:
    worst_first = list(Verdict)
    helps = worst_first[: worst_first.index(Verdict.REMOTE)]
    for verdict in Verdict:
        is_offered = "csumfix-rules apply" in commands(verdict) or "csumfix run" in commands(
            verdict
        )
        assert is_offered is (verdict in helps), verdict


def test_vmxnet3_is_offered_another_port_only_on_those_it_offloads() -> None:
    vmxnet3 = Nic("eth0", "vmxnet3")
    assert "vmxnet3 offloads only 4789, 6081, 8472" in commands(Verdict.NIC, vmxnet3)
    other = replace(REMOTE, tunnel=replace(TUNNEL, port=8473))
    assert "another port" not in commands(Verdict.NIC, vmxnet3, other)


def test_ethtool_on_the_tunnel_is_no_cure_while_the_nic_computes_the_outer_checksum() -> None:
    assert "ethtool -K eth0 tx off" in commands(Verdict.NIC)
    zero = replace(REMOTE, tunnel=replace(TUNNEL, checksum=False))
    assert "ethtool -K flannel.1 tx-checksum-ip-generic off" in commands(Verdict.NIC, remote=zero)
