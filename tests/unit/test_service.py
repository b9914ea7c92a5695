"""The orders that matter, on a host made of fakes; the lab tests prove the same on a kernel."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.host.rules import Backend, LanesRefusedError, RuleKey, RuleSet
from csumfix.options import LaneSetting, Options, TunnelOptions
from csumfix.service import handover, pool
from csumfix.service.datapath import IN_VAIN, RECORDING
from csumfix.service.runner import RETRY
from csumfix.service.service import (
    RULES_ANNOUNCED,
    RULES_PAUSE,
    RULES_SILENT,
    SOCKETS_EVERY,
)
from csumfix.service.snapshot import from_json
from tests.unit.fakes import (
    FLANNEL,
    OTHER,
    UNDERLAY,
    Host,
    Process,
    connection,
    foreign,
    remote,
)
from tests.unit.virtual import play

QUEUE = Options(lane=LaneSetting.QUEUE)
KERNEL_RULES = "apply [8472] []"
QUEUE_RULES = "apply [] [8472] by 0+1"


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "csumfix")


async def started(host: Host, options: Options | None = None, pid: int = 1) -> Process:
    process = Process(host, options, pid)
    await asyncio.sleep(1)
    if process.task.done():
        process.task.result()
    return process


def kernel_ports(host: Host) -> list[int]:
    assert host.rules
    return list(host.rules.kernel_ports)


# Start and stop


def test_at_start_leftovers_go_then_queues_are_bound_then_rules_lead_to_them() -> None:
    async def scenario() -> list[str]:
        host = Host()
        process = await started(host, QUEUE)
        seen = host.log.copy()
        await process.stop()
        return seen

    assert play(scenario()) == ["serve 1", "remove rules", "bind 0", "start 0", QUEUE_RULES]


def test_at_stop_rules_are_removed_then_queues_drained_then_unbound() -> None:
    async def scenario() -> tuple[list[str], int, list[int]]:
        host = Host()
        process = await started(host, QUEUE)
        host.log.clear()
        queue = host.queues[0]
        waiting: list[int] = []
        real_note = host.note

        def note(what: str) -> None:
            if what == "remove rules":
                queue.arrive(40)  # had met the rules before they were removed
            if what == "unbind 0":
                waiting.append(queue.waiting)
            real_note(what)

        host.note = note  # type: ignore[method-assign]
        await process.stop()
        return host.log, host.lost, waiting

    log, lost, waiting = play(scenario())
    assert log == ["remove rules", "unbind 0", "destroy flows"]
    assert (lost, waiting) == (0, [0])


def test_at_stop_probes_end_before_rules_are_removed() -> None:
    async def scenario() -> list[str]:
        host = Host(remotes=[remote(2)])
        process = await started(host)
        await asyncio.sleep(10)
        host.log.clear()
        process.service.reload()  # and with it a round of probes
        await asyncio.sleep(0.5)
        await process.stop()
        return host.log

    log = play(scenario())
    assert log.index("stop probing") < log.index("remove rules")


def test_a_queue_that_never_gets_empty_does_not_keep_the_service_from_stopping() -> None:
    async def scenario() -> float:
        host = Host()
        process = await started(host, QUEUE)
        host.queues[0].stuck = True
        host.queues[0].arrive(1)
        before = asyncio.get_running_loop().time()
        await process.stop()
        return asyncio.get_running_loop().time() - before

    assert play(scenario()) == pytest.approx(pool.EMPTY_LIMIT, abs=0.2)


def test_a_start_that_fails_leaves_nothing_behind() -> None:
    async def scenario() -> Host:
        host = Host(refusals=[CsumfixError("no iptables", Exit.MISSING)])
        with pytest.raises(CsumfixError, match="no iptables"):
            await started(host, QUEUE)
        return host

    host = play(scenario())
    assert (host.queues, host.rules, host.name) == ({}, None, None)


def test_a_second_service_touches_nothing() -> None:
    async def scenario() -> list[str]:
        host = Host()
        first = await started(host, QUEUE)
        host.log.clear()
        with pytest.raises(CsumfixError, match="already runs"):
            await started(host, QUEUE, pid=2)
        seen = host.log.copy()
        await first.stop()
        return seen

    assert play(scenario()) == []


def test_a_foreign_queue_is_refused_before_anything_is_changed() -> None:
    async def scenario() -> list[str]:
        host = Host(foreign={0: foreign(0)})
        with pytest.raises(CsumfixError, match="already bound"):
            await started(host, QUEUE)
        return host.log

    assert play(scenario()) == ["serve 1"]


# Change


@pytest.mark.parametrize("change", [[FLANNEL, OTHER], [OTHER], []])
def test_ports_are_known_to_the_queues_before_rules_lead_to_them(change: list[Any]) -> None:
    """While rules are exchanged, packets of the old ones and the new ones may come."""

    async def scenario() -> None:
        host = Host()
        process = await started(host, QUEUE)
        before = host.rules

        def check(wanted: RuleSet) -> None:
            known = set(host.queues[0].policy.ports)
            assert known >= set(wanted.queued_ports)
            assert before
            assert known >= set(before.queued_ports)

        host.while_loading = check
        host.tunnels = change
        host.links_change()
        await asyncio.sleep(1)
        assert host.log[-1] != QUEUE_RULES, "the change was missed"
        ports = {tunnel.port for tunnel in change}
        assert set(host.queues[0].policy.ports) == (ports or {0})
        await process.stop()

    play(scenario())


GENEVE = replace(FLANNEL, name="genev_sys_6081", port=6081, index=5, protocol="geneve")


def test_queues_and_tap_know_what_a_port_carries() -> None:
    async def scenario() -> None:
        host = Host()
        host.tunnels = [FLANNEL, GENEVE]
        process = await started(host, QUEUE)
        assert host.queues[0].policy == Policy((6081, 8472), geneve=(6081,))
        assert host.tap.ports == {8472: "vxlan", 6081: "geneve"}
        await process.stop()

    play(scenario())


def test_packets_of_a_port_that_carries_both_are_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        host = Host()
        host.tunnels = [FLANNEL, replace(GENEVE, port=FLANNEL.port), OTHER]
        process = await started(host, QUEUE)
        assert host.rules
        assert host.rules.queue_ports == (OTHER.port, FLANNEL.port)
        assert set(host.queues[0].policy.ports) == set(host.tap.ports) == {OTHER.port}
        host.links_change()
        await asyncio.sleep(1)
        await process.stop()

    play(scenario())
    assert caplog.text.count("a vxlan and a geneve device have it") == 1


def test_the_tap_watches_what_carries_the_tunnels() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host)
        assert (set(host.tap.devices), set(host.tap.ports)) == ({2}, {8472})
        host.tunnels = []
        host.links_change()
        await asyncio.sleep(1)
        assert not host.tap.devices and not host.tap.ports
        await process.stop()

    play(scenario())


def test_a_failure_to_load_rules_is_retried_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host)
        broken = CsumfixError("iptables-restore failed", Exit.KERNEL)
        host.refusals = [broken, broken]
        host.tunnels = [FLANNEL, OTHER]
        host.links_change()
        await asyncio.sleep(2 * RETRY - 1)
        assert kernel_ports(host) == [8472]
        assert process.service.snapshot().rules is None, "nobody knows what is loaded"
        assert process.service.snapshot().rule_failures == 2
        await asyncio.sleep(2)
        assert kernel_ports(host) == [4789, 8472]
        assert process.service.snapshot().rules == host.rules
        await process.stop()

    play(scenario())
    failed = [line for line in caplog.messages if "failed" in line]
    what = "updating the rules for changed devices failed"
    assert failed == [f"{what}, retrying in 5 s: iptables-restore failed"] * 2


def test_a_storm_of_events_makes_a_bounded_number_of_looks() -> None:
    async def scenario() -> tuple[int, int]:
        host = Host()
        process = await started(host)
        host.listed = host.checked = 0
        for _ in range(6000):  # a minute of them
            host.links_change()
            host.routes_change()
            host.rules_change()
            await asyncio.sleep(0.01)
        await process.stop()
        return host.listed, host.checked

    listed, checked = play(scenario())
    assert listed <= 60 / 0.2 + 1
    assert checked <= 60 / RULES_PAUSE + 1


# Reload


def test_a_reload_binds_new_queues_before_rules_and_drains_old_ones_after() -> None:
    async def scenario() -> list[str]:
        host = Host()
        process = await started(host, QUEUE)
        host.log.clear()
        await process.reload(Options(lane=LaneSetting.QUEUE, queue_base=4, queues=2))
        seen = host.log.copy()
        await process.stop()
        return seen

    assert play(scenario()) == [
        *("bind 4", "bind 5"),
        "apply [] [8472] by 4+2",
        *("start 4", "start 5"),
        "unbind 0",
    ]


def test_repairs_of_queues_that_a_reload_released_stay_counted() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host, QUEUE)
        host.queues[0].repair(8472, 40)
        await process.reload(replace(QUEUE, queue_base=4))
        assert process.service.snapshot().lanes[0].repaired == 40
        host.queues[4].repair(8472, 2)
        assert process.service.snapshot().lanes[0].repaired == 42
        await process.stop()

    play(scenario())


def test_a_failed_reload_restores_what_was_there(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host, QUEUE)
        before = host.rules
        host.refusals = [CsumfixError("refused", Exit.KERNEL)]
        await process.reload(Options(queue_base=4, queues=2, ports=(9999,)))
        assert host.rules == before
        assert list(host.queues) == [0]
        assert host.queues[0].policy.ports == (8472,)
        seen = process.service.snapshot()
        assert (seen.reload.ok, seen.reload.failed) == (False, 1)
        assert (seen.config["queue_base"], seen.config["ports"]) == (0, ())
        assert seen.rules == before, "the old ones are known to be loaded"
        host.links_change()
        await asyncio.sleep(1)
        assert host.rules == before, "the next change must not bring the new settings"
        assert host.lost == 0
        await process.reload(QUEUE)
        assert process.service.snapshot().reload.ok
        await process.stop()

    play(scenario())
    assert "reload failed, the old settings stay in force: refused" in caplog.messages


def test_a_failed_reload_leaves_neither_the_tap_nor_a_port_half_changed() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host, QUEUE)
        pause = host.tap.pause
        host.refusals = [CsumfixError("refused", Exit.KERNEL)]
        await process.reload(Options(tap_pause=pause + 1))
        assert host.tap.pause == pause
        (lane,) = process.service.snapshot().lanes
        assert (lane.lane, lane.leaving_queue) == ("queue", False)
        await process.stop()

    play(scenario())


def test_a_reload_that_wants_a_foreign_queue_touches_nothing() -> None:
    async def scenario() -> list[str]:
        host = Host(foreign={2: foreign(2)})
        process = await started(host, QUEUE)
        host.log.clear()
        await process.reload(Options(queues=3))
        seen = host.log.copy()
        assert list(host.queues) == [0]
        await process.stop()
        return seen

    assert play(scenario()) == []


# Settings of single devices

OWN_QUEUE = Options(tunnels={"flannel.1": TunnelOptions(LaneSetting.QUEUE)})


def test_a_device_has_a_lane_of_its_own_from_the_start() -> None:
    async def scenario() -> list[str]:
        host = Host(tunnels=[FLANNEL, OTHER])
        process = await started(host, OWN_QUEUE)
        lanes = process.service.snapshot().lanes
        why = "setting lane = queue for flannel.1"
        assert [(one.port, one.lane, one.why) for one in lanes] == [
            (4789, "kernel", "default"),
            (8472, "queue", why),
        ]
        await asyncio.sleep(20 * OWN_QUEUE.hold)
        assert process.service.snapshot().lane_changes == 0
        seen = host.log.copy()
        await process.stop()
        return seen

    assert play(scenario())[-1] == "apply [4789] [8472] by 0+1"


def test_a_reload_changes_the_lane_of_a_device_and_back() -> None:
    async def scenario() -> list[str]:
        host = Host(tunnels=[FLANNEL, OTHER])
        process = await started(host)
        host.log.clear()
        await process.reload(OWN_QUEUE)
        await process.reload(Options())
        seen = host.log.copy()
        await process.stop()
        return seen

    assert play(scenario())[:3] == [
        "apply [4789] [8472] by 0+1",
        "create flows",
        "apply [4789, 8472] [] by 0+1 leaving [8472] recording",
    ]


def test_a_failed_reload_keeps_the_lanes_of_devices() -> None:
    async def scenario() -> None:
        host = Host(tunnels=[FLANNEL, OTHER])
        process = await started(host)
        host.refusals = [CsumfixError("refused", Exit.KERNEL)]
        await process.reload(OWN_QUEUE)
        host.links_change()
        await asyncio.sleep(1)
        assert all(one.lane == "kernel" for one in process.service.snapshot().lanes)
        assert process.service.snapshot().config["tunnels"] == {}
        await process.stop()

    play(scenario())


def test_a_successor_follows_the_settings_of_devices() -> None:
    async def scenario() -> None:
        host = Host()
        await started(host, OWN_QUEUE)
        new = await started(host, replace(OWN_QUEUE, take_over=True), pid=2)
        (lane,) = new.service.snapshot().lanes
        assert (lane.lane, lane.why) == ("queue", "setting lane = queue for flannel.1")
        third = await started(host, Options(take_over=True), pid=3)
        (lane,) = third.service.snapshot().lanes
        assert (lane.lane, lane.leaving_queue) == ("kernel", True)
        await third.stop()

    play(scenario())


def test_what_a_port_wants_while_its_device_goes() -> None:
    """The tap may see a packet of a port that is no tunnel's any more."""

    async def scenario() -> None:
        host = Host(tunnels=[FLANNEL, OTHER])
        process = await started(host, OWN_QUEUE)
        host.takes = 1.0
        host.while_loading = lambda _: host.tap.see_wrong(8472)
        host.tunnels = [OTHER]
        host.links_change()
        await asyncio.sleep(5)
        assert [one.port for one in process.service.snapshot().lanes] == [4789]
        await process.stop()

    play(scenario())


def test_a_device_that_is_not_here_is_named_until_it_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = "the settings name devices that are not here: flannel.1"

    async def scenario() -> None:
        host = Host(tunnels=[OTHER])
        process = await started(host, OWN_QUEUE)
        for _ in range(3):
            host.links_change()
            await asyncio.sleep(1)
        assert process.service.snapshot().settings_notes == (line,)
        host.tunnels = [OTHER, FLANNEL]
        host.links_change()
        await asyncio.sleep(1)
        assert process.service.snapshot().settings_notes == ()
        assert [one.lane for one in process.service.snapshot().lanes] == ["kernel", "queue"]
        await process.stop()

    play(scenario())
    assert caplog.messages.count(line) == 1


def test_devices_that_want_different_lanes_for_their_port_are_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        host = Host(tunnels=[FLANNEL, replace(OTHER, port=8472)])
        process = await started(host, OWN_QUEUE)
        for _ in range(3):
            host.links_change()
            await asyncio.sleep(1)
        (lane,) = process.service.snapshot().lanes
        assert lane.lane == "queue"
        assert len(process.service.snapshot().settings_notes) == 1
        await process.stop()

    play(scenario())
    told = [one for one in caplog.records if "want different" in one.message]
    assert [one.levelname for one in told] == ["WARNING"]


def test_a_kernel_without_nfqueue_says_so_of_a_device_that_wants_it() -> None:
    async def scenario() -> None:
        process = await started(Host(nfqueue=False), OWN_QUEUE)
        (lane,) = process.service.snapshot().lanes
        assert (lane.lane, lane.why) == ("kernel", "this kernel has no NFQUEUE")
        await process.stop()

    play(scenario())


def test_zero_is_filled_from_the_queue_lane_for_as_long_as_the_setting_says_so() -> None:
    async def scenario() -> list[str]:
        host = Host(tunnels=[replace(FLANNEL, checksum=False), OTHER])
        process = await started(host)
        host.log.clear()
        await process.reload(Options(zero="fill"))
        assert host.queues[0].policy.fill_zero
        assert process.service.snapshot().lanes[1].why == "setting zero = fill"
        await process.reload(Options())
        assert not host.queues[0].policy.fill_zero
        assert process.service.snapshot().lanes[1].lane == "kernel"
        seen = host.log.copy()
        await process.stop()
        return seen

    assert play(scenario())[0] == "apply [4789] [8472] by 0+1"


# Restored rules


def test_rules_that_another_program_changed_are_restored(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host)
        await asyncio.sleep(10)
        host.meddled = ("family=4 lane=kernel rule=fill-8472 what=missing",)
        host.rules_change()
        await asyncio.sleep(1)
        assert not host.meddled
        assert process.service.snapshot().rules_restored == 1
        await process.stop()

    play(scenario())
    (line,) = (line for line in caplog.messages if "another program" in line)
    assert line.endswith("restored: family=4 lane=kernel rule=fill-8472 what=missing")


def test_rules_are_not_said_to_be_loaded_while_they_cannot_be_restored() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host)
        await asyncio.sleep(10)
        loaded = host.rules
        host.meddled = ("family=4 lane=kernel rule=fill-8472 what=missing",)
        host.refusals = [CsumfixError("refused", Exit.KERNEL)]
        host.rules_change()
        await asyncio.sleep(1)
        assert process.service.snapshot().rules is None
        host.meddled = ()  # the other program has put them back
        await asyncio.sleep(RETRY)
        assert process.service.snapshot().rules == loaded
        await process.stop()

    play(scenario())


@pytest.mark.parametrize(("flushes", "restored"), [(2, 2), (10, IN_VAIN)])
def test_rules_that_are_flushed_while_they_are_restored_are_restored_again(
    flushes: int, restored: int
) -> None:
    """What always differs is not another program's work: the rules are written in other words."""

    async def scenario() -> None:
        host = Host()
        process = await started(host)
        await asyncio.sleep(10)
        flushed = ("family=4 lane=queue what=missing table=csumfix",)
        host.meddled = flushed
        left = flushes

        def flush(_: RuleSet) -> None:
            nonlocal left
            left -= 1
            host.meddled = flushed if left > 0 else ()

        host.while_loading = flush
        for _ in range(20):
            host.rules_change()
            await asyncio.sleep(2 * RULES_PAUSE)
        assert process.service.snapshot().rules_restored == restored
        assert bool(host.meddled) == (restored < flushes)
        await process.stop()

    play(scenario())


@pytest.mark.parametrize("also", [lambda _: None, lambda process: process.service.reload()])
def test_a_packet_that_left_wrong_while_rules_were_changed_moves_no_port(
    also: Callable[[Process], None],
) -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host)
        await asyncio.sleep(10)
        host.meddled = ("family=4 lane=kernel rule=fill-8472 what=missing",)
        host.tap.see_wrong(8472)
        also(process)
        await asyncio.sleep(60)
        seen = process.service.snapshot()
        assert (seen.rules_restored, seen.lane_changes) == (1, 0)
        host.tap.see_wrong(8472)
        await asyncio.sleep(1)
        assert process.service.snapshot().lane_changes == 1
        await process.stop()

    play(scenario())


def test_a_setting_moves_a_port_without_a_check_of_the_rules() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host)
        await asyncio.sleep(10)
        checked = host.checked
        await process.reload(QUEUE)
        await asyncio.sleep(1)
        assert process.service.snapshot().lanes[0].lane == "queue"
        assert host.checked == checked
        await process.stop()

    play(scenario())


@pytest.mark.parametrize(
    ("announced", "seconds"), [(True, RULES_ANNOUNCED), (False, RULES_SILENT)]
)
def test_rules_are_checked_from_time_to_time_without_events(
    announced: bool, seconds: float
) -> None:
    async def scenario() -> int:
        host = Host(announced=announced)
        process = await started(host)
        await asyncio.sleep(1)
        host.checked = 0
        await asyncio.sleep(10 * seconds)
        await process.stop()
        return host.checked

    assert play(scenario()) == 10


def test_the_rules_are_checked_when_conntrack_is_switched_on() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host)
        await asyncio.sleep(10)
        checked = host.checked
        host.conntrack = True
        host.meddled = (" lane=kernel rule=gate what=missing",)
        await asyncio.sleep(10)
        assert host.checked > checked
        assert not host.meddled
        assert process.service.snapshot().rules_restored == 0, "nobody has changed them"
        await process.stop()

    play(scenario())


def test_rules_that_were_flushed_get_their_gate_when_conntrack_is_on_again() -> None:
    """nft flush ruleset takes the users of conntrack along, which switches it off for a moment."""

    async def scenario() -> None:
        host = Host(conntrack=True)
        process = await started(host)
        await asyncio.sleep(10)
        host.meddled = ("family=4 lane=queue what=missing table=csumfix",)
        host.rules_change()
        await asyncio.sleep(1)
        assert not host.meddled
        host.meddled = (" lane=kernel rule=gate what=missing",)
        await asyncio.sleep(10)
        assert not host.meddled
        await process.stop()

    play(scenario())


# Lanes


def test_a_wrong_packet_moves_its_port_to_the_queue_lane_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        host = Host(tunnels=[FLANNEL, OTHER])
        process = await started(host)
        host.tap.see_wrong(8472)
        await asyncio.sleep(host.takes + 0.01)
        assert host.log[-1] == "apply [4789, 8472] [8472] by 0+1"
        seen = process.service.snapshot()
        assert [one.lane for one in seen.lanes] == ["kernel", "queue"]
        assert (seen.lane_changes, seen.wrong_packets) == (1, 1)
        host.tap.see_wrong(8472)  # is no news
        await asyncio.sleep(0.1)
        assert len(host.applied) == 2
        await process.stop()

    play(scenario())
    assert "port 8472: now in the queue lane: off by 7" in caplog.messages


def test_flows_leave_the_queue_lane_one_by_one() -> None:
    """First they are recorded, then those that were not are in the kernel lane, then all are."""

    async def scenario() -> list[str]:
        host = Host()
        process = await started(host, Options(hold=10))
        host.tap.see_wrong(8472)
        await asyncio.sleep(5)
        host.log.clear()
        await asyncio.sleep(8)
        assert process.service.snapshot().lanes[0].leaving_queue
        host.flows_left = False
        await asyncio.sleep(2)
        assert not process.service.snapshot().lanes[0].leaving_queue
        seen = host.log.copy()
        await process.stop()
        return seen

    assert play(scenario()) == [
        "create flows",
        "apply [8472] [] by 0+1 leaving [8472] recording",
        "apply [8472] [] by 0+1 leaving [8472]",
        "apply [8472] []",
        "destroy flows",
    ]


def test_flows_are_recorded_long_enough_though_rules_took_long_to_load() -> None:
    """What is not recorded goes by the kernel lane, past packets of its own in a queue."""

    async def scenario() -> list[float]:
        host = Host()
        process = await started(host, Options(hold=10))
        host.tap.see_wrong(8472)
        await asyncio.sleep(1)
        loaded: list[float] = []

        def note(_: RuleSet) -> None:
            loaded.append(asyncio.get_running_loop().time())
            host.takes = 0.02  # another program has held the lock of iptables until now

        host.takes, host.while_loading = 6.0, note
        await asyncio.sleep(20)
        await process.stop()
        return loaded

    began, ended = play(scenario())
    assert ended - began >= RECORDING


def test_recording_begins_anew_when_its_rules_were_flushed() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host, QUEUE)
        await asyncio.sleep(10)
        recording: list[bool] = []
        host.while_loading = lambda wanted: recording.append(wanted.recording)
        process.options = Options()
        process.service.reload()
        await asyncio.sleep(0.4)
        host.meddled = ("family=4 lane=queue rule=queue-0 what=missing",)
        host.rules_change()
        await asyncio.sleep(0.9)
        assert recording == [True, True]
        await asyncio.sleep(2)
        assert recording == [True, True, False]
        await process.stop()

    play(scenario())


def test_without_an_ipset_a_port_leaves_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> str:
        host = Host(ipset=False)
        process = await started(host, QUEUE)
        await process.reload(Options())
        last = host.log[-1]
        await process.stop()
        return last

    assert play(scenario()) == KERNEL_RULES
    assert any("leaves the queue lane at once" in line for line in caplog.messages)


def test_repairs_keep_a_port_in_the_queue_lane() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host, Options(hold=10))
        host.tap.see_wrong(8472)
        for packets in range(1, 30):
            await asyncio.sleep(1)
            host.queues[0].repair(8472, packets)
        assert process.service.snapshot().lanes[0].lane == "queue"
        await asyncio.sleep(12)
        assert process.service.snapshot().lanes[0].lane == "kernel"
        await process.stop()

    play(scenario())


def test_a_kernel_without_the_checksum_target_gets_the_queue_lane() -> None:
    async def scenario() -> None:
        refusal = LanesRefusedError("no CHECKSUM", frozenset({"kernel"}))
        host = Host(refusals=[refusal])
        process = await started(host)
        assert host.log[-2:] == ["apply refused", QUEUE_RULES]
        assert process.service.snapshot().kernel_fault == "the kernel lane's rules were refused"
        await process.stop()

    play(scenario())


def note_ports(host: Host, _: RuleSet) -> None:
    host.note(f"ports {host.queues[0].policy.ports}")


NFT = Backend("nft", "iptables is not installed")


def test_nft_queues_packets_of_the_kernel_lane(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        for backend, ports in ((NFT, (8472,)), (Backend("iptables"), (0,))):
            host = Host(backend=backend)
            host.while_loading = partial(note_ports, host)
            process = await started(host)
            assert "ports (8472,)" in host.log  # before it is known what will load the rules
            assert host.queues[0].policy.ports == ports
            seen = process.service.snapshot()
            assert (seen.backend, seen.backend_why) == (backend.name, backend.why)
            await process.stop()

    play(scenario())
    assert [line for line in caplog.messages if "nft" in line] == [
        "nft loads the rules, because iptables is not installed: "
        "the kernel lane queues the flows that NAT touches"
    ]


def test_iptables_needs_no_ports_of_the_kernel_lane_in_queues() -> None:
    async def scenario() -> None:
        host = Host()
        host.while_loading = partial(note_ports, host)
        process = await started(host, Options(backend="iptables"))
        assert "ports (0,)" in host.log
        await process.stop()

    play(scenario())


def test_nft_without_queues_is_refused() -> None:
    async def scenario() -> None:
        host = Host(nfqueue=False, backend=NFT)
        with pytest.raises(
            CsumfixError, match="with nft, packets are repaired in a queue"
        ) as error:
            await started(host)
        assert error.value.code is Exit.KERNEL
        assert host.rules is None

    play(scenario())


def test_a_kernel_without_nfqueue_gets_the_kernel_lane(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        host = Host(nfqueue=False)
        process = await started(host)
        assert host.log == ["serve 1", "remove rules", KERNEL_RULES]
        host.tap.see_wrong(8472)
        await asyncio.sleep(1)
        assert process.service.snapshot().lanes[0].lane == "kernel"
        assert process.service.snapshot().queues == {}
        await process.stop()
        with pytest.raises(CsumfixError, match="no NFQUEUE"):
            await started(host, QUEUE)

    play(scenario())
    assert "there is no queue lane: this kernel has no NFQUEUE" in caplog.messages


# Queues that fail


def test_a_queue_that_dies_ends_the_service_and_takes_the_rules_along() -> None:
    """The kernel accepts what the rules would have queued (--queue-bypass) until they are gone."""

    async def scenario() -> Host:
        host = Host()
        process = await started(host, QUEUE)
        host.log.clear()
        host.queues[0].fail()
        with pytest.raises(CsumfixError, match="queue 0 failed: No such device") as caught:
            await process.task
        assert caught.value.code is Exit.BROKEN
        return host

    host = play(scenario())
    assert host.log[:2] == ["remove rules", "unbind 0"]


@pytest.mark.parametrize("of", ["_watch", "_asking"])
def test_a_task_that_ends_by_a_bug_ends_the_service(of: str) -> None:
    async def scenario() -> Host:
        host = Host()
        process = await started(host)
        scheduler = getattr(process.service, of)

        def fail() -> None:
            raise ZeroDivisionError

        scheduler._until_due = fail
        scheduler._changed.set()
        await asyncio.sleep(1)
        assert process.task.done()
        assert isinstance(process.task.exception(), ZeroDivisionError)
        return host

    host = play(scenario())
    assert (host.rules, host.queues, host.name) == (None, {}, None)


def test_a_queue_that_stands_still_is_trouble_until_it_moves() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host, QUEUE)
        host.queues[0].stuck = True
        host.queues[0].arrive(3)
        await asyncio.sleep(11)
        trouble = process.service.trouble()
        assert trouble == "queue 0 stands still with 3 packets in it"
        assert process.service.snapshot().trouble == trouble
        host.queues[0].stuck = False
        await asyncio.sleep(11)
        assert process.service.trouble() is None
        await process.stop()

    play(scenario())


def test_queues_that_cannot_be_looked_at_are_no_reason_to_stop() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host, QUEUE)
        host.unreadable = OSError(24, "Too many open files")
        await asyncio.sleep(20)
        assert process.service.trouble() is None
        assert not process.task.done()
        host.unreadable = None
        await process.stop()

    play(scenario())


# Taking over

TAKE_OVER = Options(lane=LaneSetting.QUEUE, take_over=True)


def test_the_steps_of_a_take_over() -> None:
    async def scenario() -> Host:
        host = Host()
        old = await started(host, QUEUE)
        host.log.clear()
        new = await started(host, TAKE_OVER, pid=2)
        assert old.task.done()
        old.task.result()
        seen = new.service.snapshot()
        assert list(seen.queues) == [1]
        assert seen.rules == host.rules
        log = host.log.copy()
        await new.stop()
        host.log = log
        return host

    host = play(scenario())
    assert host.log == ["bind 1", "apply [] [8472] by 1+1", "start 1", "unbind 0", "serve 2"]
    assert host.lost == 0


def test_a_successor_keeps_lanes_reasons_and_what_is_leaving() -> None:
    async def scenario() -> None:
        host = Host(tunnels=[FLANNEL, OTHER])
        old = await started(host)
        host.tap.see_wrong(8472)
        host.tap.see_wrong(4789)
        await asyncio.sleep(1)
        before = old.service.snapshot()
        new = await started(host, Options(take_over=True), pid=2)
        after = new.service.snapshot()
        assert [(one.port, one.lane, one.why) for one in after.lanes] == [
            (one.port, one.lane, one.why) for one in before.lanes
        ]
        assert after.lanes[0].seconds > before.lanes[0].seconds
        assert after.lane_changes == 0
        await new.reload(Options(lane=LaneSetting.KERNEL))
        third = await started(host, Options(take_over=True, lane=LaneSetting.KERNEL), pid=3)
        assert all(one.leaving_queue for one in third.service.snapshot().lanes)
        await third.stop()

    play(scenario())


def test_no_packet_overtakes_one_that_waits_in_the_old_queue() -> None:
    """The new queue is started when the old one has been seen empty."""

    async def scenario() -> list[str]:
        host = Host()
        old = await started(host, QUEUE)
        ahead = host.queues[0]
        ahead.stuck = True

        def exchanged(_: RuleSet) -> None:
            ahead.arrive(5)
            host.queues[1].arrive(7)
            asyncio.get_running_loop().call_later(0.04, drained)

        def drained() -> None:
            host.note("old queue empty")
            ahead.stuck = False

        host.takes = 0.2
        host.while_loading = exchanged
        host.log.clear()
        new = await started(host, TAKE_OVER, pid=2)
        assert old.task.done()
        seen = host.log.copy()
        await new.stop()
        assert host.lost == 0
        return seen

    assert play(scenario())[:4] == [
        "bind 1",
        "apply [] [8472] by 1+1",
        "old queue empty",
        "start 1",
    ]


def test_packets_do_not_wait_long_for_an_old_queue_that_hangs() -> None:
    async def scenario() -> None:
        host = Host()
        await started(host, QUEUE)
        host.queues[0].stuck = True
        exchanged_at = 0.0

        def exchanged(_: RuleSet) -> None:
            nonlocal exchanged_at
            exchanged_at = asyncio.get_running_loop().time()
            host.queues[0].arrive(5)
            host.queues[1].arrive(7)

        host.while_loading = exchanged
        host.takes = 1.0
        new = Process(host, TAKE_OVER, pid=2)
        while "start 1" not in host.log:
            await asyncio.sleep(0.001)
        waited = asyncio.get_running_loop().time() - exchanged_at
        assert waited == pytest.approx(pool.PATIENCE, abs=0.01)
        await asyncio.sleep(5)
        await new.stop()

    play(scenario())


def test_a_successor_that_cannot_load_rules_leaves_all_as_it_was() -> None:
    async def scenario() -> None:
        host = Host()
        old = await started(host, QUEUE)
        before = host.rules
        host.refusals = [CsumfixError("refused", Exit.KERNEL)]
        with pytest.raises(CsumfixError, match="refused"):
            await started(host, TAKE_OVER, pid=2)
        await asyncio.sleep(1)
        assert host.rules == before
        assert list(host.queues) == [0]
        assert host.log[-2:] == [QUEUE_RULES, "unbind 1"] or host.log[-1] == QUEUE_RULES
        assert not old.task.done()
        assert host.name is old.socket
        await old.stop()

    play(scenario())


@pytest.mark.parametrize("last_words", [{"request": "go-on"}, {"request": "nonsense"}, None])
def test_a_predecessor_goes_on_unless_it_is_told_to_leave(
    last_words: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        host = Host()
        old = await started(host, QUEUE)
        here, there = connection(7, 1)
        old.socket.accept(there)
        await here.send(request="take-over")
        answer = await here.receive(1)
        assert answer
        assert (answer["queues"], list(answer["lanes"])) == ([0], ["8472"])
        host.links_change()
        await asyncio.sleep(5)
        assert host.listed <= 3, "it must not touch anything meanwhile"
        host.rules = None  # whatever the successor has done
        if last_words:
            await here.send(**last_words)
        else:
            here.close()
        await asyncio.sleep(1)
        assert host.log[-1] == QUEUE_RULES
        await old.stop()

    play(scenario())
    assert "process 7 failed to take over: loading our rules again" in caplog.messages


def test_a_successor_that_takes_too_long_is_not_waited_for() -> None:
    async def scenario() -> None:
        host = Host()
        old = await started(host, QUEUE)
        here, there = connection(7, 1)
        old.socket.accept(there)
        await here.send(request="take-over")
        host.rules = None
        await asyncio.sleep(handover.HOLD + 1)
        assert host.log[-1] == QUEUE_RULES
        await old.stop()

    play(scenario())


def test_a_frozen_predecessor_is_not_taken_over_from() -> None:
    async def scenario() -> list[str]:
        host = Host()
        old = await started(host, QUEUE)
        old.socket.frozen = True
        host.log.clear()
        new = Process(host, TAKE_OVER, pid=2)
        with pytest.raises(CsumfixError, match="cannot take over from process 1 of user 0"):
            await new.task
        seen = host.log.copy()
        await old.stop()
        return seen

    assert play(scenario()) == []


def test_a_predecessor_that_falls_silent_does_not_hold_up_its_successor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        host = Host()
        old = await started(host, QUEUE)
        # It answers, and is stopped before it can leave.
        leave_to = old.service._leave_to

        async def hang(successor: int) -> None:
            await asyncio.sleep(100)
            await leave_to(successor)

        old.service._leave_to = hang  # type: ignore[method-assign]
        new = Process(host, TAKE_OVER, pid=2)
        await asyncio.sleep(handover.LEAVE + 2)
        assert host.rules
        assert host.rules.queue_base == 1
        assert host.name is old.socket
        await asyncio.sleep(110)
        assert host.name is new.socket
        await new.stop()

    play(scenario())
    assert any("process 1 does not answer" in line for line in caplog.messages)


def test_a_successor_that_is_told_to_stop_half_way_leaves_the_old_one_at_work() -> None:
    async def scenario() -> None:
        host = Host()
        old = await started(host, QUEUE)
        host.takes = 2.0
        new = Process(host, TAKE_OVER, pid=2)
        await asyncio.sleep(1)
        await new.stop()
        await asyncio.sleep(3)
        assert not old.task.done()
        assert list(host.queues) == [0]
        assert host.rules
        assert host.rules.queue_base == 0
        assert host.lost == 0
        await old.stop()

    play(scenario())


def test_a_predecessor_leaves_even_if_it_cannot_look_at_its_queues() -> None:
    async def scenario() -> None:
        host = Host()
        old = await started(host, QUEUE)

        def exchanged(_: RuleSet) -> None:
            host.unreadable = OSError(24, "Too many open files")

        host.while_loading = exchanged
        new = Process(host, TAKE_OVER, pid=2)
        await asyncio.sleep(5)
        host.unreadable = None
        assert old.task.done()
        old.task.result()
        assert host.rules
        assert host.rules.queue_base == 1, "the old one must not load its rules again"
        assert list(host.queues) == [1]
        await new.stop()

    play(scenario())


def test_a_superseded_service_may_wait() -> None:
    async def scenario() -> None:
        host = Host()
        old = await started(host, Options(superseded="wait"))
        new = await started(host, TAKE_OVER, pid=2)
        await asyncio.sleep(100)
        assert not old.task.done()
        rules = host.rules
        await old.stop()
        assert host.rules == rules
        await new.stop()
        assert host.rules is None

    play(scenario())


def test_while_it_stops_it_cannot_be_taken_over_from() -> None:
    async def scenario() -> None:
        host = Host()
        old = await started(host, QUEUE)
        old.service.stop()
        answer = await old.socket.ask(request="take-over")
        assert (answer["code"], answer["error"]) == (Exit.IN_USE, "it is stopping: try again")
        await old.task

    play(scenario())


# Requests


def test_status_is_a_snapshot() -> None:
    async def scenario() -> None:
        host = Host()
        host.met["4", "fill-8472"] = 12
        process = await started(host, Options(ports=(9999,)))
        await asyncio.sleep(6)
        host.met["4", "fill-8472"] = 55
        seen = from_json(await process.socket.ask(request="status"))
        assert [one.name for one in seen.tunnels] == ["flannel.1"]
        assert [(one.port, one.kernel_packets) for one in seen.lanes] == [(8472, 55), (9999, 0)]
        assert (seen.lanes_count, seen.config["ports"]) == (2, [9999])
        await process.stop()

    play(scenario())


@pytest.mark.parametrize(
    ("flushed", "after", "total"),
    [
        ("4", {("6", "fill-8472"): 1000}, 1100),
        ("4", {("4", "fill-8472"): 5, ("6", "fill-8472"): 1000}, 1105),
        ("6", {("4", "fill-8472"): 101, ("6", "fill-8472"): 7}, 1108),
        ("4 and 6", {}, 1100),
    ],
)
def test_packets_are_counted_once_though_rules_of_a_family_come_and_go(
    flushed: str, after: dict[RuleKey, int], total: int
) -> None:
    async def scenario() -> list[int]:
        host = Host()
        process = await started(host)
        told = []
        before = Counter({("4", "fill-8472"): 100, ("6", "fill-8472"): 1000})
        back = Counter({("4", "fill-8472"): 2000, ("6", "fill-8472"): 3000})
        for host.met in (before, Counter(after), back):
            await asyncio.sleep(6)
            seen = from_json(await process.socket.ask(request="status"))
            told.append(seen.lanes[0].kernel_packets)
        await process.stop()
        return told

    first, second, third = play(scenario())
    assert (first, second) == (1100, total), f"after IPv{flushed} was flushed"
    assert third == total + 5000 - sum(after.values())


def test_status_does_not_wait_for_counters_that_take_long_to_read() -> None:
    async def scenario() -> None:
        host = Host()
        process = await started(host)
        await asyncio.sleep(6)
        host.met["4", "fill-8472"], host.counting = 55, 4.0
        before = asyncio.get_running_loop().time()
        first = from_json(await process.socket.ask(request="status"))
        assert asyncio.get_running_loop().time() - before < 2.0
        await asyncio.sleep(4)
        second = from_json(await process.socket.ask(request="status"))
        assert [one.lanes[0].kernel_packets for one in (first, second)] == [0, 55]
        await process.stop()

    play(scenario())


def test_a_successor_that_cannot_be_started_is_told_as_such(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        process = await started(Host())
        process.spawn_error = OSError(24, "Too many open files")
        answer = await process.socket.ask(request="restart")
        assert answer["code"] == Exit.BROKEN
        assert "starting a successor failed: [Errno 24] Too many open files" in answer["error"]
        assert process.service.snapshot().successor is None
        await process.stop()

    play(scenario())
    assert "starting a successor failed: [Errno 24] Too many open files" in caplog.messages


# Tunnels whose device is in another namespace


def test_a_port_with_a_socket_and_without_a_device_is_served_for_as_long_as_it_is_there() -> None:
    async def scenario() -> tuple[list[str], list[frozenset[int]]]:
        host = Host(tunnels=[], sockets=frozenset())
        process = await started(host)
        host.log.clear()
        watched = []
        for sockets in (frozenset({4789}), frozenset()):
            host.sockets = sockets
            await asyncio.sleep(SOCKETS_EVERY + 1)
            watched.append(host.tap.devices)
        await process.stop()
        return host.log[:2], watched

    log, watched = play(scenario())
    assert log == ["apply [4789] []", "remove rules"]
    assert watched == [{UNDERLAY}, set()]


def test_the_socket_of_a_device_that_is_here_changes_nothing() -> None:
    async def scenario() -> list[RuleSet]:
        host = Host(sockets=frozenset({FLANNEL.port}))
        process = await started(host)
        await asyncio.sleep(3 * SOCKETS_EVERY)
        await process.stop()
        return host.applied

    (rules,) = play(scenario())
    assert (rules.family, rules.source_ports) == ("4", FLANNEL.source_ports)


def test_devices_are_not_listed_anew_while_the_sockets_stay() -> None:
    async def scenario() -> int:
        host = Host(sockets=frozenset({4789}))
        process = await started(host)
        before = host.listed
        await asyncio.sleep(10 * SOCKETS_EVERY)
        await process.stop()
        return host.listed - before

    assert play(scenario()) == 0
