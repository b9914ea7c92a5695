"""What the kernel says of its queues, and what is said to a user whose kernel has none."""

import errno
from pathlib import Path
from typing import Any

import pytest

from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.host import queues

SHOWN = """\
    0  16251     0 2 65531     0     0    30391  1
    7  99999     3 1    64     5     6        8  1
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "nfnetlink_queue"
    monkeypatch.setattr(queues, "PROC_QUEUES", path)
    return path


def test_bound_queues(proc: Path) -> None:
    proc.write_text(SHOWN)
    assert queues.kernel_queues() == {
        0: queues.KernelQueue(0, 16251, 0, 2, 65531, 0, 0, 30391),
        7: queues.KernelQueue(7, 99999, 3, 1, 64, 5, 6, 8),
    }


def test_a_kernel_without_nfqueue(proc: Path) -> None:
    with pytest.raises(CsumfixError, match="CONFIG_NETFILTER_NETLINK_QUEUE") as caught:
        queues.kernel_queues()
    assert caught.value.code is Exit.KERNEL
    # The module may be loaded on demand, so this alone is no reason to refuse.
    queues.require_free([0])


def test_a_free_and_a_taken_queue(proc: Path) -> None:
    proc.write_text(SHOWN)
    queues.require_free([1, 2])
    with pytest.raises(CsumfixError, match=r"queue 7 is already bound .* port 99999") as caught:
        queues.require_free([6, 7])
    assert caught.value.code is Exit.IN_USE


@pytest.mark.parametrize(
    ("refusal", "told", "code"),
    [
        (errno.EPERM, "Operation not permitted: CAP_NET_ADMIN is missing", Exit.PERMISSION),
        (errno.EINVAL, "Invalid argument: NFQUEUE may be missing", Exit.KERNEL),
        (errno.EMFILE, "Too many open files: see what dmesg says", Exit.KERNEL),
        (0, "Failed to create queue 1.: see what dmesg says", Exit.KERNEL),
    ],
)
def test_a_failed_bind_reports_what_the_kernel_says(
    proc: Path, monkeypatch: pytest.MonkeyPatch, refusal: int, told: str, code: Exit
) -> None:
    class Failing:
        def bind(self, number: int, *_: Any, **__: Any) -> None:
            raise OSError(f"Failed to create queue {number}.")  # as NetfilterQueue does

    proc.write_text(SHOWN)
    monkeypatch.setattr(queues, "NetfilterQueue", Failing)
    monkeypatch.setattr(queues, "_ask_to_bind", lambda _: refusal)
    with pytest.raises(CsumfixError, match=f"^cannot bind queue 1: {told}") as caught:
        queues.Queue(1, Policy())
    assert caught.value.code is code
    with pytest.raises(CsumfixError, match="queue 7 is already bound"):
        queues.Queue(7, Policy())
