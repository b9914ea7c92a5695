"""The table of csumfix/service/lanes.py, row by row, and what happens over time."""

from dataclasses import replace

import pytest

from csumfix.options import LaneSetting
from csumfix.service.lanes import (
    IN_FLIGHT,
    MAX_DOUBLINGS,
    SEEN,
    Evidence,
    Lane,
    PortLane,
    ProbeFinding,
    Terms,
    Trial,
    decide,
    lanes_from_json,
    lanes_to_json,
)

NOW = 1000.0
AUTO = Terms()
NOTHING = Evidence(kernel_since=0.0)
WRONG = Evidence(wrong_at=NOW, wrong="off by 7", kernel_since=NOW - 10)
IN_KERNEL = PortLane(Lane.KERNEL, 0.0, "default")
IN_QUEUE = PortLane(Lane.QUEUE, NOW, "off by 7", by_evidence=True)
LOST = replace(NOTHING, probes=ProbeFinding(NOW, lost=True, why="5 of 5 lost"))
ANSWERED = replace(NOTHING, probes=ProbeFinding(NOW, lost=False))
ON_TRIAL = PortLane(Lane.QUEUE, NOW - 1, "5 of 5 lost", by_evidence=True, trial=Trial.RUNNING)
TO_STAY = replace(ON_TRIAL, trial=Trial.HELPED)
NO_HELP = PortLane(Lane.KERNEL, NOW - 1, "no help", by_evidence=True, trial=Trial.FAILED)


@pytest.mark.parametrize(
    ("terms", "before", "evidence", "lane"),
    [
        (AUTO, None, NOTHING, Lane.KERNEL),
        (AUTO, None, WRONG, Lane.KERNEL),
        (AUTO, IN_KERNEL, NOTHING, Lane.KERNEL),
        (AUTO, IN_KERNEL, WRONG, Lane.QUEUE),
        (AUTO, IN_KERNEL, replace(WRONG, kernel_since=None), Lane.KERNEL),
        (AUTO, IN_KERNEL, replace(WRONG, kernel_since=NOW - IN_FLIGHT), Lane.KERNEL),
        (AUTO, IN_KERNEL, replace(NOTHING, repaired_at=NOW), Lane.KERNEL),
        (AUTO, replace(IN_KERNEL, since=NOW), WRONG, Lane.KERNEL),  # what sent it there before
        (AUTO, IN_QUEUE, NOTHING, Lane.QUEUE),
        (AUTO, IN_KERNEL, LOST, Lane.QUEUE),
        (AUTO, IN_KERNEL, ANSWERED, Lane.KERNEL),
        (AUTO, IN_KERNEL, replace(LOST, kernel_since=None), Lane.KERNEL),
        (AUTO, IN_KERNEL, replace(LOST, kernel_since=NOW), Lane.KERNEL),  # sent before the rules
        (AUTO, replace(IN_KERNEL, since=NOW), LOST, Lane.KERNEL),
        (AUTO, ON_TRIAL, NOTHING, Lane.QUEUE),
        (AUTO, ON_TRIAL, ANSWERED, Lane.QUEUE),
        (AUTO, ON_TRIAL, LOST, Lane.KERNEL),
        (AUTO, replace(ON_TRIAL, since=NOW), LOST, Lane.QUEUE),  # what sent it there
        (AUTO, ON_TRIAL, replace(LOST, repaired_at=NOW), Lane.QUEUE),
        (AUTO, ON_TRIAL, replace(LOST, repaired_at=ON_TRIAL.since), Lane.KERNEL),
        (AUTO, TO_STAY, LOST, Lane.QUEUE),
        (AUTO, TO_STAY, replace(LOST, repaired_at=NOW), Lane.QUEUE),
        (AUTO, NO_HELP, LOST, Lane.KERNEL),
        (AUTO, NO_HELP, WRONG, Lane.QUEUE),
        (Terms(LaneSetting.KERNEL), IN_KERNEL, LOST, Lane.KERNEL),
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
    after = decide(Terms(LaneSetting.QUEUE, why="setting"), IN_QUEUE, NOTHING, NOW + 5)
    assert (after.since, after.why) == (NOW, "setting")


def test_a_relapse_long_ago_is_forgotten() -> None:
    left = PortLane(Lane.KERNEL, NOW, "quiet", by_evidence=True, relapses=3)
    soon = replace(WRONG, wrong_at=NOW + 100)
    late = replace(WRONG, wrong_at=NOW + 600 * 2**MAX_DOUBLINGS + 100)
    assert decide(AUTO, left, soon, NOW + 100).relapses == 4
    assert decide(AUTO, left, late, NOW + 600 * 2**MAX_DOUBLINGS + 100).relapses == 0


def test_what_probes_found_stays_in_the_queue_lane_for_good() -> None:
    kept = decide(AUTO, ON_TRIAL, ANSWERED, NOW)
    assert kept.trial is Trial.HELPED
    assert decide(AUTO, kept, NOTHING, NOW + 1e9) is kept


@pytest.mark.parametrize("seen", [Evidence(repaired_at=NOW), Evidence(wrong_at=NOW)])
@pytest.mark.parametrize("before", [ON_TRIAL, TO_STAY])
@pytest.mark.parametrize("probes", [NOTHING, ANSWERED, LOST])
def test_what_can_be_seen_on_this_host_keeps_no_port_for_good(
    before: PortLane, probes: Evidence, seen: Evidence
) -> None:
    evidence = replace(seen, probes=probes.probes)
    kept = decide(AUTO, before, evidence, NOW)
    assert (kept.lane, kept.since, kept.trial) == (Lane.QUEUE, before.since, Trial.NONE)
    assert kept.why == f"{before.why}; {SEEN}"
    assert decide(AUTO, kept, evidence, NOW + AUTO.hold - 1) is kept
    left = decide(AUTO, kept, evidence, NOW + AUTO.hold)
    assert (left.lane, left.by_evidence) == (Lane.KERNEL, True)


@pytest.mark.parametrize(
    "seen",
    [
        Evidence(repaired_at=NOW - 2),
        Evidence(wrong_at=NOW - 2),
        Evidence(wrong_at=NOW, kernel_since=NOW + 1),  # another program had changed the rules
    ],
)
def test_what_was_seen_before_a_trial_or_other_rules_says_nothing_about_it(seen: Evidence) -> None:
    evidence = replace(seen, probes=ANSWERED.probes)
    assert decide(AUTO, ON_TRIAL, evidence, NOW).trial is Trial.HELPED
    assert decide(AUTO, TO_STAY, evidence, NOW) is TO_STAY


def test_a_cause_that_cannot_be_seen_is_found_again_and_keeps_the_port() -> None:
    """Though one that could be seen was there at first, too."""
    lane = decide(AUTO, ON_TRIAL, replace(ANSWERED, repaired_at=NOW), NOW)
    now = NOW + AUTO.hold
    lane = decide(AUTO, lane, NOTHING, now)
    lane = decide(AUTO, lane, replace(LOST, probes=ProbeFinding(now + 1, lost=True)), now + 1)
    assert (lane.trial, lane.relapses) == (Trial.RUNNING, 1)
    answered = ProbeFinding(now + 2, lost=False)
    lane = decide(AUTO, lane, replace(ANSWERED, probes=answered), now + 2)
    assert lane.trial is Trial.HELPED


def test_the_hold_time_begins_when_evidence_is_gathered() -> None:
    """After a hand-over nobody knows what the predecessor saw; that is no evidence itself."""
    late = replace(NOTHING, known_since=NOW + 500)
    assert decide(AUTO, IN_QUEUE, late, NOW + 1099) is IN_QUEUE
    assert decide(AUTO, IN_QUEUE, late, NOW + 1100).lane is Lane.KERNEL
    assert decide(AUTO, TO_STAY, late, NOW + 1100) is TO_STAY


def test_a_trial_that_no_probe_judges_ends_with_the_hold_time() -> None:
    after = decide(AUTO, ON_TRIAL, NOTHING, NOW + AUTO.hold)
    assert after.lane is Lane.KERNEL


def test_a_trial_that_did_not_help_is_repeated_ever_more_seldom() -> None:
    hold = AUTO.hold

    def lost(at: float) -> Evidence:
        return Evidence(kernel_since=0.0, probes=ProbeFinding(at, lost=True, why="lost"))

    lane, now = NO_HELP, NO_HELP.since
    for doubled in range(3):
        early = now + hold * 2**doubled - 1
        assert decide(AUTO, lane, lost(early), early) is lane
        now = early + 2
        lane = decide(AUTO, lane, lost(now), now)
        assert lane.trial is Trial.RUNNING
        now += 1
        lane = decide(AUTO, lane, lost(now), now)
        assert (lane.lane, lane.trial) == (Lane.KERNEL, Trial.FAILED)
        assert lane.why == "the queue lane did not help: lost"


def test_a_trial_survives_a_successor() -> None:
    lanes = {8472: ON_TRIAL, 4789: IN_KERNEL}
    assert lanes_from_json(lanes_to_json(lanes)) == lanes


def test_a_predecessor_that_knows_no_trials_is_understood() -> None:
    plain = lanes_to_json({8472: IN_QUEUE})
    assert "trial" not in plain["8472"]
    assert lanes_from_json(plain) == {8472: IN_QUEUE}
