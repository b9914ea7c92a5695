"""Two nodes of the lab as a Docker Swarm: Debian's own daemons, and one container on each node.

The daemons are unpacked, not installed; see `make test-docker`. The image is one static busybox.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from csumfix_lab.node import Node
from csumfix_lab.sandbox import search_path
from csumfix_lab.spec import RECEIVER, SENDER
from tests.lab.harness import until

BUILD = Path(__file__).parents[2] / "build"
PROGRAMS = BUILD / "docker/usr"
PATH = os.pathsep.join([str(PROGRAMS / "bin"), str(PROGRAMS / "sbin"), search_path()])
BUSYBOX = BUILD / "busybox-static/bin/busybox"

OVERLAY = "pods"
IMAGE = "busybox"
CONTAINER = "pod"
PORT = 4789  # Docker's default for VXLAN
MANAGER_PORT = 2377

CGROUPS = Path("/sys/fs/cgroup")
PARENT = f"csumfix-test-{os.getpid()}"
"""The control group of all containers, for Docker leaves its own behind."""

STARTS_WITHIN = 30.0  # seconds
PATIENCE = 60.0  # seconds for one command of the client

# Both daemons keep what belongs to a node alone in /run. "$@" is the daemon.
WITH_ITS_OWN_RUN = 'mount --make-rprivate /; mount -t tmpfs tmpfs /run; exec "$@"'


class Daemon:
    """The Docker daemon of a node."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node = node
        self._log = folder / f"{node.name}.log"
        self._host = f"--host=unix://{folder / node.name}.sock"
        with self._log.open("w") as log:
            node.popen(
                [
                    *("unshare", "--mount", "sh", "-euc", WITH_ITS_OWN_RUN, "sh"),
                    *("env", f"PATH={PATH}", "dockerd", self._host),
                    *(f"--data-root={folder / node.name}", "--storage-driver=vfs"),
                    *("--exec-opt=native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{PARENT}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: not self._client("info").returncode or None, STARTS_WITHIN, self.said)

    def said(self) -> str:
        """Return the end of the daemon's log."""
        return self._log.read_text()[-4000:]

    def _client(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROGRAMS / "bin/docker"), self._host, *arguments]
        return self._node.run(command, check=False, timeout=PATIENCE)

    def docker(self, *arguments: str) -> str:
        """Run a command of Docker's client; return what it prints."""
        result = self._client(*arguments)
        assert result.returncode == 0, (arguments, result.stderr, self.said())
        return result.stdout.strip()

    def run_container(self) -> None:
        """Run the container of this node, a web server of its own files."""
        self.docker(
            *("run", "--detach", f"--name={CONTAINER}", f"--network={OVERLAY}", IMAGE),
            *("/bin/busybox", "httpd", "-f", "-h", "/bin"),
        )

    def address(self) -> str:
        """Return the container's address in the overlay network."""
        template = f"{{{{.NetworkSettings.Networks.{OVERLAY}.IPAddress}}}}"
        return self.docker("inspect", f"--format={template}", CONTAINER)

    def networks(self) -> list[str]:
        """Return the names of Docker's networks."""
        return self.docker("network", "ls", "--format={{.Name}}").split()

    def inside(self) -> list[str]:
        """Return what runs a command of this machine in the container's network namespace."""
        pid = self.docker("inspect", "--format={{.State.Pid}}", CONTAINER)
        return ["nsenter", f"--net=/proc/{pid}/ns/net"]


def make_swarm(sender: Node, receiver: Node, folder: Path) -> tuple[Daemon, Daemon]:
    """Make a Swarm of two nodes that have the image."""
    image = folder / "image.tar"
    with tarfile.open(image, "w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
    manager, worker = Daemon(sender, folder), Daemon(receiver, folder)
    here, there = SENDER.ip(False), RECEIVER.ip(False)
    manager.docker("swarm", "init", f"--advertise-addr={here}")
    token = manager.docker("swarm", "join-token", "--quiet", "worker")
    join = ("swarm", "join", f"--token={token}", f"--advertise-addr={there}")
    worker.docker(*join, f"{here}:{MANAGER_PORT}")
    for daemon in (manager, worker):
        daemon.docker("import", str(image), IMAGE)
    return manager, worker


def add_overlay(manager: Daemon, worker: Daemon) -> None:
    """Make an overlay network with a container on each node."""
    manager.docker("network", "create", "--driver=overlay", "--attachable", OVERLAY)
    for daemon in (manager, worker):
        daemon.run_container()


def remove_overlay(manager: Daemon, worker: Daemon) -> None:
    """Remove what add_overlay() has made; Swarm's own network, ingress, stays."""
    for daemon in (worker, manager):
        daemon.docker("rm", "--force", CONTAINER)
    manager.docker("network", "rm", OVERLAY)
    until(
        lambda: OVERLAY not in manager.networks() + worker.networks() or None,
        PATIENCE,
        manager.said,
    )


@contextlib.contextmanager
def control_groups() -> Iterator[None]:
    """Remove the control groups of the containers, which must have ended by then."""
    try:
        yield
    finally:
        for top in (*CGROUPS.glob(PARENT), *CGROUPS.glob(f"*/{PARENT}")):
            for group, _, _ in os.walk(top, topdown=False):
                Path(group).rmdir()
