"""The service's side door, and who may do what there."""

import signal
import sys

import pytest

from csumfix.errors import Exit
from csumfix.service import control
from csumfix_lab import Lab
from csumfix_lab.process import Process
from tests.lab.harness import CSUMFIX, Service, send, service, until

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

CLIENT = """
import socket, sys
door = socket.socket(socket.AF_UNIX)
door.connect("\\0csumfix")
door.settimeout(5)
door.sendall(sys.argv[1].encode())
print(door.makefile().read())
"""
SQUATTER = """
import socket, time
door = socket.socket(socket.AF_UNIX)
door.bind("\\0csumfix")
door.listen()
print("bound", flush=True)
while True:
    peer, _ = door.accept()
    try:
        peer.sendall(b"nonsense\\n")
    except BrokenPipeError:  # it only wanted to know who we are
        pass
"""


def say(lab: Lab, line: str, *prefix: str) -> str:
    # The system's Python: another user may not enter ours.
    return lab.sender.run([*prefix, "/usr/bin/python3", "-c", CLIENT, line]).stdout


def test_strangers_may_look_but_not_touch(lab: Lab) -> None:
    with service(lab.sender) as daemon:
        assert '"queues"' in say(lab, '{"request": "status"}\n', *NOBODY)
        for request in ("restart", "take-over"):
            assert "permission denied" in say(lab, f'{{"request": "{request}"}}\n', *NOBODY)
        assert daemon.process.poll() is None


@pytest.mark.parametrize(
    "line",
    [
        "\n",
        "nonsense\n",
        "[]\n",
        '{"request": []}\n',
        "{}\n",
        "x" * 100_000 + "\n",
        "[" * 60_000 + "\n",
    ],
)
def test_nonsense_is_survived(lab: Lab, line: str) -> None:
    with service(lab.sender) as daemon:
        say(lab, line)
        assert daemon.status()["service"]
        assert len(daemon.lines()) == 1, "anybody could fill the log"


def test_silent_peers_do_not_lock_others_out(lab: Lab) -> None:
    many = "import socket, time\npeers = [socket.socket(socket.AF_UNIX) for _ in range(200)]\n"
    many += "for peer in peers: peer.connect('\\0csumfix')\n"
    many += "print('connected', flush=True); time.sleep(60)"
    with service(lab.sender) as daemon:
        silent = lab.sender.popen(["/usr/bin/python3", "-c", many], stdout=-1)
        assert silent.stdout
        assert silent.stdout.readline() == "connected\n"
        silent.kill()
        silent.wait(5)
        assert daemon.status()["service"]
        assert send(lab, 20, 512).whole


def test_strangers_do_not_lock_the_operator_out(lab: Lab) -> None:
    stubborn = (
        "import socket, time\npeers = []\n"
        "while True:\n"
        "    peers = [*peers[-40:], socket.socket(socket.AF_UNIX)]\n"
        "    peers[-1].connect('\\0csumfix')\n"
        "    len(peers) != 30 or print('connected', flush=True)\n"
        "    time.sleep(0.01)\n"
    )
    with service(lab.sender) as daemon:
        strangers = lab.sender.popen([*NOBODY, "/usr/bin/python3", "-c", stubborn], stdout=-1)
        assert strangers.stdout
        assert strangers.stdout.readline() == "connected\n"
        assert daemon.status()["service"]
        strangers.kill()
        strangers.wait(5)


@pytest.mark.parametrize("command", ["top", "restart"])
def test_who_is_frozen_is_not_said_to_be_gone(lab: Lab, command: str) -> None:
    with service(lab.sender) as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        refused = lab.sender.run([*CSUMFIX, command], check=False)
        status = lab.sender.run([*CSUMFIX, "status"], check=False)
        daemon.process.send_signal(signal.SIGCONT)
        assert refused.returncode == Exit.BROKEN
        assert "does not answer" in refused.stderr
        assert status.returncode == Exit.NEGATIVE
        assert "does not answer" in status.stdout
        assert "not running" not in status.stdout


def test_what_may_not_be_seen_is_not_said_to_be_absent(lab: Lab) -> None:
    nobody = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    with service(lab.sender):
        shown = lab.sender.run([*nobody, *CSUMFIX, "status"]).stdout
        assert "not known; see below" in shown
        assert "no permission: CAP_NET_ADMIN is needed, run as root\n" in shown


def test_a_taken_name_is_told_with_its_owner(lab: Lab) -> None:
    squatter = lab.sender.popen([sys.executable, "-c", SQUATTER], stdout=-1)
    assert squatter.stdout
    assert squatter.stdout.readline() == "bound\n"
    for options in ([], ["--take-over"]):
        refused = lab.sender.run([*CSUMFIX, "run", *options], check=False, timeout=20)
        assert refused.returncode == Exit.IN_USE
        assert " of user 0" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    squatter.kill()
    squatter.wait(5)
    assert control.status() is None


FAKE_PREDECESSOR = """
import json, socket, sys, time
door = socket.socket(socket.AF_UNIX)
door.bind("\\0csumfix")
door.listen()
print("bound", flush=True)
peer, _ = door.accept()
peer.recv(999)
peer.sendall(b'{"pid": 1}\\n')
while b"leave" not in peer.recv(999):
    pass
if sys.argv[1] == "hangs up":
    peer.close()
time.sleep(60)
"""


def fake_predecessor(lab: Lab, behaviour: str) -> Process:
    fake = lab.sender.popen([sys.executable, "-c", FAKE_PREDECESSOR, behaviour], stdout=-1)
    assert fake.stdout
    assert fake.stdout.readline() == "bound\n"
    return fake


def test_a_predecessor_that_falls_silent_does_not_hold_up_its_successor(lab: Lab) -> None:
    fake = fake_predecessor(lab, "falls silent")
    with service(lab.sender, "--take-over", ready=20) as daemon:
        assert "does not answer" in daemon.lines()[0]
        assert send(lab, 20, 512).whole
        fake.kill()
        fake.wait(5)
        until(lambda: known_status(daemon), 10, lambda: str(daemon.lines()))


def known_status(daemon: Service) -> bool | None:
    return daemon.status()["service"] is not None or None


def test_a_successor_withdraws_before_a_predecessor_that_has_gone_on(lab: Lab) -> None:
    fake = fake_predecessor(lab, "hangs up")
    refused = lab.sender.run([*CSUMFIX, "run", "--take-over"], check=False, timeout=20)
    assert refused.returncode == Exit.IN_USE
    assert "already runs" in refused.stderr
    fake.kill()
    fake.wait(5)


@pytest.mark.parametrize("command", ["status", "top", "restart"])
def test_a_stranger_behind_the_name_is_told(lab: Lab, command: str) -> None:
    stranger = lab.sender.popen([sys.executable, "-c", SQUATTER], stdout=-1)
    assert stranger.stdout
    assert stranger.stdout.readline() == "bound\n"
    said = lab.sender.run([*CSUMFIX, command], check=False, timeout=20)
    assert "has the name of csumfix's socket" in said.stdout + said.stderr
    assert "Traceback" not in said.stderr
    stranger.kill()
    stranger.wait(5)
