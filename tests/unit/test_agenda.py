"""The agenda: work that others cause takes a bounded share of a CPU."""

import asyncio
import time

import pytest

from csumfix.service import agenda
from csumfix.service.agenda import SHARE, Agenda, Work


async def _work(what: Work, seconds: float, cost: float) -> tuple[int, float]:
    """Note this work all the time; return how often it was done, and the CPU time of that."""
    times = 0

    async def step() -> None:
        nonlocal times
        times += 1
        busy_until = time.thread_time() + cost
        while time.thread_time() < busy_until:
            pass

    due = Agenda({what: step})
    worker = asyncio.create_task(due.work())
    before, end = time.thread_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        due.note(what)
        await asyncio.sleep(0.005)
    taken = time.thread_time() - before
    due.leave()
    await worker
    return times, taken


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agenda, "SETTLE", 0.0)


@pytest.mark.parametrize("what", [Work.TUNNELS, Work.UNDERLAYS, Work.RULES])
def test_work_that_is_always_due_is_done_again_and_again_but_not_all_the_time(
    what: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agenda, "CREDIT", 0.0)
    times, taken = asyncio.run(_work(what, seconds=1.5, cost=0.03))
    # Every 0.03 s / SHARE and a little more.
    assert 3 <= times <= 1.5 / (0.03 / SHARE) + 1
    assert taken < 0.5


def test_a_few_changes_at_once_do_not_wait() -> None:
    times, _ = asyncio.run(_work(Work.TUNNELS, seconds=0.5, cost=0.03))
    assert times > 0.5 / (0.03 / SHARE) + 1


def test_what_the_operator_asks_for_does_not_wait() -> None:
    times, _ = asyncio.run(_work(Work.RELOAD, seconds=1.0, cost=0.02))
    assert times > 1.0 / (0.02 / SHARE) + 1


def test_programs_that_were_run_count() -> None:
    before = agenda.cpu_seconds()

    async def burn() -> None:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done"
        )
        await process.wait()

    asyncio.run(burn())
    assert agenda.cpu_seconds() - before > 0.02
