"""The service when the world around it breaks; losses are counted at the receiver."""

import os
import signal
import time
from pathlib import Path

import pytest

from csumfix.service.runner import RETRY
from csumfix_lab import Lab
from tests.lab.harness import (
    HEALTHY,
    LANES,
    QUEUE,
    SILENT,
    Load,
    Service,
    checksum_errors,
    leave_descriptors,
    link,
    on_other_kernel,
    rules_text,
    send,
    send_while_stopped,
    sender,
    service,
    until,
    wait_for_rules,
)

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


VXLAN = "type vxlan id 9 dstport 4789 local 192.0.2.1"


def packets(daemon: Service) -> int:
    """Return how many packets the service has seen."""
    return sum(daemon.reasons().values())


# Frozen, full, flooded


@HEALTHY
def test_frozen_for_five_seconds_under_load(lab: Lab) -> None:
    with service(lab.sender, QUEUE) as daemon:
        # Many flows: what is queued counts against the send buffer of its socket, and a sender
        # with few sockets would soon be frozen, too.
        load = Load(lab, flows=400, rate=10_000)
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        daemon.process.send_signal(signal.SIGCONT)
        load.assert_whole()
        assert daemon.status()["service"]["queues"]["0"]["overruns"] > 10_000


@HEALTHY
def test_a_full_queue_lets_packets_through(lab: Lab) -> None:
    with service(lab.sender, QUEUE, prefix=on_other_kernel("short-queues")) as daemon:
        assert send_while_stopped(lab, daemon.process, 20_000, 512, 20_000).whole
        (queue,) = daemon.status()["service"]["queues"].values()
        assert queue["packets"] < 100
        assert queue["kernel"]["queue_dropped"] == 0


@LANES
def test_a_flood_of_new_flows_loses_nothing(lab: Lab, lane: str) -> None:
    with service(lab.sender, lane, "--queues=2"):
        errors = checksum_errors(lab)
        assert send(lab, 20_000, 64, flows=900).whole
        assert checksum_errors(lab) == errors


# What the service needs from its host


@HEALTHY
def test_out_of_file_descriptors(lab: Lab) -> None:
    with service(lab.sender) as daemon:
        load = Load(lab)
        pid = str(daemon.status()["service"]["pid"])
        leave_descriptors(daemon, 0)
        link(lab, f"add late0 {VXLAN}")
        daemon.wait_for("error: updating the rules for changed devices failed")
        lab.sender.run(["prlimit", f"--pid={pid}", "--nofile=4096:4096"])
        wait_for_rules(lab.sender, "4789,8472", timeout=10)
        load.assert_whole()


@HEALTHY
def test_the_clock_jumps(lab: Lab, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = [
        "env",
        f"LD_PRELOAD={FAKETIME}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_NO_CACHE=1",
        "DONT_FAKE_MONOTONIC=1",
    ]
    with service(lab.sender, prefix=fake) as daemon:
        load = Load(lab)
        for jump in ("+3650d", "-3650d", "+0"):
            clock.write_text(jump)
            lab.sender.run(["iptables", "-t", "mangle", "-F"])
            wait_for_rules(lab.sender, "8472", timeout=10)
            assert daemon.status()["service"]["pid"]
        load.assert_whole()


def test_a_path_without_the_system_directories(lab: Lab) -> None:
    with service(lab.sender, prefix=["env", "PATH=/usr/bin:/bin"]):
        assert send(lab, 20, 512).whole


def test_a_closed_standard_error(lab: Lab) -> None:
    daemon = Service(lab.sender, prefix=["sh", "-c", 'exec "$@" 2>&-', "sh"])
    try:
        wait_for_rules(lab.sender, "8472", timeout=10)
        assert send(lab, 20, 512).whole
        assert daemon.stop() == 0
    finally:
        daemon.process.kill()
        daemon.log.unlink()


def test_a_read_only_run_directory(lab: Lab) -> None:
    read_only = 'mount -t tmpfs -o ro none /run; exec "$@"'
    with service(lab.sender, prefix=["unshare", "--mount", "sh", "-c", read_only, "sh"]):
        assert send(lab, 100, 512).whole


@HEALTHY
def test_another_holds_the_lock_of_iptables(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("CSUMFIX_IPTABLES", "iptables-legacy")
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    with service(lab.sender) as daemon:
        load = Load(lab)
        holder = lab.sender.popen(["flock", str(lock), "sleep", "5"])
        link(lab, f"add late0 {VXLAN}")
        time.sleep(1)
        assert daemon.status()["service"], "it must go on answering meanwhile"
        assert holder.poll() is None
        assert "late0" in daemon.wait_for("changed")
        assert holder.wait(5) == 0
        load.assert_whole()


@HEALTHY
def test_iptables_restore_fails_midway(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IPv4 rules are loaded, then IPv6 refuses: the old rules must be back, and traffic whole."""
    broken = tmp_path / "broken"
    wrapper = tmp_path / "ip6tables-restore"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--test*) ;; *) [ ! -e {broken} ] || exit 1 ;; esac\n'
        'exec /usr/sbin/ip6tables-restore "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with service(lab.sender) as daemon:
        rules = rules_text(lab.sender)
        load = Load(lab)
        broken.touch()
        link(lab, "add late0 type vxlan external dstport 4789")
        assert "are as before" in daemon.wait_for(
            "error: updating the rules for changed devices failed"
        )
        assert rules_text(lab.sender) == rules
        broken.unlink()
        daemon.wait_for("changed")
        load.assert_whole()


def test_events_do_not_multiply_retries(lab: Lab, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    wrapper = tmp_path / "iptables-restore"
    wrapper.write_text(f'#!/bin/sh\n[ ! -e {broken} ] && exec /usr/sbin/iptables-restore "$@"\n')
    wrapper.chmod(0o755)
    prefix = ["env", f"PATH={tmp_path}:{os.environ['PATH']}"]
    with service(lab.sender, prefix=prefix) as daemon:

        def failures() -> int:
            return int(daemon.status()["service"]["rule_failures"])

        broken.touch()
        for number in range(6):
            link(lab, f"add late{number} type vxlan id {9 + number} dstport 4789 local 192.0.2.1")
            time.sleep(0.5)
        before = failures()
        time.sleep(2 * RETRY)
        assert 1 <= failures() - before <= 3
        broken.unlink()
        daemon.wait_for("changed")


# Devices and verdicts


def test_the_device_is_deleted_at_full_rate(lab: Lab) -> None:
    with service(lab.sender, QUEUE) as daemon:
        link(lab, f"add other0 {VXLAN}")
        wait_for_rules(lab.sender, "4789,8472", timeout=5)
        load = sender(lab, 150_000, 512, flows=8)
        until(lambda: packets(daemon) > 10_000 or None, 30, lambda: str(daemon.status()))
        link(lab, f"del {lab.device}")
        wait_for_rules(lab.sender, "8472", present=False, timeout=5)
        link(lab, "del other0")
        wait_for_rules(lab.sender, "4789", present=False, timeout=5)
        load.kill()
        load.wait(5)
        link(lab, f"add late0 {VXLAN}")
        wait_for_rules(lab.sender, "4789", timeout=5)
        assert daemon.status()["service"]["trouble"] is None


def test_the_kernel_refuses_verdicts(lab: Lab) -> None:
    """A device that goes down takes its packets out of the queue, under our hands."""
    with service(lab.sender, QUEUE, SILENT) as daemon:
        assert send(lab, 100, 512).whole
        daemon.process.send_signal(signal.SIGSTOP)
        assert sender(lab, 200, 512, flows=20).wait(10) == 0
        link(lab, "set eth0 down")
        link(lab, "set eth0 up")
        daemon.process.send_signal(signal.SIGCONT)
        until(lambda: packets(daemon) == 300 or None, 5, lambda: str(daemon.status()))
        queue = daemon.status()["service"]["queues"]["0"]
        assert queue["verdict_errors"] == 200
        assert send(lab, 100, 512).whole
