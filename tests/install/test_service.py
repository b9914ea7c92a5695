"""The installed service under a real systemd, in the sandbox of its unit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab
from csumfix_lab.spec import RECEIVER, SENDER
from tests.install.machine import Machine
from tests.install.tree import PYTHON, ROOT
from tests.lab.harness import Load, assert_no_rules, checksum_errors, rules_text, send, until

CONFIG = "/etc/csumfix.toml"
DROP_INS = "/etc/systemd/system/csumfix.service.d"
LEGACY = "/usr/local/share/doc/csumfix/legacy-iptables.conf"
NET_ADMIN_AND_RAW = f"{1 << 12 | 1 << 13:016x}"
FETCH = """
import sys, urllib.request
print(urllib.request.urlopen(f"http://{sys.argv[1]}:9478/metrics", timeout=1).read().decode())
"""
WATCHDOG = 10.0  # seconds, as the unit says

WITH_BUG = pytest.mark.parametrize("lab", ["dnat"], indirect=True)


def systemctl(machine: Machine, command: str, *, check: bool = True) -> int:
    code = machine.run(["systemctl", command, "csumfix"], check=False).returncode
    assert not check or code == 0, f"{machine.show('Result')}: {machine.log()}"
    return code


@contextmanager
def running(machine: Machine, lab: Lab) -> Iterator[None]:
    """Start the service; on leaving it must stop well and leave no rule behind."""
    systemctl(machine, "start")
    yield
    systemctl(machine, "stop")
    ended = machine.show("ActiveState"), machine.show("Result")
    assert ended == ("inactive", "success"), machine.log()
    assert_no_rules(lab.sender)


def wait_for_repair(lab: Lab) -> None:
    """Wait until rules are loaded, then see them work."""
    until(lambda: "CSUMFIX" in rules_text(lab.sender), 10, lambda: rules_text(lab.sender))
    assert send(lab, 50, 512).whole


def service_state(machine: Machine) -> dict[str, Any]:
    shown = machine.run(["csumfix", "status", "--json"]).stdout
    state: dict[str, Any] = json.loads(shown)["service"]
    return state


def status_of(machine: Machine) -> dict[str, str]:
    """Return /proc/PID/status of the service."""
    lines = machine.run(["cat", f"/proc/{machine.show('MainPID')}/status"]).stdout.splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@WITH_BUG
def test_repairs_from_within_the_sandbox(machine: Machine, lab: Lab) -> None:
    errors = checksum_errors(lab)
    with running(machine, lab):
        assert send(lab, 50, 512, flows=20).whole
        status = status_of(machine)
        (lane,) = service_state(machine)["lanes"]
        assert lane["lane"] == "kernel"
        assert sum(lane["departures"].values()) >= 50  # probes leave, too
        machine.write(CONFIG, 'lane = "queue"\n')
        systemctl(machine, "reload")
        until(lambda: "reloaded" in machine.log(), 5, machine.log)
        assert send(lab, 50, 512, flows=20).whole
        queues = service_state(machine)["queues"].values()
        assert sum(queue["packets"] for queue in queues) >= 50
    assert checksum_errors(lab) == errors
    assert "0" not in status["Uid"].split()
    assert {status[f"Cap{name}"] for name in ("Prm", "Eff", "Bnd", "Amb")} == {NET_ADMIN_AND_RAW}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_the_sandbox_hides_and_protects(machine: Machine, lab: Lab) -> None:
    with running(machine, lab):
        inside = ["nsenter", f"--target={machine.show('MainPID')}", "--mount"]
        for path in ("/etc/x", "/usr/local/x", "/proc/sys/net/ipv4/ip_forward", "/sys/x"):
            refused = machine.run([*inside, "touch", path], check=False)
            assert "Read-only file system" in refused.stderr, refused
        assert machine.run([*inside, "find", "/root", "/home", "-mindepth", "1"]).stdout == ""
        assert machine.run([*inside, "find", "/dev", "-type", "b"]).stdout == ""


def test_unit_is_clean(machine: Machine) -> None:
    verify = ["systemd-analyze", "verify", "--recursive-errors=no", "csumfix.service"]
    result = machine.run(verify, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_reload_takes_the_new_file_and_refuses_a_bad_one(machine: Machine, lab: Lab) -> None:
    with running(machine, lab):
        machine.write(CONFIG, "queues = 2\nport = [4790]\n")
        systemctl(machine, "reload")
        until(lambda: "reloaded: port 4790 (no device here)" in machine.log(), 5, machine.log)
        assert "port 4790" in machine.show("StatusText")
        assert service_state(machine)["queues"].keys() == {"0", "1"}
        machine.write(CONFIG, "queues = 0\n")
        assert systemctl(machine, "reload", check=False)
        assert machine.show("ActiveState") == "active"
        assert "port 4790" in machine.show("StatusText")
        assert service_state(machine)["queues"].keys() == {"0", "1"}
        assert send(lab, 50, 512).whole


def test_serves_metrics_to_this_host_only(machine: Machine, lab: Lab) -> None:
    here, elsewhere = SENDER.ip(ipv6=False), RECEIVER.ip(ipv6=False)
    fetch = [sys.executable, "-c", FETCH]
    machine.write(CONFIG, 'metrics = "0.0.0.0:9478"\n')
    with running(machine, lab):
        assert "csumfix_" in lab.sender.run([*fetch, "127.0.0.1"]).stdout
        assert "timed out" in lab.receiver.run([*fetch, here], check=False).stderr
        machine.write(f"{DROP_INS}/metrics.conf", f"[Service]\nIPAddressAllow={elsewhere}\n")
        machine.run(["systemctl", "daemon-reload"])
        systemctl(machine, "restart")
        assert "csumfix_" in lab.receiver.run([*fetch, here]).stdout


def test_does_not_try_again_with_a_bad_file(machine: Machine, lab: Lab) -> None:
    machine.write(CONFIG, "nonsense = 1\n")
    assert systemctl(machine, "start", check=False)
    assert machine.show("ActiveState") == "failed"
    assert machine.show("ExecMainStatus") == str(int(Exit.USAGE))
    assert "nonsense" in machine.log()
    assert_no_rules(lab.sender)


def test_after_kill_9_its_rules_go_and_it_comes_back(machine: Machine, lab: Lab) -> None:
    with running(machine, lab):
        machine.run(["systemctl", "kill", "--signal=KILL", "csumfix"])
        machine.wait_for("SubState", "auto-restart")
        assert_no_rules(lab.sender)
        assert send(lab, 50, 512).whole
        machine.wait_for("SubState", "running")
        wait_for_repair(lab)


def test_the_watchdog_replaces_a_frozen_service(machine: Machine, lab: Lab) -> None:
    with running(machine, lab):
        machine.run(["kill", "-STOP", machine.show("MainPID")])
        machine.wait_for("Result", "watchdog", 2 * WATCHDOG)
        machine.wait_for("SubState", "running")
        assert machine.show("NRestarts") == "1"
        assert "stopping: removing rules" in machine.log()  # woken, it left in good order
        wait_for_repair(lab)


@WITH_BUG
def test_restart_hands_over_to_a_process_that_systemd_looks_after(
    machine: Machine, lab: Lab
) -> None:
    with running(machine, lab):
        first = machine.show("MainPID")
        load = Load(lab)
        machine.run(["csumfix", "restart"])
        load.assert_whole()
        second = machine.show("MainPID")
        assert second != first
        assert machine.show("NRestarts") == "0"
        machine.run(["kill", "-KILL", second])
        machine.wait_for("NRestarts", "1")
        machine.wait_for("SubState", "running")
        machine.run(["csumfix", "restart"])


def test_the_control_socket_is_the_services_own_and_outlives_a_restart(
    machine: Machine, lab: Lab
) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with running(machine, lab):
        for _ in range(2):
            (path,) = machine.run(["find", "/run/csumfix", "-type", "s"]).stdout.split()
            seen = machine.run(["stat", "--format=%u %a", "/run/csumfix", path]).stdout
            user = status_of(machine)["Uid"].split()[0]
            assert user != "0"
            assert seen.splitlines() == [f"{user} 755", f"{user} 600"]
            shown = machine.run([*nobody, "csumfix", "status", "--json"], check=False).stdout
            assert json.loads(shown)["service"]["pid"] == int(machine.show("MainPID"))
            machine.run(["csumfix", "restart"])
    assert "csumfix" not in machine.run(["ls", "/run"]).stdout.split()


def test_legacy_iptables_needs_its_drop_in(machine: Machine, lab: Lab) -> None:
    for family in ("iptables", "ip6tables"):
        for what in ("", "-save", "-restore"):
            target = f"/usr/sbin/{family}-legacy{what}"
            machine.run(["ln", "-sf", target, f"/etc/alternatives/{family}{what}"])
    assert systemctl(machine, "start", check=False)
    assert "legacy-iptables.conf" in machine.log()
    systemctl(machine, "stop")
    machine.run(["install", "-D", "-m", "644", LEGACY, f"{DROP_INS}/legacy-iptables.conf"])
    machine.run(["systemctl", "daemon-reload"])
    with running(machine, lab):
        jumps = ["iptables-legacy", "-t", "mangle", "-S", "OUTPUT"]
        assert "CSUMFIX" in lab.sender.run(jumps).stdout
        assert send(lab, 50, 512).whole
        assert status_of(machine)["CapEff"] == NET_ADMIN_AND_RAW
    assert "CSUMFIX" not in lab.sender.run(jumps).stdout


def everything(machine: Machine) -> list[str]:
    found = machine.run(["find", "/etc", "/usr/local"]).stdout
    return sorted(found.splitlines())


def test_life_on_a_real_machine(lab: Lab) -> None:
    """Install, enable, change, install a new version over it, uninstall."""

    def make(target: str) -> str:
        return machine.run(["make", "-C", str(ROOT), target, PYTHON], online=True).stdout

    with Machine(lab) as machine:
        machine.write("/etc/resolv.conf", Path("/etc/resolv.conf").read_text())
        before = everything(machine)
        assert "systemctl enable --now csumfix" in make("install")
        assert systemctl(machine, "is-active", check=False)
        machine.run(["systemctl", "enable", "--now", "csumfix"])
        machine.write(CONFIG, "queues = 2\n")

        old = machine.show("MainPID")
        assert "csumfix restart" in make("install")
        assert machine.show("MainPID") == old
        load = Load(lab)
        machine.run(["csumfix", "restart"])
        load.assert_whole()
        assert "queues = 2" in machine.run(["cat", CONFIG]).stdout

        assert CONFIG in make("uninstall")
        assert_no_rules(lab.sender)
        machine.run(["rm", CONFIG])
        machine.run(["mkdir", "/run/csumfix"])  # as by a service that was started by hand
        make("uninstall")
        assert machine.run(["ls", "-d", "/run/csumfix"], check=False).returncode
        assert everything(machine) == before
        assert machine.run(["systemctl", "list-units", "--all", "csumfix*", "-q"]).stdout == ""
