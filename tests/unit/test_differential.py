"""The C core against a second opinion, on a million packets.

DIFFERENTIAL_PACKETS makes it fewer, or more. A packet that makes a difference is told by its
number, from which tests.generate.case() builds it again.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from typing import Any

from csumfix import core
from tests import generate, oracle

PACKETS = int(os.environ.get("DIFFERENTIAL_PACKETS", "1000000"))
SLICE = 2000
# Of every reason there must be so many in a thousand packets, or the test says little.
LEAST_PER_THOUSAND = 1


def first_difference(got: Any, wanted: Any) -> str:
    """Name the first field that differs."""
    for field in fields(wanted):
        is_, should_be = getattr(got, field.name), getattr(wanted, field.name)
        if is_ != should_be:
            return f"{field.name} is {_plain(is_)}, should be {_plain(should_be)}"
    return ""


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def compare(number: int) -> str:
    """Return the reason that both give for packet ``number``."""
    case = generate.case(number)
    wanted = oracle.judge(case.packet, case.policy, case.wirelen, case.partial)
    got = core.repair(case.packet, case.policy, wirelen=case.wirelen, partial=case.partial)
    seen = core.inspect(case.packet, case.policy)
    difference = first_difference(got, wanted.repair) or first_difference(seen, wanted.inspection)
    assert not difference, (
        f"seed {generate.SEED}, packet {number}: {difference}\n{case.packet.hex()}\n"
        f"{case.policy}, wirelen {case.wirelen}, partial {case.partial}"
    )
    return got.reason


def compare_slice(start: int) -> Counter[str]:
    return Counter(compare(number) for number in range(start, min(start + SLICE, PACKETS)))


def test_no_difference() -> None:
    reasons: Counter[str] = Counter()
    # Other tests have threads, which do not survive a fork.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        for counted in workers.map(compare_slice, range(0, PACKETS, SLICE)):
            reasons += counted
    assert sum(reasons.values()) == PACKETS
    rare = {name for name in core.REASONS if reasons[name] * 1000 < PACKETS * LEAST_PER_THOUSAND}
    assert not rare, f"too few of {rare}: {reasons}"
