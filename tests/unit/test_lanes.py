"""The table of csumfix/service/lanes.py, row by row, and what happens over time."""

from dataclasses import replace

import pytest

from csumfix.options import LaneSetting
from csumfix.service.lanes import (
    MAX_DOUBLINGS,
    SETTLE,
    Evidence,
    Lane,
    PortLane,
    Terms,
    decide,
)

NOW = 1000.0
AUTO = Terms()
NOTHING = Evidence(kernel_since=0.0)
WRONG = Evidence(wrong_at=NOW, wrong="off by 7", kernel_since=NOW - 10)
IN_KERNEL = PortLane(Lane.KERNEL, 0.0, "default")
IN_QUEUE = PortLane(Lane.QUEUE, NOW, "off by 7", by_evidence=True)


@pytest.mark.parametrize(
    ("terms", "before", "evidence", "lane"),
    [
        (AUTO, None, NOTHING, Lane.KERNEL),
        (AUTO, None, WRONG, Lane.KERNEL),
        (AUTO, IN_KERNEL, NOTHING, Lane.KERNEL),
        (AUTO, IN_KERNEL, WRONG, Lane.QUEUE),
        (AUTO, IN_KERNEL, replace(WRONG, kernel_since=None), Lane.KERNEL),
        (AUTO, IN_KERNEL, replace(WRONG, kernel_since=NOW - SETTLE), Lane.KERNEL),
        (AUTO, IN_KERNEL, replace(NOTHING, repaired_at=NOW), Lane.KERNEL),
        (AUTO, replace(IN_KERNEL, since=NOW), WRONG, Lane.KERNEL),  # what sent it there before
        (AUTO, IN_QUEUE, NOTHING, Lane.QUEUE),
        (Terms(LaneSetting.KERNEL), None, NOTHING, Lane.KERNEL),
        (Terms(LaneSetting.KERNEL), IN_KERNEL, WRONG, Lane.KERNEL),
        (Terms(LaneSetting.KERNEL), IN_QUEUE, WRONG, Lane.KERNEL),
        (Terms(LaneSetting.QUEUE), None, NOTHING, Lane.QUEUE),
        (Terms(LaneSetting.QUEUE), IN_KERNEL, NOTHING, Lane.QUEUE),
        (Terms(kernel_fault="no CHECKSUM"), None, NOTHING, Lane.QUEUE),
        (Terms(queue_works=False), IN_KERNEL, WRONG, Lane.KERNEL),
        (Terms(LaneSetting.KERNEL, kernel_fault="no CHECKSUM"), IN_KERNEL, NOTHING, Lane.QUEUE),
    ],
)
def test_lane(terms: Terms, before: PortLane | None, evidence: Evidence, lane: Lane) -> None:
    assert decide(terms, before, evidence, NOW).lane is lane


def test_the_reason_is_the_evidence() -> None:
    after = decide(AUTO, IN_KERNEL, WRONG, NOW)
    assert (after.since, after.why, after.by_evidence) == (NOW, "off by 7", True)


def test_what_does_not_change_is_the_same_object() -> None:
    assert decide(AUTO, IN_KERNEL, NOTHING, NOW) is IN_KERNEL
    assert decide(AUTO, IN_QUEUE, NOTHING, NOW) is IN_QUEUE


def test_it_leaves_the_queue_after_the_hold_time_without_evidence() -> None:
    assert decide(AUTO, IN_QUEUE, NOTHING, NOW + 599).lane is Lane.QUEUE
    after = decide(AUTO, IN_QUEUE, NOTHING, NOW + 600)
    assert after.lane is Lane.KERNEL
    assert after.why == "nothing was wrong for 600 s"


@pytest.mark.parametrize("late", [Evidence(repaired_at=NOW + 500), Evidence(wrong_at=NOW + 500)])
def test_evidence_starts_the_hold_time_again(late: Evidence) -> None:
    assert decide(AUTO, IN_QUEUE, late, NOW + 1099).lane is Lane.QUEUE
    assert decide(AUTO, IN_QUEUE, late, NOW + 1100).lane is Lane.KERNEL


def test_a_cause_that_comes_and_goes_does_not_make_the_lane_flap() -> None:
    state, now = decide(AUTO, IN_KERNEL, WRONG, NOW), NOW
    stays = []
    for _ in range(MAX_DOUBLINGS + 2):
        began = now
        while state.lane is Lane.QUEUE:
            now += 100
            state = decide(AUTO, state, NOTHING, now)
        stays.append(now - began)
        again = replace(WRONG, wrong_at=now + 1, kernel_since=now)
        state = decide(AUTO, state, again, now + 1)
        assert state.lane is Lane.QUEUE
        now += 1
    assert stays[:3] == [600, 1200, 2400]
    assert stays[-1] == stays[-2] == 600 * 2**MAX_DOUBLINGS


def test_a_port_that_a_setting_kept_in_the_queue_leaves_it_with_the_setting() -> None:
    forced = decide(Terms(LaneSetting.QUEUE), None, NOTHING, NOW)
    assert decide(AUTO, forced, NOTHING, NOW + 1).lane is Lane.KERNEL


def test_a_setting_that_confirms_the_lane_keeps_the_time() -> None:
    after = decide(Terms(LaneSetting.QUEUE), IN_QUEUE, NOTHING, NOW + 5)
    assert (after.since, after.why) == (NOW, "setting lane = queue")


def test_a_relapse_long_ago_is_forgotten() -> None:
    left = PortLane(Lane.KERNEL, NOW, "quiet", by_evidence=True, relapses=3)
    soon = replace(WRONG, wrong_at=NOW + 100)
    late = replace(WRONG, wrong_at=NOW + 600 * 2**MAX_DOUBLINGS + 100)
    assert decide(AUTO, left, soon, NOW + 100).relapses == 4
    assert decide(AUTO, left, late, NOW + 600 * 2**MAX_DOUBLINGS + 100).relapses == 0
