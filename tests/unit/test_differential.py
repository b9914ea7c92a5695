"""The C core against a second opinion, on a million packets.

DIFFERENTIAL_PACKETS makes it fewer, or more. A packet that makes a difference is told by its
number, from which tests.generate.case() builds it again.
"""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from itertools import chain
from multiprocessing import get_context
from typing import Any

from csumfix import core
from tests import generate, oracle

PACKETS = int(os.environ.get("DIFFERENTIAL_PACKETS", "1000000"))
SLICE = 2000
# Of every reason and every state of the outer checksum there must be so many in a thousand
# packets, or the test says little.
LEAST_PER_THOUSAND = 1


def first_difference(got: Any, wanted: Any) -> str:
    """Name the first field that differs."""
    is_dataclass = isinstance(wanted, core.Repair)
    names = [field.name for field in fields(wanted)] if is_dataclass else wanted._fields
    for name in names:
        is_, should_be = getattr(got, name), getattr(wanted, name)
        if is_ != should_be:
            return f"{name} is {_plain(is_)}, should be {_plain(should_be)}"
    return ""


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def compare(number: int) -> tuple[str, core.Outer]:
    """Return the reason, and the state of the outer checksum, that both give for a packet."""
    case = generate.case(number)
    how: dict[str, Any] = {
        "wirelen": case.wirelen,
        "partial": case.partial,
        "replaceable": case.replaceable,
    }
    wanted = oracle.judge(case.packet, case.policy, **how)
    got = core.repair(case.packet, case.policy, **how)
    seen = core.inspect(case.packet, case.policy)
    difference = first_difference(got, wanted.repair) or first_difference(seen, wanted.inspection)
    assert not difference, (
        f"seed {generate.SEED}, packet {number}: {difference}\n{case.packet.hex()}\n"
        f"{case.policy}, {how}"
    )
    return got.reason, seen.outer


def compare_slice(start: int) -> Counter[str | core.Outer]:
    numbers = range(start, min(start + SLICE, PACKETS))
    return Counter(chain.from_iterable(compare(number) for number in numbers))


def test_no_difference() -> None:
    seen: Counter[str | core.Outer] = Counter()
    # Other tests have threads, which do not survive a fork.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as workers:
        for counted in workers.map(compare_slice, range(0, PACKETS, SLICE)):
            seen += counted
    assert sum(seen[name] for name in core.REASONS) == PACKETS
    kinds = (*core.REASONS, *core.Outer)
    rare = {kind for kind in kinds if seen[kind] * 1000 < PACKETS * LEAST_PER_THOUSAND}
    assert not rare, f"too few of {rare}: {seen}"
