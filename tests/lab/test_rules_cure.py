"""csumfix-rules by hand, with no service: the kernel lane cures, the queue lane harms nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csumfix_lab import Lab
from tests.lab.harness import Load, assert_all_arrives, send
from tests.lab.test_rules_script import OLD_RULES

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"

ACCEPT = """
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(0, lambda packet: packet.accept(), max_len=65536)
print("listening", flush=True)
queue.run()
"""


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def ipv6(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def iptables(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lab(cause: str, ipv6: bool) -> Iterator[Lab]:
    with Lab(cause=cause, ipv6=ipv6, mtu=9000) as lab:
        yield lab


def rules(lab: Lab, iptables: str, *arguments: str) -> str:
    """Run the script on the sender."""
    shown = lab.sender.run([str(SCRIPT), *arguments], env={"CSUMFIX_IPTABLES": iptables})
    assert shown.stderr == ""
    return shown.stdout


@pytest.mark.parametrize("gate", ["auto", "conntrack", "none"])
@pytest.mark.parametrize("cause", ["none", "kube-proxy", "snat", "dnat"])
def test_kernel_lane_cures(lab: Lab, cause: str, iptables: str, gate: str) -> None:
    broken = cause != "none"
    assert send(lab, 10, 64).whole is not broken
    rules(lab, iptables, "apply", "--port=8472", f"--gate={gate}")
    if broken and gate == "auto":
        family = 6 if lab.spec.ipv6 else 4
        assert f"family={family} lane=kernel state=present ports=8472 gate=conntrack" in rules(
            lab, iptables, "status"
        )
    assert_all_arrives(lab)
    # The rules, and nothing else, were the cure.
    rules(lab, iptables, "remove")
    assert send(lab, 10, 64).whole is not broken


@pytest.mark.parametrize("cause", ["none"])
def test_queue_lane_without_listener_lets_everything_by(lab: Lab, iptables: str) -> None:
    rules(lab, iptables, "apply", "--lane=queue", "--port=8472")
    assert_all_arrives(lab)


@contextmanager
def listener(lab: Lab) -> Iterator[None]:
    """Accept what is queued; being queued is the cure for cause snat."""
    process = lab.sender.popen([sys.executable, "-c", ACCEPT], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("lane", ["kernel", "queue", "both"])
@pytest.mark.parametrize("cause", ["snat"])
def test_upgrade_loses_no_packet_and_leaves_none_uncured(
    lab: Lab, iptables: str, lane: str
) -> None:
    family = "ip6tables" if lab.spec.ipv6 else "iptables"
    restore = iptables.replace("iptables", family) + "-restore"
    # Not those of "csumfix trace": packets of a queue without listener leave uncured.
    old_rules = [line for line in OLD_RULES.splitlines(True) if "TRACE" not in line]
    with listener(lab):
        lab.sender.run([restore, "--noflush"], input="".join(old_rules))
        load = Load(lab, rate=4000)
        options = ("--port=8472", f"--lane={lane}")
        rules(lab, iptables, "apply", *options)
        assert rules(lab, iptables, "check", *options) == ""
        load.assert_whole()
    assert "old-version" not in rules(lab, iptables, "status")
