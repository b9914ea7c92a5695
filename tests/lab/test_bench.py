"""The benchmark's programs and cures: what it measures has to be there before it is measured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import cures, loads, measure, programs, tcp, udp
from bench.clock import Window
from bench.matrix import FIXED, HEALTHY, lab_key
from bench.stats import Key, Sample
from csumfix_lab import Lab
from tests.lab.harness import ALONE

pytestmark = ALONE

SECONDS = 0.3
SANITIZED = ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror",
             "-fsanitize=address,undefined", "-fno-sanitize-recover"]  # fmt: skip
NONE = pytest.mark.parametrize("lab", ["none"], indirect=True)

# Sends datagrams with these numbers, as load.c does: flow, number, content.
SEND = """
import socket, struct, sys
host, port, size, *numbers = sys.argv[1:]
content = bytes(i * 151 + 7 & 255 for i in range(int(size)))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in map(int, numbers):
    sock.sendto(struct.pack("=II", 0, number) + content[8:], (host, int(port)))
sock.sendto(bytes(int(size)), (host, int(port)))
"""


def assert_in_order(sample: Sample) -> None:
    """A sender that moves to another core may be overtaken by itself, but not often."""
    assert sample.value
    assert sample.out_of_order is not None
    assert sample.out_of_order < 0.01 * sample.value * 1000


@pytest.fixture
def _sanitized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the loads run programs that stop at the first wrong access."""
    for name in ("load", "messages"):
        source = Path(programs.__file__).with_name(f"{name}.c")
        subprocess.run([*SANITIZED, str(source), "-o", str(tmp_path / name)], check=True)
    for module in (udp, tcp):
        monkeypatch.setattr(module, "binary", lambda name: str(tmp_path / name))
    yield


@NONE
@pytest.mark.usefixtures("_sanitized")
@pytest.mark.parametrize("name", [FIXED, "udp-saturating-512-16", "udp-gso-1200-1"])
def test_udp_arrives_whole_and_in_order(lab: Lab, name: str) -> None:
    assert_in_order(loads.BY_NAME[name].run(lab, SECONDS))


@NONE
@pytest.mark.usefixtures("_sanitized")
def test_messages_arrive_whole_and_are_counted(lab: Lab) -> None:
    sample = loads.BY_NAME["tcp-messages"].run(lab, SECONDS)
    assert sample.cures
    assert sample.out_of_order is not None


@pytest.mark.parametrize("lab", ["snat"], indirect=True)
@pytest.mark.usefixtures("_sanitized")
@pytest.mark.parametrize("name", [FIXED, "tcp-messages"])
def test_without_a_cure_nothing_arrives(lab: Lab, name: str) -> None:
    assert not loads.BY_NAME[name].run(lab, SECONDS).cures


@NONE
@pytest.mark.usefixtures("_sanitized")
def test_late_and_wrong_datagrams_are_told_apart(lab: Lab) -> None:
    window = Window.after(0, 1)
    with udp.traffic(lab, 64, 1, 1, window) as (sender, receiver):
        sender.kill()
        send = [sys.executable, "-c", SEND, lab.pod_ip, str(udp.PORT), "64"]
        numbers = map(str, (1000, 1002, 1001, 1003))
        lab.sender.run([*send, *numbers])
        got = programs.parse_count(receiver.communicate(timeout=5)[0])
    assert (got.late, got.bad) == (1, 1)


@pytest.mark.parametrize("cause", ["snat", "dnat", HEALTHY])
@pytest.mark.parametrize("cure", [one.name for one in cures.ALL if one.ours])
def test_every_lane_of_the_benchmark_cures(cause: str, cure: str) -> None:
    programs.build("load", "messages")
    key = Key(cause, FIXED, cure)
    with measure.PreparedLabs([key], lambda _: None) as labs:
        lab = labs[lab_key(key)].lab
        assert_in_order(udp.load(600, 1, 10_000)(lab, SECONDS))
