"""What the service makes of probes: whom it asks and when, and the lanes that follow from it."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from csumfix.evidence import offload
from csumfix.evidence.offload import CLOSING, CONTROLS, MOST, SURE, Offload
from csumfix.evidence.outcomes import Kind, KindOutcome
from csumfix.host.remotes import Remote
from csumfix.host.tunnels import Tunnel
from csumfix.options import LaneSetting, Options
from csumfix.service.lanes import SEEN
from csumfix.service.probing import EVERY, PER_ROUND, Turns
from csumfix.service.snapshot import PortSnapshot
from tests.unit.fakes import FLANNEL, OTHER, Host, Process, outcomes, remote
from tests.unit.test_service import started
from tests.unit.virtual import play

LOST, ANSWERED, UNKNOWN = Offload.LOST, Offload.ANSWERED, Offload.UNKNOWN


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "csumfix")


def port(process: Process) -> PortSnapshot:
    (only,) = process.service.snapshot().lanes
    return only


def in_kernel_lane(host: Host) -> bool:
    return not (host.rules and host.rules.queue_ports)


def only_in_the_queue_lane(host: Host) -> Callable[[Remote], Offload]:
    return lambda _: LOST if in_kernel_lane(host) else ANSWERED


# What outcomes mean


@pytest.mark.parametrize("verdict", Offload)
def test_the_fakes_outcomes_are_judged_as_they_are_meant(verdict: Offload) -> None:
    assert offload.judge(outcomes(verdict)) is verdict


def lost(answered_at: list[float], sent: int = SURE) -> dict[Kind, KindOutcome]:
    return {
        Kind.SYN: KindOutcome(answered_at=answered_at, answered=len(answered_at)),
        Kind.SYN_OFFLOADED: KindOutcome(sent=sent, sent_at=[float(n) for n in range(1, sent + 1)]),
    }


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({}, UNKNOWN),
        (lost([0.0, 99.0]), LOST),
        (lost([0.0, 99.0], SURE - 1), UNKNOWN),
        (lost([99.0]), UNKNOWN),
        (lost([0.0, 0.5]), UNKNOWN),  # the path may have failed since
        (lost([0.0, SURE - 0.5]), UNKNOWN),
        ({**lost([0.0, 99.0]), Kind.PING_OFFLOADED: KindOutcome(answered=1)}, ANSWERED),
        # Without the SYN packets a firewall may drop what the ping does not share.
        ({Kind.PING_OUTER: lost([0.0, 99.0])[Kind.SYN], **lost([])}, UNKNOWN),
    ],
)
def test_packets_are_lost_only_if_controls_were_answered_before_and_after(
    found: dict[Kind, KindOutcome], verdict: Offload
) -> None:
    assert offload.judge(found) is verdict


def simulate(arrives: Callable[[Kind], bool]) -> tuple[dict[Kind, KindOutcome], int]:
    """Play a round with a remote end that answers at once; return it and the packets sent."""
    found = {kind: KindOutcome() for kind in offload.extent(watch=False).kinds}
    total = 0
    for number in range(40):
        for kind in sorted(offload.wanted(found, number)):
            one, total = found[kind], total + 1
            one.sent += 1
            one.sent_at.append(float(total))
            if arrives(kind):
                one.answered += 1
                one.answered_at.append(float(total))
    return found, total


@pytest.mark.parametrize(
    ("arriving", "verdict", "most"),
    [
        ({Kind.SYN, Kind.SYN_OFFLOADED, Kind.DATA, Kind.GSO}, ANSWERED, 8),
        ({Kind.SYN, Kind.SYN_OFFLOADED, Kind.DATA}, LOST, 25),
        ({Kind.SYN, Kind.DATA, Kind.GSO}, LOST, 25),
        ({Kind.SYN, Kind.SYN_OFFLOADED}, ANSWERED, 12),  # a firewall drops the others
        ({Kind.PING, Kind.PING_OFFLOADED}, ANSWERED, 22),
        ({Kind.SYN, Kind.DATA}, LOST, 40),
        ({Kind.PING}, LOST, 40),
        ({Kind.PING_OUTER}, LOST, 50),
        (set(), UNKNOWN, 4 * CONTROLS),
    ],
)
def test_how_many_packets_a_remote_end_gets(
    arriving: set[Kind], verdict: Offload, most: int
) -> None:
    found, total = simulate(lambda kind: kind in arriving)
    assert offload.judge(found) is verdict
    assert total <= most


def test_no_remote_end_gets_more_than_is_promised() -> None:
    """Whatever is answered when."""
    for seed in range(300):
        chance = random.Random(seed)
        share = chance.random()
        found, _ = simulate(lambda _: chance.random() < share)  # noqa: B023 - called at once
        for kind, one in found.items():
            is_control = kind not in offload.LEFT
            assert one.sent <= (CONTROLS + CLOSING if is_control else MOST)


# Whom to ask


def test_all_of_many_tunnels_get_their_turn() -> None:
    tunnels = [replace(FLANNEL, name=f"vx{n}", index=n) for n in range(100)]
    remotes = [remote(n, tunnel) for tunnel in tunnels for n in range(1, 6)]
    turns, asked = Turns(), set()
    for _ in range(8):
        chosen = turns.choose(remotes, ())
        assert len(chosen) <= PER_ROUND
        asked |= {(one.tunnel.index, one.address) for one in chosen}
    assert len(asked) > 300
    for _ in range(8):
        asked |= {(one.tunnel.index, one.address) for one in turns.choose(remotes, ())}
    assert len(asked) == 500


def test_suspects_are_asked_each_time_and_leave_a_place_to_others() -> None:
    remotes = [remote(n) for n in range(1, 9)]
    suspects = {(FLANNEL.index, f"10.244.{n}.0") for n in (2, 4, 6)}
    turns = Turns()
    rounds = [[one.address for one in turns.choose(remotes, suspects)] for _ in range(5)]
    assert all(len(one) == 3 and one[:2] == ["10.244.2.0", "10.244.4.0"] for one in rounds)
    assert {one[2] for one in rounds} == {f"10.244.{n}.0" for n in (1, 3, 5, 7, 8)}


# The lanes that follow


def test_a_lie_is_cured_within_seconds_and_the_port_stays(caplog: Any) -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)])
        host.answers = only_in_the_queue_lane(host)
        process = await started(host)
        await asyncio.sleep(2)
        assert (port(process).lane, port(process).probe_lost) == ("queue", False)
        await asyncio.sleep(20 * 600)
        assert port(process).lane == "queue"
        assert process.service.snapshot().lane_changes == 1
        await process.stop()

    play(scenario())
    told = [line for line in caplog.messages if line.startswith("port 8472")]
    assert len(told) == 2
    assert "now in the queue lane: to 10.244.1.0 (VTEP 192.0.2.1), 14 of 14 probes" in told[0]
    assert told[1].endswith("in the queue lane they are answered")


def test_a_cause_that_both_probes_and_repairs_show_keeps_the_port_for_its_time_only(
    caplog: Any,
) -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)])

        def answer(_: Remote) -> Offload:
            if in_kernel_lane(host):
                return LOST
            queue = host.queues[0]  # the probes themselves arrive wrong in the queue
            queue.repair(8472, queue.stats().packets + 12)
            return ANSWERED

        host.answers = answer
        process = await started(host, Options(hold=60))
        await asyncio.sleep(200)
        assert port(process).lane == "queue", "each round of probes is repaired"
        assert port(process).why.endswith(SEEN)
        host.answers = lambda _: ANSWERED  # the cause has gone
        await asyncio.sleep(100)
        assert port(process).lane == "kernel"
        assert process.service.snapshot().lane_changes == 2
        await process.stop()

    play(scenario())
    told = [line for line in caplog.messages if line.startswith("port 8472")]
    assert len(told) == 3
    assert told[1].startswith("port 8472: is in the queue lane for a time only: ")


def test_a_port_that_stays_does_so_no_longer_once_its_packets_are_repaired() -> None:
    """Also if its predecessor has made the trial."""

    async def scenario() -> None:
        host = Host(remotes=[remote(1)])
        host.answers = only_in_the_queue_lane(host)
        await started(host, Options(hold=60))
        await asyncio.sleep(3)
        process = await started(host, Options(hold=60, take_over=True), pid=2)
        await asyncio.sleep(300)
        assert (port(process).lane, process.service.snapshot().lane_changes) == ("queue", 0)
        host.queues[1].repair(8472, 1)
        host.answers = lambda _: ANSWERED
        await asyncio.sleep(EVERY + 1)
        assert port(process).why.endswith(SEEN)
        await asyncio.sleep(60)
        assert port(process).lane == "kernel"
        await process.stop()

    play(scenario())


def test_what_the_queue_lane_does_not_cure_goes_back_and_is_told(caplog: Any) -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)], answers=lambda _: LOST)
        process = await started(host)
        await asyncio.sleep(4)
        assert port(process).lane == "kernel"
        await asyncio.sleep(2)
        assert port(process).probe_lost
        await asyncio.sleep(500)
        assert process.service.snapshot().lane_changes == 2
        await asyncio.sleep(200)
        assert process.service.snapshot().lane_changes == 4, "tried anew after the hold time"
        await process.stop()

    play(scenario())
    assert any("the queue lane did not help: to 10.244.1.0" in one for one in caplog.messages)


def test_a_trial_is_judged_by_the_remote_ends_that_were_lost() -> None:
    """The other one is answered in either lane, and says nothing of the cure."""

    async def scenario() -> None:
        host = Host(remotes=[remote(1), remote(2)])
        host.answers = lambda one: LOST if one.address == "10.244.2.0" else ANSWERED
        process = await started(host)
        await asyncio.sleep(4)
        assert "did not help" in port(process).why
        await process.stop()

    play(scenario())


@pytest.mark.parametrize("verdict", [ANSWERED, UNKNOWN])
def test_nothing_happens_where_nothing_is_lost(verdict: Offload) -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)], answers=lambda _: verdict)
        process = await started(host)
        await asyncio.sleep(600)
        assert process.service.snapshot().lane_changes == 0
        assert 19 <= len(host.asked) <= 23
        await process.stop()

    play(scenario())


def test_if_nobody_answers_the_next_round_watches_the_underlay() -> None:
    async def scenario() -> list[bool]:
        host = Host(remotes=[remote(1)], answers=lambda _: UNKNOWN)
        process = await started(host)
        await asyncio.sleep(4 * EVERY)
        await process.stop()
        return [watched for _, watched in host.asked]

    assert play(scenario())[:4] == [False, True, False, True]


def test_after_other_devices_carry_the_tunnels_the_lane_is_tried_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)])
        host.answers = only_in_the_queue_lane(host)
        process = await started(host, Options(hold=60))
        await asyncio.sleep(200)
        assert port(process).lane == "queue"
        monkeypatch.setattr("tests.unit.fakes.UNDERLAY", 9)
        host.answers = lambda _: ANSWERED
        host.routes_change()
        await asyncio.sleep(50)
        assert port(process).lane == "queue", "it does not leave before the hold time"
        await asyncio.sleep(20)
        assert port(process).lane == "kernel"
        await asyncio.sleep(100)
        assert port(process).lane == "kernel"
        await process.stop()

    play(scenario())


def test_a_tunnel_that_comes_later_is_probed_at_once() -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)], tunnels=[])
        process = await started(host)
        await asyncio.sleep(5)
        host.tunnels = [FLANNEL]
        host.links_change()
        await asyncio.sleep(1)
        assert host.asked == [(["10.244.1.0"], False)]
        await process.stop()

    play(scenario())


def test_a_change_of_tunnels_is_probed_soon() -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1), remote(1, OTHER)])
        process = await started(host)
        await asyncio.sleep(5)
        assert len(host.asked) == 1
        host.tunnels = [FLANNEL, OTHER]
        host.links_change()
        await asyncio.sleep(13)
        assert len(host.asked[-1][0]) == 2, "after the pause between two lookups"
        await process.stop()

    play(scenario())


def test_probes_can_be_switched_off_and_on() -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)], answers=lambda _: LOST)
        process = await started(host, Options(probe="off"))
        await asyncio.sleep(100)
        assert (host.asked, port(process).lane) == ([], "kernel")
        await process.reload(Options(probe="on"))
        assert host.asked
        await process.reload(Options(probe="off"))
        host.asked.clear()
        assert port(process).probe_lost is None
        await asyncio.sleep(100)
        assert host.asked == []
        await process.stop()

    play(scenario())


def test_in_a_fixed_lane_probes_only_tell() -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)], answers=lambda _: LOST)
        process = await started(host, Options(lane=LaneSetting.KERNEL))
        await asyncio.sleep(40)
        assert (port(process).lane, port(process).probe_lost) == ("kernel", True)
        assert process.service.snapshot().lane_changes == 0
        await process.stop()

    play(scenario())


def test_missing_permission_is_told_once(caplog: Any) -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)], blind="CAP_NET_RAW is missing")
        process = await started(host)
        await asyncio.sleep(100)
        assert process.service.snapshot().probe_fault == "CAP_NET_RAW is missing"
        assert port(process).lane == "kernel"
        await process.stop()

    play(scenario())
    assert sum("CAP_NET_RAW" in line for line in caplog.messages) == 1


def test_a_round_delays_neither_other_work_nor_the_end() -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)])
        process = await started(host)  # a round has just begun, and takes 0.9 s
        began = asyncio.get_running_loop().time()
        await process.stop()
        assert asyncio.get_running_loop().time() - began < 0.5

    play(scenario())


def test_a_successor_keeps_what_helped() -> None:
    async def scenario() -> None:
        host = Host(remotes=[remote(1)])
        host.answers = only_in_the_queue_lane(host)
        await started(host)
        await asyncio.sleep(3)
        second = await started(host, Options(take_over=True), pid=2)
        await asyncio.sleep(1000)
        assert (port(second).lane, second.service.snapshot().lane_changes) == ("queue", 0)
        assert "they are answered" in port(second).why
        await second.stop()

    play(scenario())


def test_tunnels_of_one_port_share_their_fate() -> None:
    async def scenario() -> None:
        twin: Tunnel = replace(FLANNEL, name="flannel.2", index=7)
        host = Host(tunnels=[FLANNEL, twin], remotes=[remote(1), remote(2, twin)])
        host.answers = lambda one: (
            LOST if one.tunnel is twin and in_kernel_lane(host) else ANSWERED
        )
        process = await started(host)
        await asyncio.sleep(4)
        assert port(process).lane == "queue"
        await process.stop()

    play(scenario())
