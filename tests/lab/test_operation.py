"""The service in the hands of its operator: reload, restart, upgrade, and others who meddle."""

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab
from tests.lab.harness import (
    CSUMFIX,
    HEALTHY,
    LANES,
    QUEUE,
    SILENT,
    Load,
    Service,
    assert_no_rules,
    foreign_queue,
    leave_descriptors,
    link,
    rules_text,
    send,
    service,
    until,
    wait_for_rules,
)

BUGS = pytest.mark.parametrize("lab", ["none", "snat", "dnat"], indirect=True)
"""Without a bug whatever is lost was lost by us; with one, so is what goes unrepaired."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "csumfix.toml"
    file.write_text('lane = "auto"\n')
    return file


@pytest.fixture
def slow_iptables(tmp_path: Path) -> list[str]:
    """A prefix for a service to which loading rules takes long."""
    program = tmp_path / "iptables-restore"
    program.write_text('#!/bin/sh\nsleep 1\nexec /usr/sbin/iptables-restore "$@"\n')
    program.chmod(0o755)
    return ["env", f"PATH={tmp_path}:{os.environ['PATH']}"]


# Reload


@BUGS
def test_a_reload_under_load_loses_nothing(lab: Lab, file: Path) -> None:
    with service(lab.sender, f"--config={file}") as daemon:
        load = Load(lab)
        settings = ('lane = "queue"', "port = [9999]", "queues = 3", "queue-base = 7", "")
        for count, setting in enumerate(settings, start=1):
            file.write_text(setting)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("reloaded", count=count)
        load.assert_whole()
        state = daemon.status()["service"]
        assert state["reload"]["succeeded"] == 5
        assert list(state["queues"]) == ["0"]


def test_what_reload_changes(lab: Lab, file: Path) -> None:
    with service(lab.sender, f"--config={file}") as daemon:
        file.write_text('lane = "queue"\nport = [9999]\nqueues = 2\nqueue-base = 4\n')
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        text = rules_text(lab.sender)
        assert all(word in text for word in ("8472,9999", "--queue-num 4", "--queue-num 5"))
        assert {q["number"] for q in daemon.status()["queues"]} == {4, 5}
        assert send(lab, 20, 512, flows=20).whole


def test_a_bad_file_changes_nothing_and_is_reported(lab: Lab, file: Path) -> None:
    with service(lab.sender, f"--config={file}") as daemon:
        rules = rules_text(lab.sender)
        mistakes = ("lane = 3", "lane", 'zero = "maybe"', "queues = 2\nqueue-base=65535")
        for count, mistake in enumerate(mistakes, start=1):
            file.write_text(mistake)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.wait_for("error: reload failed", count=count)
        assert daemon.status()["service"]["reload"]["ok"] is False
        assert rules_text(lab.sender) == rules
        file.write_text("")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded")
        assert daemon.status()["service"]["reload"]["ok"] is True


def test_a_reload_that_wants_a_foreign_queue_changes_nothing(lab: Lab, file: Path) -> None:
    with foreign_queue(lab.sender, 2), service(lab.sender, f"--config={file}") as daemon:
        rules = rules_text(lab.sender)
        file.write_text("queues = 3")
        daemon.process.send_signal(signal.SIGHUP)
        assert "queue 2" in daemon.wait_for("error: reload failed")
        assert rules_text(lab.sender) == rules
        assert {q["number"] for q in daemon.status()["queues"]} == {0, 2}
        assert send(lab, 20, 512).whole


# Restart and upgrade


@BUGS
@LANES
def test_taking_over_under_load_loses_nothing(lab: Lab, lane: str) -> None:
    with service(lab.sender, lane) as old:
        load = Load(lab)
        with service(lab.sender, lane, "--take-over") as new:
            assert old.process.wait(10) == 0
            old.wait_for("superseded")
            assert new.status()["service"]["queues"].keys() == {"1"}
            with service(lab.sender, lane, "--take-over") as newer:
                assert new.process.wait(10) == 0
                assert newer.status()["service"]["queues"].keys() == {"0"}
                load.assert_whole()


@HEALTHY
def test_flows_that_move_to_other_queues_stay_in_order(lab: Lab, file: Path) -> None:
    """By a take-over, and by a reload."""
    file.write_text('lane = "queue"')
    with service(lab.sender, QUEUE) as old:
        load = Load(lab)
        with service(lab.sender, f"--config={file}", "--take-over") as new:
            assert old.process.wait(10) == 0
            for count, base in enumerate((4, 8), start=1):
                file.write_text(f'lane = "queue"\nqueue-base = {base}')
                new.process.send_signal(signal.SIGHUP)
                new.wait_for("reloaded", count=count)
            load.assert_whole_and_in_order()


def test_a_predecessor_leaves_even_if_it_cannot_look_at_its_queues(lab: Lab) -> None:
    with service(lab.sender) as old:
        leave_descriptors(old, 1)  # for the successor's connection
        with service(lab.sender, "--take-over") as new:
            assert old.process.wait(10) == 0
            assert send(lab, 20, 512).whole
            assert len(new.lines()) == 2, "the old one must not load its rules again"


def test_taking_over_from_nobody_is_a_start(lab: Lab) -> None:
    with service(lab.sender, "--take-over") as daemon:
        assert daemon.status()["service"]["queues"].keys() == {"0"}


def test_a_superseded_service_may_wait(lab: Lab) -> None:
    with (
        service(lab.sender, QUEUE, "--superseded=wait") as old,
        service(lab.sender, QUEUE, "--take-over") as new,
    ):
        old.wait_for("superseded")
        assert old.process.poll() is None
        assert old.stop() == 0
        wait_for_rules(lab.sender, "--queue-num 1")
        assert new.stop() == 0
        assert_no_rules(lab.sender)


def test_a_successor_that_dies_half_way_changes_nothing(lab: Lab) -> None:
    with service(lab.sender) as daemon:
        rules = rules_text(lab.sender)
        lab.sender.run(
            [
                *(sys.executable, "-c"),
                "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0csumfix');"
                """s.sendall(b'{"request": "take-over"}\\n'); s.recv(999);"""
                "import subprocess as s; s.run('iptables -t mangle -F CSUMFIX-KERNEL'.split())",
            ]
        )
        daemon.wait_for("warning: process")
        until(lambda: rules_text(lab.sender) == rules or None, 2, lambda: rules_text(lab.sender))
        assert send(lab, 20, 512).whole


def test_a_frozen_service_cannot_be_taken_over_from(lab: Lab) -> None:
    with service(lab.sender) as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        refused = lab.sender.run([*CSUMFIX, "run", "--take-over"], check=False, timeout=30)
        daemon.process.send_signal(signal.SIGCONT)
        assert refused.returncode == Exit.IN_USE
        assert "does not answer" in refused.stderr
        assert send(lab, 20, 512).whole


def test_a_start_is_not_taken_over_half_way(lab: Lab, slow_iptables: list[str]) -> None:
    old = Service(lab.sender, prefix=slow_iptables)
    try:
        until(lambda: old.status()["service"], 10, lambda: str(old.lines()))
        with service(lab.sender, "--take-over") as new:
            assert old.process.wait(10) == 0
            assert [line.split()[0] for line in old.lines()] == ["ready:", "superseded"]
            assert len(new.lines()) == 2
            assert send(lab, 20, 512).whole
    finally:
        old.process.kill()
        old.log.unlink()


def test_a_successor_told_to_stop_half_way_leaves_the_old_one_at_work(
    lab: Lab, slow_iptables: list[str]
) -> None:
    with service(lab.sender, QUEUE) as old:
        new = Service(lab.sender, QUEUE, "--take-over", prefix=slow_iptables)
        try:
            until(lambda: len(old.status()["queues"]) == 2 or None, 10, lambda: str(new.lines()))
            assert new.stop() == 0
            assert new.lines() == []
            assert old.wait_for("warning: process").endswith("loading our rules again")
            assert [q["number"] for q in old.status()["queues"]] == [0]
            assert send(lab, 20, 512).whole
        finally:
            new.process.kill()
            new.log.unlink()


def test_a_service_that_hangs_for_long_is_told_as_such(lab: Lab) -> None:
    """Whoever has asked it in vain still stands in its queue, until that is full."""
    fill = (
        "import socket\n"
        "for _ in range(200):\n"
        "    door = socket.socket(socket.AF_UNIX)\n"
        "    door.setblocking(False)\n"
        "    try: door.connect('\\0csumfix')\n"
        "    except BlockingIOError: break\n"
    )
    with service(lab.sender) as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        lab.sender.run([sys.executable, "-c", fill])
        for options in ([], ["--take-over"]):
            refused = lab.sender.run([*CSUMFIX, "run", *options], check=False, timeout=30)
            assert refused.returncode == Exit.IN_USE
            assert len(refused.stderr.splitlines()) == 1
            assert "does not answer" in refused.stderr
        daemon.process.send_signal(signal.SIGCONT)


def test_only_one_restart_at_a_time(lab: Lab) -> None:
    with service(lab.sender) as daemon:
        both = [lab.sender.popen([*CSUMFIX, "restart"], stdout=-1, stderr=-1) for _ in "12"]
        said = "".join("".join(each.communicate(timeout=60)) for each in both)
        assert sorted(each.returncode for each in both) == [Exit.OK, Exit.IN_USE], said
        assert "about to take over already: wait for it" in said
        assert daemon.process.wait(10) == 0
        lab.sender.run(["kill", str(daemon.status()["service"]["pid"])])
        until(lambda: daemon.status()["service"] is None or None, 5, lambda: str(daemon.lines()))


def test_takes_over_without_sbin_in_the_path(lab: Lab) -> None:
    with (
        service(lab.sender) as old,
        service(lab.sender, "--take-over", prefix=["env", "PATH=/usr/bin:/bin"]),
    ):
        assert old.process.wait(10) == 0
        assert send(lab, 20, 512).whole


def test_closed_standard_error_is_no_reason_not_to_work(lab: Lab) -> None:
    mute = ["sh", "-c", 'exec "$@" 2>&-', "sh"]
    process = lab.sender.popen([*mute, *CSUMFIX, "run"])
    wait_for_rules(lab.sender, "CSUMFIX", timeout=10)
    said = lab.sender.run([*CSUMFIX, "restart"]).stdout
    assert process.wait(10) == 0
    lab.sender.run(["kill", said.split()[1].rstrip(",")])
    until(lambda: "CSUMFIX" not in rules_text(lab.sender) or None, 10, str)


def test_restart_under_load_loses_nothing(lab: Lab) -> None:
    with service(lab.sender) as daemon:
        load = Load(lab)
        old = daemon.status()["service"]["pid"]
        said = lab.sender.run([*CSUMFIX, "restart"]).stdout
        assert daemon.process.wait(10) == 0
        new = daemon.status()["service"]["pid"]
        assert new != old
        assert said.startswith(f"process {new}, version ")
        load.assert_whole()
        lab.sender.run(["kill", str(new)])
        until(lambda: daemon.status()["service"] is None or None, 5, lambda: str(daemon.lines()))
        assert_no_rules(lab.sender)


def test_status_says_since_when_it_counts(lab: Lab) -> None:
    """A restart begins with 0; rates over it are wrong for those who are not told."""

    def since() -> str:
        shown = lab.sender.run([*CSUMFIX, "status"]).stdout
        return next(line for line in shown.splitlines() if line.startswith("all counters since "))

    with service(lab.sender) as daemon:
        before = since()
        time.sleep(1)
        lab.sender.run([*CSUMFIX, "restart"])
        assert since() > before
        lab.sender.run(["kill", str(daemon.status()["service"]["pid"])])
        until(lambda: daemon.status()["service"] is None or None, 5, lambda: str(daemon.lines()))


def test_status_tells_the_version_that_runs_not_the_installed_one(
    lab: Lab, tmp_path: Path
) -> None:
    metadata = tmp_path / "csumfix-9.8.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: csumfix\nVersion: 9.8\n")
    prefix = ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={tmp_path}"]
    with service(lab.sender, prefix=prefix) as daemon:
        metadata.unlink()
        assert daemon.status()["service"]["version"] == "9.8"


def test_a_successor_is_not_misled_by_the_directory_it_starts_in(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "csumfix").mkdir()
    (tmp_path / "csumfix" / "__main__.py").write_text("print('somebody else')")
    start = (
        "import os, sys; from csumfix import cli;"
        f"os.chdir({str(tmp_path)!r}); del sys.argv[1:4]; cli.main()"
    )
    with service(lab.sender, prefix=[sys.executable, "-c", start]) as daemon:
        said = lab.sender.run([*CSUMFIX, "restart"]).stdout
        assert "has taken over" in said
        lab.sender.run(["kill", str(daemon.status()["service"]["pid"])])
        until(lambda: daemon.status()["service"] is None or None, 5, lambda: str(daemon.lines()))


def test_a_successor_that_cannot_be_started_is_told_as_such(lab: Lab) -> None:
    with service(lab.sender) as daemon:
        leave_descriptors(daemon, 1)  # for the connection
        failed = lab.sender.run([*CSUMFIX, "restart"], check=False)
        assert failed.returncode == Exit.BROKEN
        assert "starting a successor failed" in failed.stderr
        assert "Too many open files" in daemon.wait_for("error: starting a successor failed")
        leave_descriptors(daemon, 1000)


def test_a_restart_that_fails_leaves_the_old_one_at_work(lab: Lab, file: Path) -> None:
    with service(lab.sender, f"--config={file}") as daemon:
        file.write_text("nonsense")
        failed = lab.sender.run([*CSUMFIX, "restart"], check=False)
        assert failed.returncode == Exit.BROKEN
        daemon.wait_for("error: process")
        assert send(lab, 20, 512).whole


# Others who meddle


@pytest.mark.parametrize(
    ("lane", "damage"),
    [
        ("auto", "-F"),
        ("auto", "-F CSUMFIX-KERNEL"),
        ("auto", "-D OUTPUT 1"),
        ("auto", "-I CSUMFIX-KERNEL -j ACCEPT"),
        ("auto", "-R CSUMFIX-KERNEL 1 -j ACCEPT"),
        ("queue", "-F"),
        ("queue", "-D POSTROUTING 1"),
        ("queue", "-R CSUMFIX-QUEUE 1 -j NFQUEUE --queue-num 9"),
    ],
)
def test_rules_changed_by_others_are_restored(lab: Lab, lane: str, damage: str) -> None:
    with service(lab.sender, f"--lane={lane}") as daemon:
        rules = rules_text(lab.sender)
        lab.sender.run(["iptables", "-t", "mangle", *damage.split()])
        assert rules_text(lab.sender) != rules
        until(
            lambda: rules_text(lab.sender) == rules or None,
            10,
            lambda: rules_text(lab.sender) + str(daemon.lines()),
        )
        daemon.wait_for("warning: another program changed the rules")
        assert daemon.status()["service"]["rules_restored"] == 1
        assert "1 time that another program" in lab.sender.run([*CSUMFIX, "status"]).stdout
        assert send(lab, 20, 512).whole


def test_legacy_rules_are_restored_too(lab: Lab) -> None:
    os.environ["CSUMFIX_IPTABLES"] = "iptables-legacy"
    try:
        with service(lab.sender, SILENT) as daemon:
            lab.sender.run(["iptables-legacy", "-t", "mangle", "-F"])
            daemon.wait_for("warning: another program changed the rules", 10)
            assert "CSUMFIX" in lab.sender.run(["iptables-legacy", "-t", "mangle", "-S"]).stdout
    finally:
        del os.environ["CSUMFIX_IPTABLES"]


def test_a_device_that_moves_away_takes_its_rules_along(lab: Lab) -> None:
    lab.sender.run(["ip", "netns", "add", "elsewhere"])
    with service(lab.sender):
        link(lab, "add moving0 type vxlan id 9 dstport 4789 local 192.0.2.1")
        wait_for_rules(lab.sender, "4789,8472")
        link(lab, "set moving0 netns elsewhere")
        wait_for_rules(lab.sender, "4789,8472", present=False)


def test_an_impatient_ctrl_c_does_not_hit_the_removal_of_the_rules(
    lab: Lab, slow_iptables: list[str]
) -> None:
    daemon = Service(lab.sender, prefix=["setsid", "--wait", *slow_iptables])
    try:
        daemon.wait_for("ready")
        pid = daemon.process.command_pid()
        assert pid
        for _ in range(3):
            os.killpg(pid, signal.SIGINT)  # as a terminal does
            time.sleep(0.3)
        assert daemon.process.wait(10) == 0, daemon.lines()
        assert_no_rules(lab.sender)
    finally:
        daemon.process.kill()
        daemon.log.unlink()


# Service manager and logs


class Manager:
    """A service manager's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            for line in self._socket.recv(4096).decode().splitlines():
                self._lines.put(line)

    def wait_for(self, line: str) -> None:
        while self._lines.get(timeout=5) != line:
            pass


def test_the_service_manager_is_told(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "500000")
    with service(lab.sender) as daemon:
        manager.wait_for("READY=1")
        for _ in range(3):
            manager.wait_for("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGHUP)
        manager.wait_for("RELOADING=1")
        manager.wait_for("READY=1")
        old = daemon.status()["service"]["pid"]
        lab.sender.run([*CSUMFIX, "restart"])
        new = daemon.status()["service"]["pid"]
        assert new != old
        manager.wait_for(f"MAINPID={new}")
        manager.wait_for("READY=1")
        lab.sender.run(["kill", str(new)])
        manager.wait_for("STOPPING=1")


def test_logs_as_json(lab: Lab) -> None:
    daemon = Service(lab.sender, "--log-format=json")
    try:
        until(lambda: daemon.lines() or None, 10, lambda: "no line")
        assert daemon.stop() == 0
        documents = [json.loads(line) for line in daemon.lines()]
        assert [document["event"] for document in documents] == ["ready", "stopping"]
        assert all(document["time"].endswith("Z") for document in documents)
    finally:
        daemon.process.kill()
        daemon.log.unlink()
