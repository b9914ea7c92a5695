"""What csumfix says and does where the kernel lacks modules, and that it loads what there is.

A module that has been loaded cannot be missing any more, so the order matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab
from tests.lab.harness import Service, assert_no_rules, rules_text

BLOCKED = Path("/etc/modprobe.d/blocked.conf")
READY = 90.0  # seconds


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("none") as lab:
        yield lab


@contextmanager
def missing(*modules: str) -> Iterator[None]:
    """Have the kernel's requests for these modules fail."""
    for module in modules:
        assert module not in loaded(), f"{module} is there already"
    BLOCKED.write_text("".join(f"install {module} /bin/false\n" for module in modules))
    try:
        yield
    finally:
        BLOCKED.unlink()


def loaded() -> set[str]:
    return {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}


def ended(shim: Service) -> tuple[int, str]:
    """Return the exit code and the last line of a service that does not get ready."""
    return shim.process.wait(READY), shim.lines()[-1]


def stop(shim: Service) -> None:
    shim.process.terminate()
    assert shim.process.wait(READY) == 0


def test_without_nft_compat_it_refuses_and_says_what_helps(lab: Lab) -> None:
    with missing("nft_compat"):
        code, line = ended(Service(lab.sender))
    print(code, line)
    assert code == Exit.KERNEL
    assert "modprobe" in line


def test_without_the_target_nfqueue_the_kernel_lane_is_used(lab: Lab) -> None:
    with missing("xt_NFQUEUE"):
        shim = Service(lab.sender)
        shim.wait_for("ready", READY)
        assert "kernel lane" in shim.lines()[-1]
        assert "CHECKSUM" in rules_text(lab.sender)
        print(shim.lines())
        stop(shim)
        assert_no_rules(lab.sender)


def test_without_the_target_nfqueue_the_queue_lane_is_refused(lab: Lab) -> None:
    with missing("xt_NFQUEUE"):
        code, line = ended(Service(lab.sender, "--lane=queue"))
    print(code, line)
    assert code == Exit.KERNEL
    assert "modprobe" in line
    assert "xt_NFQUEUE" in line
    assert_no_rules(lab.sender)


def test_without_the_target_checksum_all_tunnels_take_the_queue_lane(lab: Lab) -> None:
    Path("/proc/modules")
    unload(lab, "xt_CHECKSUM")
    with missing("xt_CHECKSUM"):
        shim = Service(lab.sender)
        shim.wait_for("ready", READY)
        print(shim.lines())
        assert "queue lane" in shim.lines()[-1]
        shim.wait_for("warning: the kernel lane cannot be used here")
        stop(shim)
        assert_no_rules(lab.sender)


def unload(lab: Lab, module: str) -> None:
    lab.sender.run(["rmmod", module])


def test_it_has_the_kernel_load_what_it_needs(lab: Lab) -> None:
    assert "xt_CHECKSUM" not in loaded()
    shim = Service(lab.sender)
    shim.wait_for("ready", READY)
    assert "kernel lane" in shim.lines()[-1]
    stop(shim)
    assert {"xt_CHECKSUM", "nfnetlink_queue"} <= loaded()
