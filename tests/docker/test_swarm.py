"""Docker Swarm's overlay network, whose vxlan device Docker hides in a namespace of its own."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab
from csumfix_lab.causes import BY_NAME
from csumfix_lab.rules import LOADERS
from tests.docker.swarm import (
    BUSYBOX,
    CONTAINER,
    PORT,
    Daemon,
    add_overlay,
    control_groups,
    make_swarm,
    remove_overlay,
)
from tests.lab import harness
from tests.lab.harness import CSUMFIX, LANES, PEER, Delivery, checksum_errors, service

COUNT = 30
NAT = BY_NAME["snat"]


@dataclass(frozen=True)
class Swarm:
    """A Swarm whose first node rewrites outer headers by NAT."""

    lab: Lab
    sender: Daemon
    receiver: Daemon

    def send(self, size: int) -> Delivery:
        """Send datagrams from container to container."""
        sink = harness.Sink(self.lab, COUNT, at="0.0.0.0", prefix=self.receiver.inside())
        command = [sys.executable, PEER, "send", self.receiver.address(), str(harness.PORT)]
        command += [f"--count={COUNT}", f"--size={size}", "--flows=5"]
        self.lab.sender.run([*self.sender.inside(), *command])
        return sink.delivery()

    def download(self) -> str:
        """Download a file over TCP from container to container; return its SHA-256."""
        pipe = f"/bin/busybox wget -q -O- http://{self.receiver.address()}/busybox"
        shown = self.sender.docker(
            *("exec", CONTAINER, "/bin/busybox", "sh", "-c", f"{pipe} | /bin/busybox sha256sum")
        )
        return shown.split()[0]

    def assert_all_arrives(self) -> None:
        errors = checksum_errors(self.lab)
        for size in (64, 1400, 8000):
            assert self.send(size).whole, size
        assert self.download() == hashlib.sha256(BUSYBOX.read_bytes()).hexdigest()
        assert checksum_errors(self.lab) == errors


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with control_groups(), Lab("none") as lab:
        harness.link(lab, f"del {lab.device}")
        daemons = make_swarm(lab.sender, lab.receiver, tmp_path_factory.mktemp("docker"))
        add_overlay(*daemons)
        for tool, rules in NAT.rules(replace(lab.spec, port=PORT)).items():
            lab.sender.run(LOADERS[tool], input=rules)
        yield Swarm(lab, *daemons)


def test_without_csumfix_packets_of_the_overlay_are_lost(swarm: Swarm) -> None:
    errors = checksum_errors(swarm.lab)
    assert swarm.send(64).arrived == 0
    assert checksum_errors(swarm.lab) > errors


@LANES
def test_csumfix_cures_the_overlay(swarm: Swarm, lane: str) -> None:
    with service(swarm.lab.sender, lane) as daemon:
        (ready,) = [line for line in daemon.lines() if line.startswith("ready")]
        assert f"port {PORT} (no device here)" in ready
        swarm.assert_all_arrives()


def test_an_overlay_that_is_made_again_is_cured(swarm: Swarm) -> None:
    with service(swarm.lab.sender):
        remove_overlay(swarm.sender, swarm.receiver)
        add_overlay(swarm.sender, swarm.receiver)
        swarm.assert_all_arrives()


def test_doctor_names_the_cause_while_the_overlay_is_used(swarm: Swarm) -> None:
    with harness.trickle(swarm.lab.sender, swarm.receiver.address(), prefix=swarm.sender.inside()):
        shown = swarm.lab.sender.run([*CSUMFIX, "doctor", "--json"], check=False)
    assert shown.returncode == Exit.NEGATIVE, shown.stdout + shown.stderr
    (finding,) = json.loads(shown.stdout)["findings"]
    assert (finding["tunnel"], finding["verdict"]) == (f"port {PORT}", "snat")
