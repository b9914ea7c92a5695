"""A limit to how often something happens."""

from csumfix.service.pace import Pace


def test_a_burst_passes_then_the_rate_holds() -> None:
    now = 0.0
    pace = Pace(10, 5, lambda: now)
    assert [pace.take() for _ in range(6)] == [0, 0, 0, 0, 0, 0.5]
    passed = 0
    for step in range(1000):
        now = step / 100
        passed += pace.take() == 0
    assert 95 <= passed <= 105


def test_idleness_saves_up_no_more_than_a_burst() -> None:
    now = 0.0
    pace = Pace(10, 5, lambda: now)
    now = 1000.0
    assert sum(pace.take() == 0 for _ in range(100)) == 5
