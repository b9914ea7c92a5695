"""Rates between two snapshots, and how they look."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from csumfix import core
from csumfix.service.snapshot import KernelCounters, QueueSnapshot
from csumfix.views import top
from csumfix.views.top import TimedSnapshot, quantile, rates
from tests.unit.snapshots import STARTED, queue, snapshot, tunnel

KERNEL = KernelCounters(waiting=4, queue_dropped=10, user_dropped=20)

BEFORE = queue(
    reasons={"right": 1000, "recomputed": 500, "recomputed_unproven": 5, "inner_corrupt": 7},
    bytes=1_000_000,
    overruns=3,
    batch_sizes=(10, 0, 0, 0, 0, 0, 0, 0),
    waits=(100, *[0] * 16),
    kernel=KERNEL,
)
AFTER = queue(
    reasons={
        "right": 1380,
        "recomputed": 600,
        "recomputed_unproven": 7,
        "inner_corrupt": 9,
        "zero_filled": 20,
    },
    bytes=1_250_000,
    overruns=5,
    batch_sizes=(10, 0, 0, 0, 42, 0, 0, 0),
    waits=(100, 0, 20, *[0] * 14),
    kernel=KernelCounters(6, 12, 24),
)


def sample(time: float, *queues: QueueSnapshot, **changes: Any) -> TimedSnapshot:
    return TimedSnapshot(time, snapshot(queues=dict(enumerate(queues)), **changes))


def test_rates_of_a_queue() -> None:
    (rate,) = rates(sample(10.0, BEFORE), sample(12.0, AFTER))
    assert rate == top.Rates(
        queue=0,
        packets=252.0,
        bits=1_000_000.0,
        written=61.0,
        left_wrong=1.0,
        missed=1.0,
        lost=3.0,
        waiting=6,
        batch=12.0,
        wait_p99=rate.wait_p99,
    )
    assert rate.wait_p99 == pytest.approx(49.7e-6)


def test_an_idle_queue_has_neither_batches_nor_waits() -> None:
    (rate,) = rates(sample(10.0, BEFORE), sample(11.0, BEFORE))
    assert (rate.packets, rate.batch, rate.wait_p99) == (0.0, None, None)


@pytest.mark.parametrize("change", [{"pid": 4712}, {"started": STARTED + 1}])
def test_a_service_that_was_restarted_began_with_0(change: dict[str, Any]) -> None:
    (rate,) = rates(sample(10.0, AFTER), sample(12.0, BEFORE, **change))
    assert rate.packets == 1512 / 2
    assert rate.missed == 3 / 2
    assert rate.lost == 30 / 2


def test_a_queue_that_appears_began_with_0() -> None:
    first, second = rates(sample(10.0, BEFORE), sample(11.0, BEFORE, AFTER))
    assert (first.packets, second.packets) == (0.0, 2016.0)


@pytest.mark.parametrize(("old", "new"), [(None, KERNEL), (KERNEL, None), (None, None)])
def test_unknown_drops_are_none(old: KernelCounters | None, new: KernelCounters | None) -> None:
    before, after = replace(BEFORE, kernel=old), replace(BEFORE, kernel=new)
    (rate,) = rates(sample(10.0, before), sample(11.0, after))
    assert rate.lost == 0.0
    assert rate.waiting == (4 if new else None)


NUMBERS = st.integers(0, 2**40)
QUEUES = st.builds(
    lambda counts, sizes, waits, packets: queue(
        reasons=packets,
        **dict(zip(("bytes", "overruns", "wait_us"), counts, strict=True)),
        batch_sizes=sizes,
        waits=waits,
    ),
    st.tuples(NUMBERS, NUMBERS, NUMBERS),
    st.tuples(*[NUMBERS] * 8),
    st.tuples(*[NUMBERS] * 17),
    st.fixed_dictionaries(dict.fromkeys(map(str, core.REASONS), NUMBERS)),
)


@given(QUEUES, QUEUES)
def test_rates_are_never_negative_though_the_service_is_restarted(
    old: QueueSnapshot, new: QueueSnapshot
) -> None:
    (rate,) = rates(sample(1.0, old), sample(1.5, new, started=STARTED + 1))
    numbers = (rate.packets, rate.bits, rate.written, rate.left_wrong, rate.missed, rate.lost)
    assert min(numbers) >= 0.0
    assert rate.wait_p99 is None or rate.wait_p99 >= 0.0


@pytest.mark.parametrize(
    ("q", "counts", "value"),
    [
        (0.5, [0, 0, 0, 0], None),
        (0.5, [2, 0, 0, 0], 0.5),
        (0.5, [1, 1, 1, 0], 1.5),
        (0.99, [0, 100, 0, 0], 1.99),
        (1.0, [1, 0, 1, 0], 4.0),
        (0.99, [0, 0, 0, 1], 4.0),
    ],
)
def test_quantile(q: float, counts: list[int], value: float | None) -> None:
    assert quantile(q, [1.0, 2.0, 4.0], counts) == (value and pytest.approx(value))


def drawn(before: TimedSnapshot | None, after: TimedSnapshot | None) -> list[str]:
    console = Console(width=80, no_color=True)
    with console.capture() as capture:
        console.print(top._view(before, after))
    return capture.get().splitlines()


def big(factor: int) -> QueueSnapshot:
    return queue(
        reasons={"right": 350_000 * factor, "inner_corrupt": 350_000 * factor},
        bytes=12_500_000_000 * factor,
        overruns=350_000 * factor,
        batch_sizes=(0, 0, 0, 0, 0, 0, 11_000 * factor, 0),
        waits=(*[0] * 16, factor),
        kernel=KernelCounters(65536, 350_000 * factor),
    )


def test_large_numbers_fit_into_80_columns() -> None:
    tunnels = (tunnel("fifteen-letters", vni=2**24 - 1, port=65535, mtu=65535),)
    lines = drawn(
        sample(1.0, big(1), tunnels=tunnels, pid=4_194_304),
        sample(2.0, big(2), tunnels=tunnels, pid=4_194_304),
    )
    assert all(len(line) <= 80 for line in lines)
    (row,) = (line.split() for line in lines if "100000.0" in line)
    assert row == ["0", "700000", "100000.0", "0", *["350000"] * 3, "65536", "63.6", "1000.00"]
    assert any("16777215" in line for line in lines)


def test_what_should_be_0_is_not_rounded_down_to_it() -> None:
    lines = drawn(sample(0.0, queue()), sample(60.0, queue(overruns=46)))
    assert "0.02" in lines[-1].split()


def test_no_service() -> None:
    assert drawn(None, None) == ["no service answers in this network namespace; waiting for one"]
