"""What the work of the service costs, wherever it is done."""

import asyncio
import time

import pytest

from csumfix.threads import cpu_seconds, in_thread

BURNT = 0.02  # seconds


def burn() -> str:
    end = time.thread_time() + BURNT
    while time.thread_time() < end:
        pass
    return "done"


def test_work_in_another_thread_counts() -> None:
    before = cpu_seconds()
    assert asyncio.run(in_thread(burn)) == "done"
    assert cpu_seconds() - before >= BURNT


def test_work_that_fails_counts() -> None:
    def fail() -> None:
        burn()
        raise ValueError

    before = cpu_seconds()
    with pytest.raises(ValueError):
        asyncio.run(in_thread(fail))
    assert cpu_seconds() - before >= BURNT


def test_programs_that_were_run_count() -> None:
    before = cpu_seconds()

    async def run() -> None:
        count = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done"
        process = await asyncio.create_subprocess_exec("sh", "-c", count)
        await process.wait()

    asyncio.run(run())
    assert cpu_seconds() - before > BURNT
