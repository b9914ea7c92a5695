"""What the self-test makes of its exchanges, and how it says so."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from csumfix.errors import Exit
from csumfix_lab import selftest_view
from csumfix_lab.causes import BY_NAME
from csumfix_lab.kernelbugs import (
    BUGS,
    CASES,
    IPVS,
    Bug,
    BugCase,
    BugOutcome,
    BugState,
    Exchange,
    judge,
    not_testable,
)
from csumfix_lab.selftest import Result

SNAT = BugCase(next(bug for bug in BUGS if bug.name == "source NAT"))
NFT = BugCase(next(bug for bug in BUGS if bug.cause == "stateless"), ipv6=True)
LOST = Exchange(12, 0, 12)
WHOLE = Exchange(12, 12, 0, rewritten=8)


def result(*outcomes: BugOutcome) -> Result:
    return Result("6.1.0-18-amd64", 4.2, outcomes)


def shown(found: Result) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    selftest_view.show(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_every_cause_is_one_of_the_lab() -> None:
    assert {bug.cause for bug in BUGS} - {IPVS} <= BY_NAME.keys()
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert {case.bug for case in CASES} == set(BUGS)


@pytest.mark.parametrize(
    ("exchange", "state", "reason"),
    [
        (LOST, BugState.LIVE, ""),
        (Exchange(12, 11, 1), BugState.LIVE, ""),
        (WHOLE, BugState.FIXED, ""),
        (Exchange(12, 12, 0, rewritten=0), BugState.NOT_TESTABLE, "NAT rewrote no outer header"),
        (
            Exchange(12, 9, 0, rewritten=8),
            BugState.NOT_TESTABLE,
            "3 of 12 datagrams were lost, and no checksum error says why",
        ),
    ],
)
def test_a_bug_is_proven_by_errors_and_its_absence_by_rewritten_packets_that_arrive(
    exchange: Exchange, state: BugState, reason: str
) -> None:
    outcome = judge(SNAT, exchange, None)
    assert (outcome.state, outcome.reason) == (state, reason)


def test_where_the_remote_end_is_virtual_the_answers_prove_that_headers_were_rewritten() -> None:
    assert judge(NFT, Exchange(12, 12, 0), None).state is BugState.FIXED


@pytest.mark.parametrize(
    ("cured", "cure"),
    [(WHOLE, "kernel lane"), (LOST, "queue lane"), (None, "queue lane")],
)
def test_the_kernel_lane_is_named_only_where_it_was_seen_to_cure(
    cured: Exchange | None, cure: str
) -> None:
    assert judge(SNAT, LOST, cured).cure == cure
    assert not judge(SNAT, WHOLE, cured).cure


def test_the_kernel_lane_is_no_cure_of_a_bug_that_ruins_gso_packets() -> None:
    zero = BugCase(next(bug for bug in BUGS if bug.ruins_gso))
    assert judge(zero, LOST, WHOLE).cure == "queue lane"


def test_live_bugs_are_named_with_their_cures() -> None:
    found = result(judge(SNAT, LOST, WHOLE), judge(NFT, LOST, LOST))
    assert selftest_view.exit_code(found) == Exit.NEGATIVE
    lines = shown(found)
    assert max(map(len, lines)) <= 80
    assert " ".join(lines[:2]) == (
        "This kernel, 6.1.0-18-amd64, has 2 of the 2 bugs that could be tried: "
        "the kernel lane cures all but stateless nft rules (queue lane)."
    )
    assert any(line.split() == ["source", "NAT", "live", "-", "kernel", "lane"] for line in lines)
    assert any(line.startswith("stateless nft rules") and "queue" in line for line in lines)


def test_a_kernel_without_bugs_is_said_to_be_so() -> None:
    found = result(judge(SNAT, WHOLE, None), not_testable(NFT, "nft is not there\x1b[1m"))
    assert selftest_view.exit_code(found) == Exit.OK
    lines = shown(found)
    assert lines[0].endswith("has none of the 1 bugs that could be tried.")
    assert "not testable: stateless nft rules (IPv6): nft is not there\\x1b[1m" in lines


def test_nothing_tried_is_undecided() -> None:
    found = result(not_testable(SNAT, "no namespaces"))
    assert selftest_view.exit_code(found) == Exit.BROKEN
    assert "could not be tested" in selftest_view.verdict(found)


def test_the_document_has_the_numbers() -> None:
    (bug,) = selftest_view.as_json(result(judge(SNAT, LOST, WHOLE)))["bugs"]
    assert bug["datagrams"] == {"sent": 12, "answered": 0, "checksum_errors": 12}
    assert bug["with_kernel_lane"] == {"sent": 12, "answered": 12, "checksum_errors": 0}
    assert (bug["state"], bug["cure"], bug["underlay"]) == ("live", "kernel lane", "IPv4")


def test_a_bug_with_two_cures_names_both() -> None:
    bug = Bug("some", "snat")
    found = result(
        judge(BugCase(bug), LOST, WHOLE),
        judge(BugCase(bug, ipv6=True), LOST, LOST),
    )
    assert any(line.endswith("kernel lane, queue lane") for line in map(str.rstrip, shown(found)))
