"""Snapshots travel between versions, can be subtracted, and stay small."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csumfix.core import REASONS, PortStats, Stats
from csumfix.host.queues import KernelQueue
from csumfix.host.rules import RuleSet
from csumfix.service import control
from csumfix.service.snapshot import (
    LISTED,
    NO_COUNTS,
    KernelCounters,
    QueueSnapshot,
    Snapshot,
    from_json,
    to_bounded_json,
    to_json,
)
from tests.unit.snapshots import lane, queue, snapshot, tunnel


def over_the_wire(plain: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(json.dumps(plain))
    return answer


def test_a_snapshot_arrives_as_it_was_sent() -> None:
    sent = snapshot(
        rules=RuleSet((8472,), (), 0, 1, "4", (32768, 60999)),
        queues={0: queue(ports=(PortStats(8472, 1, 2, 3),)), 7: queue(kernel=None)},
    ).counted()
    assert from_json(over_the_wire(to_json(sent))) == sent


def test_a_newer_service_can_be_read() -> None:
    """Fields that this version does not know are ignored, wherever they are."""
    plain = over_the_wire(to_json(snapshot().counted()))
    plain["novelty"] = {"deep": [1]}
    for place in (plain["reload"], plain["tunnels"][0], plain["lanes"][0], plain["queues"]["0"]):
        place["novelty"] = 1
    plain["queues"]["0"]["reasons"]["brand_new"] = 5
    seen = from_json(plain)
    assert replace(seen, queues={}) == replace(snapshot().counted(), queues={})
    assert seen.queues[0].reasons["brand_new"] == 5


def test_an_older_service_can_be_read() -> None:
    """Fields that it does not send have their defaults."""
    device = {"name": "flannel.1", "port": 8472}
    plain = {"version": "0.1.0", "pid": 7, "started": 1, "tunnels": [device], "queues": {"0": {}}}
    seen = from_json(plain)
    assert (seen.version, seen.pid, seen.tunnels_count) == ("0.1.0", 7, 1)
    assert (seen.tunnels[0].name, seen.tunnels[0].family) == ("flannel.1", "both")
    assert seen.queues[0] == QueueSnapshot()
    assert (seen.lanes, seen.rules, seen.trouble) == ((), None, None)


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"pid": 1, "version": "1"},
        {"pid": "1", "version": "1", "started": 1},
        {"pid": True, "version": "1", "started": 1},
        {"pid": 1, "version": "1", "started": 1, "queues": []},
        {"pid": 1, "version": "1", "started": 1, "queues": {"x": {}}},
        {"pid": 1, "version": "1", "started": 1, "tunnels": {}},
        {"pid": 1, "version": "1", "started": 1, "tunnels": [1]},
    ],
)
def test_anything_else_is_no_snapshot(plain: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(plain)


def test_it_is_made_of_the_drain_and_the_kernel() -> None:
    stats = Stats(
        packets=3, reasons=(3, *[0] * (len(REASONS) - 1)), ports=(PortStats(1, 2, 3, 4),)
    )
    seen = QueueSnapshot.of(stats, KernelQueue(0, 99, 1, 2, 65531, 5, 6, 7))
    assert (seen.packets, seen.ports) == (3, stats.ports)
    assert seen.reasons == stats.by_reason()
    assert seen.kernel == KernelCounters(1, 5, 6)
    assert QueueSnapshot.of(stats, None).kernel is None


COUNTS = st.builds(
    QueueSnapshot,
    packets=st.integers(0, 99),
    overruns=st.integers(0, 99),
    reasons=st.fixed_dictionaries({"right": st.integers(0, 9), "recomputed": st.integers(0, 9)}),
    waits=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    ports=st.builds(PortStats, *[st.integers(1, 9)] * 4).map(lambda one: (one,)),
    kernel=st.builds(KernelCounters, *[st.integers(0, 9)] * 3),
)


@given(COUNTS)
def test_nothing_happens_between_a_snapshot_and_itself(counts: QueueSnapshot) -> None:
    zero = counts - counts
    assert (zero.packets, zero.overruns, zero.waits) == (0, 0, (0, 0))
    assert set(zero.reasons.values()) == {0}
    assert zero.kernel
    assert (zero.kernel.dropped, zero.ports[0].packets) == (0, 0)


@given(COUNTS)
def test_what_a_new_queue_has_counted_happened_since(counts: QueueSnapshot) -> None:
    assert counts - NO_COUNTS == counts


def test_thousands_of_ports_fit_into_an_answer_and_all_are_counted() -> None:
    count = 3 * LISTED
    why = "a packet from port 65535 to 65535, VNI 16777215, left fifteen-letters " + "x" * 60
    ports = tuple(
        lane(
            port=port,
            lane="queue" if port >= count - 10 else "kernel",
            why=why,
            repaired=0,
            departures={},
        )
        for port in range(1, count + 1)
    )
    everything = tuple(range(1, count + 1))
    shown = snapshot(
        lanes=ports,
        tunnels=tuple(tunnel(f"fifteen-let{n:04}", port=n) for n in everything),
        rules=RuleSet(everything, everything, 0, 1, "both", (1, 65535), everything),
        config={"tunnels": {f"fifteen-let{n:04}": {"lane": "queue"} for n in everything}},
        settings_notes=("x" * 250,) * count,
    )
    answer = from_json(to_bounded_json(shown.counted(), control.MAX_STATUS))
    assert (answer.lanes_count, answer.queue_lane_count) == (count, 11)
    assert sum(one.lane == "queue" for one in answer.lanes) == 11
    assert (len(answer.lanes), len(answer.tunnels), answer.tunnels_count) == (
        LISTED,
        LISTED,
        count,
    )
    assert [one.port for one in answer.lanes] == sorted(one.port for one in answer.lanes)


@pytest.mark.parametrize("why", ["x" * 300, "\udcff" * 300])
def test_whatever_a_snapshot_says_it_fits_into_an_answer(why: str) -> None:
    one, everything = lane(why=why, probe_why=why), tuple(range(1, 65536))
    counts = tuple(PortStats(port, 10**9 + port, 10**9, 10**9) for port in range(1, 66))
    shown = snapshot(
        lanes=tuple(replace(one, port=port) for port in range(1, 2 * LISTED)),
        config={"ports": everything, "geneve_ports": everything},
        settings_notes=(why,) * 2 * LISTED,
        queues={number: queue(ports=counts) for number in range(64)},
    )
    answer = to_bounded_json(shown, control.MAX_STATUS)
    assert len(control.encode(answer)) <= control.MAX_LINE
    assert len(answer["lanes"]) >= LISTED / 8
    assert answer["lanes_count"] == 2 * LISTED - 1
    assert answer["queues"][63]["ports"][0]["port"] == 65, "the busiest"


def test_the_empty_snapshot_is_a_snapshot() -> None:
    assert from_json(over_the_wire(to_json(Snapshot()))) == Snapshot()
