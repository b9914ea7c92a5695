"""``csumfix doctor --kernel``: which of the bugs this kernel has, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from csumfix.errors import Exit

CSUMFIX = [sys.executable, "-m", "csumfix", "doctor", "--kernel"]
ROOT = Path(__file__).resolve().parents[2]
IPVS = Path("/proc/net/ip_vs")


AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# The virtual environment may be out of an ordinary user's reach, and the installed script with it.
SYSTEM_PYTHON = "/usr/bin/python3"
RUN = """
import sys
from pathlib import Path
from csumfix.host import rules
rules.SCRIPT = Path(sys.argv[1])
from csumfix_lab import doctor
sys.exit(doctor.run(as_json=True)[0])
"""


def test_it_tells_the_bugs_of_this_kernel_and_their_cures_to_an_ordinary_user() -> None:
    result = subprocess.run(
        [*AS_NOBODY, SYSTEM_PYTHON, "-B", "-c", RUN, str(ROOT / "iptables/csumfix-rules")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{sysconfig.get_path('purelib')}"},
    )
    assert result.returncode == Exit.NEGATIVE, result.stderr
    document = json.loads(result.stdout)
    assert document["kernel"] == os.uname().release
    found = {
        (bug["cause"], bug["outer_checksum"], bug["underlay"]): (bug["state"], bug["cure"])
        for bug in document["bugs"]
    }
    both = ("IPv4", "IPv6")
    for underlay in both:
        for cause in ("kube-proxy", "cni", "snat", "dnat"):
            assert found.pop((cause, True, underlay)) == ("live", "kernel lane")
        assert found.pop(("stateless", True, underlay)) == ("live", "queue lane")
    for cause in ("snat", "dnat"):
        assert found.pop((cause, False, "IPv4")) == ("fixed", None)
    assert {cause for cause, _, _ in found} == {"ipvs"}
    if not IPVS.exists():
        assert set(found.values()) == {("not testable", None)}


def descendants(pid: int) -> set[int]:
    """Return the processes below one, itself left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except OSError:  # it has just ended
                continue
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill"])
def test_nothing_is_left_after_an_interruption(whole_group: bool) -> None:
    """Ctrl-C reaches all processes of the terminal; kill -INT only one."""
    process = subprocess.Popen(
        CSUMFIX, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 20
    # Two labs are being built, with a process 1 and something to do in it each.
    while len(below := descendants(process.pid)) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == Exit.NEGATIVE
    assert (out, err.splitlines()[-1]) == ("", "csumfix: interrupted")
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
