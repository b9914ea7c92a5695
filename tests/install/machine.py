"""A machine for the tests: a real systemd, as process 1, on a node of the lab.

Theory of operation
-------------------
systemd wants to be process 1, to write to a cgroup hierarchy, and to own /run, /dev and /etc. It
gets a pid, mount and cgroup namespace of its own on top of the node's network namespace, and
copies of those directories that forget what is written to them: tmpfs, or overlays with a tmpfs
on top. The host's own root file system is read-only in it. It reads no units of the host, only an
empty stand-in for each target that matters.

Everything in it dies with the lab. What would stay is its branch of the cgroup tree; a *sweeper*
removes that. It is a process outside, which waits until we end, in whatever way, because it reads
from a pipe of ours.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from csumfix_lab import Lab
from csumfix_lab.process import Process, only_child
from tests.lab.harness import until

PATIENCE = 20.0
LOG = "/run/csumfix.log"

_SETUP = """
umount --recursive /run
mount -t tmpfs -o mode=755 tmpfs /run
for directory in /etc /usr/local /root /tmp /var/tmp; do
    mkdir -p /run/overlay$directory/upper /run/overlay$directory/work
    chmod --reference=$directory /run/overlay$directory/upper
    layers=upperdir=/run/overlay$directory/upper,workdir=/run/overlay$directory/work
    mount -t overlay overlay -o lowerdir=$directory,$layers $directory
done
mount -o remount,bind,ro /
mkdir /run/dev
mount -t tmpfs -o mode=755 tmpfs /run/dev
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /run/dev
mkdir /run/dev/shm /run/dev/pts
mount -t tmpfs tmpfs /run/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
mount --move /run/dev /dev
mkdir /run/cgroup
mount -t cgroup2 cgroup2 /run/cgroup
umount --recursive /sys/fs/cgroup
mount --move /run/cgroup /sys/fs/cgroup
mkdir /run/units
for target in default sysinit basic shutdown multi-user network-pre; do
    printf '[Unit]\\nDescription=%s\\n' $target >/run/units/$target.target
done
exec /lib/systemd/systemd --system --log-target=console --show-status=no
"""

_SWEEP = """
cat >/dev/null
for attempt in $(seq 100); do
    find "$0" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -e "$0" ] || exit 0
    sleep 0.1
done
"""

_LOGGING = "/run/units/csumfix.service.d/logging.conf"
_UNITS = "/run/units:/etc/systemd/system:/usr/local/lib/systemd/system"


def _cgroup2() -> Path:
    """Return our own directory in the cgroup v2 hierarchy."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)
    assert root, "no cgroup2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup"
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next(line[3:] for line in lines if line.startswith("0::"))
    return root / own.lstrip("/")


class Machine:
    """A booted systemd on the lab's sender; use it in a with block."""

    def __init__(self, lab: Lab) -> None:
        assert os.geteuid() == 0, "a systemd of our own needs root: run these tests as root"
        self._lab = lab
        self._cgroup = _cgroup2() / f"csumfix-test-{os.getpid()}"

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        self._sweeper = subprocess.Popen(
            ["sh", "-c", _SWEEP, self._cgroup], stdin=subprocess.PIPE, start_new_session=True
        )
        self._holder = self._boot()
        try:
            init = until(self._init, PATIENCE, lambda: "process 1 of the machine did not start")
            self._enter = ["nsenter", f"--target={init}", "--mount", "--pid", "--cgroup"]
            until(self._is_running, PATIENCE, lambda: "systemd did not boot")
            self.write(LOG, "")
            self.write(_LOGGING, f"[Service]\nStandardError=append:{LOG}\n")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _boot(self) -> Process:
        join = f'echo 0 >{self._cgroup}/cgroup.procs; exec "$@"'
        unshare = [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--mount",
            "--cgroup",
        ]
        return self._lab.sender.popen(
            ["sh", "-euc", join, "sh", *unshare, "sh", "-euc", _SETUP],
            env={"container": "csumfix-test", "SYSTEMD_UNIT_PATH": _UNITS},
            stdin=subprocess.DEVNULL,
        )

    def _close(self) -> None:
        self._holder.kill()
        self._holder.wait(PATIENCE)
        assert self._sweeper.stdin
        self._sweeper.stdin.close()
        self._sweeper.wait(PATIENCE)
        assert not self._cgroup.exists(), f"{self._cgroup} could not be removed"

    def _init(self) -> int | None:
        holder = self._holder.command_pid()
        return only_child(holder) if holder else None

    def _is_running(self) -> bool:
        state = self.run(["systemctl", "is-system-running"], check=False)
        return state.stdout.strip() == "running"

    def run(
        self, argv: Sequence[str], *, check: bool = True, online: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine, as root and outside any service.

        It is on the node's network or, if `online`, on the host's.
        """
        network = [] if online else ["--net"]
        result = subprocess.run(
            [*self._enter, *network, *argv],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or result.returncode == 0, result
        return result

    def write(self, path: str, text: str) -> None:
        """Write a file, the directories above it included."""
        self.run(
            ["sh", "-euc", 'mkdir -p "${0%/*}"; rm -f "$0"; printf %s "$1" >"$0"', path, text]
        )

    def show(self, name: str) -> str:
        """Return a property of the service, as ``systemctl show`` knows it."""
        shown = self.run(["systemctl", "show", "--property", name, "--value", "csumfix"])
        return shown.stdout.strip()

    def wait_for(self, name: str, value: str, timeout: float = PATIENCE) -> None:
        """Wait until a property of the service has this value."""
        until(
            lambda: self.show(name) == value,
            timeout,
            lambda: f"{name} is {self.show(name)}, not {value}: {self.log()}",
        )

    def log(self) -> str:
        """Return what the service has said; there is no journal here."""
        return self.run(["cat", LOG]).stdout
