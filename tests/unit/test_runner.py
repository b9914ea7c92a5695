"""When work is done: settle, minimum and maximum interval, retry, share, order, lock."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.service.runner import CREDIT, RETRY, Runner, Scheduler
from tests.unit.virtual import play


class Diary:
    """Notes what was done, and when since it was made."""

    def __init__(self) -> None:
        self._began = asyncio.get_running_loop().time()
        self.entries: list[tuple[float, str]] = []
        self.cpu = 0.0

    def step(self, name: str = "", takes: float = 0.0, cost: float = 0.0) -> Any:
        async def work() -> None:
            now = asyncio.get_running_loop().time()
            self.entries.append((round(now - self._began, 3), name))
            self.cpu += cost
            await asyncio.sleep(takes)

        return work

    def times(self) -> list[float]:
        return [at for at, _ in self.entries]

    def names(self) -> list[str]:
        return [name for _, name in self.entries]


@asynccontextmanager
async def running(*runners: Runner, diary: Diary | None = None) -> Any:
    cpu = (lambda: diary.cpu) if diary else None
    scheduler = Scheduler(runners, asyncio.get_running_loop().time, cpu)
    task = asyncio.create_task(scheduler.run())
    yield scheduler
    scheduler.stop()
    await task


def test_events_that_come_together_are_worked_off_together() -> None:
    async def scenario() -> list[float]:
        diary = Diary()
        runner = Runner("", diary.step(), settle=0.2)
        async with running(runner):
            for _ in range(3):
                runner.request()
                await asyncio.sleep(0.05)
            await asyncio.sleep(5)
        return diary.times()

    assert play(scenario()) == [0.2]


def test_what_is_urgent_does_not_wait() -> None:
    async def scenario() -> list[float]:
        diary = Diary()
        runner = Runner("", diary.step(), settle=0.2)
        async with running(runner):
            runner.request()
            runner.request(after=0)
            await asyncio.sleep(5)
        return diary.times()

    assert play(scenario()) == [0.0]


def test_a_minimum_interval_holds_however_often_it_is_requested() -> None:
    async def scenario() -> list[float]:
        diary = Diary()
        runner = Runner("", diary.step(), at_most_every=4.0)
        async with running(runner):
            for _ in range(90):
                runner.request()
                await asyncio.sleep(0.1)
        return diary.times()

    assert play(scenario()) == [0.0, 4.0, 8.0]


def test_a_maximum_interval_needs_no_request() -> None:
    async def scenario() -> list[float]:
        diary = Diary()
        runner = Runner("", diary.step(), at_most_every=4.0)
        async with running(runner):
            runner.repeat(10.0)
            await asyncio.sleep(15)
            runner.request()
            await asyncio.sleep(15.5)
            runner.repeat(None)
            await asyncio.sleep(60)
        return diary.times()

    # What was requested counts as a look, too; the last one had been due before the end.
    assert play(scenario()) == [10.0, 15.0, 25.0, 35.0]


class Unlucky:
    """Fails a number of times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error = times, error
        self.at: list[float] = []

    async def __call__(self) -> None:
        self.at.append(asyncio.get_running_loop().time())
        self.left -= 1
        if self.left >= 0:
            raise self.error


@pytest.mark.parametrize("error", [OSError("x"), CsumfixError("x", Exit.KERNEL)])
def test_what_fails_is_tried_again_until_it_works(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    step = Unlucky(2, error)

    async def scenario() -> int:
        runner = Runner("opening the door", step)
        async with running(runner):
            runner.request()
            await asyncio.sleep(60)
        return runner.failures

    assert play(scenario()) == 2
    assert [b - a for a, b in zip(step.at, step.at[1:], strict=False)] == [RETRY, RETRY]
    assert caplog.messages == ["opening the door failed, retrying in 5 s: x"] * 2


def test_events_do_not_multiply_retries() -> None:
    step = Unlucky(10**9, OSError("x"))

    async def scenario() -> None:
        runner = Runner("", step, settle=0.2)
        async with running(runner):
            for _ in range(6):
                runner.request()
                await asyncio.sleep(0.5)
            step.at.clear()
            await asyncio.sleep(RETRY * 10)

    play(scenario())
    assert len(step.at) == 10


def test_an_error_that_nobody_foresaw_is_not_hidden() -> None:
    async def scenario() -> None:
        runner = Runner("", Unlucky(1, KeyError("bug")))
        scheduler = Scheduler([runner], asyncio.get_running_loop().time)
        runner.request()
        await scheduler.run()

    with pytest.raises(KeyError):
        play(scenario())


def test_the_order_of_work_is_that_of_the_runners() -> None:
    async def scenario() -> list[str]:
        diary = Diary()
        runners = [Runner(name, diary.step(name), settle=0.2) for name in "abcdefg"]
        async with running(*runners):
            for runner in reversed(runners):
                runner.request()
            await asyncio.sleep(1)
        return diary.names()

    assert play(scenario()) == list("abcdefg")


def test_nothing_runs_while_somebody_holds_the_lock() -> None:
    async def scenario() -> list[tuple[float, str]]:
        diary = Diary()
        runner = Runner("", diary.step("work"))
        async with running(runner) as scheduler:
            async with scheduler.lock:
                runner.request()
                await asyncio.sleep(30)
                diary.entries.append((30.0, "hand-over"))
            await asyncio.sleep(1)
        return diary.entries

    assert play(scenario()) == [(30.0, "hand-over"), (30.0, "work")]


def test_work_never_overlaps() -> None:
    async def scenario() -> list[tuple[float, str]]:
        diary = Diary()
        slow, quick = Runner("", diary.step("slow", takes=3)), Runner("", diary.step("quick"))
        async with running(slow, quick):
            slow.request()
            await asyncio.sleep(0.1)
            quick.request()
            await asyncio.sleep(10)
        return diary.entries

    assert play(scenario()) == [(0.0, "slow"), (3.0, "quick")]


def test_what_is_due_when_it_stops_stays_undone() -> None:
    async def scenario() -> list[str]:
        diary = Diary()
        first, second = Runner("", diary.step("first", takes=1)), Runner("", diary.step("second"))
        async with running(first, second) as scheduler:
            first.request()
            second.request()
            await asyncio.sleep(0.5)
            scheduler.stop()
            await asyncio.sleep(5)
        return diary.names()

    assert play(scenario()) == ["first"]


def storm(cost: float, share: float | None, seconds: float) -> int:
    """Request work all the time; return how often it was done."""

    async def scenario() -> int:
        diary = Diary()
        runner = Runner("", diary.step(cost=cost), settle=0.2, share=share)
        async with running(runner, diary=diary):
            for _ in range(int(seconds / 0.05)):
                runner.request()
                await asyncio.sleep(0.05)
        return len(diary.entries)

    return play(scenario())


def test_a_storm_of_events_costs_a_bounded_share_of_a_cpu() -> None:
    """After the credit, a second of work needs ten seconds at a share of 0.1."""
    times = storm(cost=0.5, share=0.1, seconds=600)
    assert (CREDIT + 600 * 0.1) / 0.5 - 2 <= times <= (CREDIT + 600 * 0.1) / 0.5 + 2


def test_a_few_events_do_not_wait_for_their_share() -> None:
    assert storm(cost=0.05, share=0.1, seconds=4) == pytest.approx(4 / 0.25, abs=2)


def test_without_a_share_nothing_waits() -> None:
    assert storm(cost=0.5, share=None, seconds=10) == pytest.approx(10 / 0.25, abs=2)
