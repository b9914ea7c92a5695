"""What ``csumfix restart`` tells the operator."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.service import control, handover
from csumfix.service.snapshot import Snapshot

STRANGER = "process 7 of user 1000 has the name of csumfix's socket, and is not believed"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "RESTART", 0.2)
    monkeypatch.setattr(handover, "POLL", 0.01)


OLD = Snapshot(pid=1, successor=2, version="1")


def answers(monkeypatch: pytest.MonkeyPatch, *script: object) -> None:
    """Have the service start process 2, then give these states in turn, the last one for ever."""

    def play() -> Iterator[object]:
        yield from script
        while True:
            yield script[-1]

    each = play()

    def status() -> object:
        answer = next(each)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(control, "restart", lambda: {"successor": 2})
    monkeypatch.setattr(control, "status", status)


def test_success_may_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    stolen = CsumfixError(STRANGER, Exit.IN_USE)
    answers(monkeypatch, OLD, None, stolen, Snapshot(pid=2, version="2"))
    assert handover.restart() == "process 2, version 2, has taken over"


def test_a_stolen_name_is_reported_with_its_thief(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, CsumfixError(STRANGER, Exit.IN_USE))
    with pytest.raises(CsumfixError) as caught:
        handover.restart()
    assert caught.value.code is Exit.BROKEN
    assert f"cannot ask whether process 2 has taken over: {STRANGER}" in str(caught.value)


def test_a_successor_that_gave_up_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, replace(OLD, successor=None))
    with pytest.raises(
        CsumfixError, match="process 2 did not take over: the old process continues"
    ):
        handover.restart()
