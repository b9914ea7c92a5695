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
from tests.lab.harness import Service, assert_no_rules, rules_text, until

BLOCKED = Path("/etc/modprobe.d/blocked.conf")
PATIENCE = 300.0  # seconds


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


@contextmanager
def running(lab: Lab, *options: str) -> Iterator[Service]:
    """Run the service until it is ready; at the end it must stop with 0 and leave no rules."""
    daemon = Service(lab.sender, *options)
    try:
        daemon.wait_for("ready", PATIENCE)
        yield daemon
        daemon.process.terminate()
        assert daemon.process.wait(PATIENCE) == 0, daemon.lines()
        assert_no_rules(lab.sender)
    finally:
        daemon.process.kill()


def refusal(lab: Lab, *options: str) -> str:
    """Run the service, which must end with the exit code for the kernel's faults; return why."""
    daemon = Service(lab.sender, *options)
    try:
        until(
            lambda: daemon.process.poll() is not None or "ready" in str(daemon.lines()),
            PATIENCE,
            lambda: str(daemon.lines()),
        )
        assert daemon.process.poll() == Exit.KERNEL, daemon.lines()
        assert_no_rules(lab.sender)
        return daemon.lines()[-1]
    finally:
        daemon.process.kill()


def test_without_the_target_nfqueue_the_kernel_lane_is_used(lab: Lab) -> None:
    with missing("xt_NFQUEUE"), running(lab) as daemon:
        assert daemon.lines()[-1] == "ready: port 8472 (flannel.1) in the kernel lane"
        assert "CHECKSUM" in rules_text(lab.sender)


@pytest.mark.slow
def test_without_the_target_nfqueue_the_queue_lane_is_refused(lab: Lab) -> None:
    with missing("xt_NFQUEUE"):
        line = refusal(lab, "--lane=queue", "--backend=iptables")
    assert "NFQUEUE" in line
    assert "modprobe -a" in line


@pytest.mark.slow
def test_without_the_target_checksum_all_tunnels_take_the_queue_lane(lab: Lab) -> None:
    lab.sender.run(["rmmod", "xt_CHECKSUM"])
    with missing("xt_CHECKSUM"), running(lab, "--backend=iptables") as daemon:
        daemon.wait_for("warning: the kernel lane cannot be used here")
        assert daemon.lines()[-1] == "ready: port 8472 (flannel.1) in the queue lane"


def test_it_has_the_kernel_load_what_it_needs(lab: Lab) -> None:
    lab.sender.run(["rmmod", "xt_CHECKSUM"], check=False)  # if a test before has loaded it
    assert "xt_CHECKSUM" not in loaded()
    with running(lab) as daemon:
        assert daemon.lines()[-1] == "ready: port 8472 (flannel.1) in the kernel lane"
    assert {"xt_CHECKSUM", "nfnetlink_queue"} <= loaded()
