"""The image as the DaemonSet runs it: in a pod of exactly these rights, on a node with a bug."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab
from csumfix_lab.node import Node
from tests.image.pod import Image, Pod, pod
from tests.kubernetes import PROBES, render
from tests.lab.harness import Load, assert_no_rules, checksum_errors, link, send

HINT = "KUBE-IPTABLES-HINT"
NET_ADMIN_AND_NET_RAW = 1 << 12 | 1 << 13
SECCOMP_FILTER = 2  # proc_pid_status(5)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(cause="dnat") as lab:
        # crun refuses to run below the mix of cgroup versions that some machines have.
        lab.sender.run(["mount", "-t", "tmpfs", "none", "/sys/fs/cgroup"])
        lab.sender.run(["touch", "/run/xtables.lock"])  # FileOrCreate
        lab.sender.run(["mkdir", "/run/csumfix"])  # DirectoryOrCreate
        yield lab


@pytest.fixture
def running(lab: Lab, image: Image, tmp_path: Path) -> Iterator[Pod]:
    """A pod that is ready."""
    with pod(lab.sender, image, render("base"), tmp_path / "pod") as running:
        running.wait_for("ready")
        yield running


def rules(node: Node, variant: str) -> str:
    return node.run([f"iptables-{variant}-save", "-t", "mangle"]).stdout


# What is in it


def test_configuration(image: Image) -> None:
    assert image.config["Entrypoint"] == ["csumfix"]
    assert image.config["Cmd"] == ["run"]
    assert image.config["StopSignal"] == "SIGTERM"
    assert image.config["Labels"]["org.opencontainers.image.version"] == version("csumfix")


def test_nothing_of_the_build_is_left(image: Image) -> None:
    programs = {path.name for path in image.root.glob("**/bin/*")}
    assert "csumfix-rules" in programs
    assert not {"gcc", "cc", "ld", "pip", "pip3"} & programs
    assert not any((image.root / "var/lib/apt/lists").iterdir())
    assert not (image.root / "root/.cache").exists()
    assert not (image.root / "src").exists()


# What it does


def test_cures_and_stops(lab: Lab, running: Pod) -> None:
    errors = checksum_errors(lab)
    for size in (64, 1400, 8000):
        assert send(lab, 50, size).whole
    assert checksum_errors(lab) == errors
    assert "fill-8472" in running.run("csumfix", "status")

    assert running.stop() == Exit.OK
    assert_no_rules(lab.sender)
    assert not send(lab, 10, 64).whole, "something else was the cure"


def test_has_no_more_rights_than_the_manifest_says(running: Pod) -> None:
    lines = running.run("cat", "/proc/1/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    assert status["Name"] == "csumfix"
    for held in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[held], 16) == NET_ADMIN_AND_NET_RAW
    assert int(status["NoNewPrivs"]) == 1
    assert int(status["Seccomp"]) == SECCOMP_FILTER
    with pytest.raises(subprocess.CalledProcessError) as refused:
        running.run("touch", "/opt/csumfix/file")
    assert "Read-only file system" in refused.value.stderr


def test_doctor_finds_in_the_pod_who_sends_wrong_packets(lab: Lab, running: Pod) -> None:
    """The pod's rights suffice for the tap, the node's counters and the bundle."""
    bundle = "/run/csumfix/bundle.tar.gz"
    watch = ["csumfix", "doctor", "--receiver", "--seconds=1", "--json", f"--bundle={bundle}"]
    document = json.loads(running.run("sh", "-c", f"{shlex.join(watch)} || test $? = 7"))
    assert document["state"] == "undecided"
    assert [one["owner"] for one in document["counters"]] == ["this host"]
    listed = running.run("tar", "-tzf", bundle).splitlines()
    assert {"csumfix-bundle/iptables.txt", "csumfix-bundle/service.json"} <= set(listed)
    text = running.run("tar", "-xzOf", bundle, "csumfix-bundle/iptables.txt")
    assert "CSUMFIX-KERNEL" in text
    assert "-j DNAT" in text
    with pytest.raises(subprocess.CalledProcessError) as refused:
        running.run("csumfix", "doctor", "--kernel")
    assert refused.value.returncode == Exit.MISSING
    assert "any other machine with kernel" in refused.value.stderr


@pytest.mark.parametrize("name", ["base", "examples/monitored"])
def test_is_healthy_before_there_is_a_tunnel(
    lab: Lab, image: Image, tmp_path: Path, name: str
) -> None:
    link(lab, f"del {lab.device}")
    with pod(lab.sender, image, render(name), tmp_path / "pod") as running:
        running.wait_for("ready: no vxlan or geneve device yet")
        for probe in PROBES:
            assert running.probe(probe) == "ok"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_rollout_loses_nothing(lab: Lab, image: Image, tmp_path: Path, variant: str) -> None:
    lab.sender.run([f"iptables-{variant}", "-t", "mangle", "-N", HINT])
    with pod(lab.sender, image, render("base"), tmp_path / "old") as old:
        old.wait_for("ready")
        load = Load(lab)
        with pod(lab.sender, image, render("base"), tmp_path / "new") as new:
            new.wait_for("taken over")
            old.wait_for("superseded")
            assert len(lab.sender.run(["ls", "/run/csumfix"]).stdout.split()) == 1
            with pytest.raises(subprocess.TimeoutExpired):
                old.process.wait(2)  # kubelet would start again what ends
            assert old.stop() == Exit.OK
            load.assert_whole()
            assert new.probe("livenessProbe") == "ok"
            assert "CSUMFIX" in rules(lab.sender, variant)
            assert new.stop() == Exit.OK
    assert "CSUMFIX" not in rules(lab.sender, variant)


# Which iptables it takes


@pytest.mark.parametrize(("host", "other"), [("nft", "legacy"), ("legacy", "nft")])
def test_takes_the_iptables_of_the_host(
    lab: Lab, image: Image, tmp_path: Path, host: str, other: str
) -> None:
    node = lab.sender
    node.run([f"iptables-{host}", "-t", "mangle", "-N", HINT])
    with pod(node, image, render("base"), tmp_path / "pod") as running:
        running.wait_for("ready")
        assert "CSUMFIX" in rules(node, host)
        assert "CSUMFIX" not in rules(node, other)
        assert send(lab, 50, 1400).whole

        # However the signs change, the rules go from where they are.
        node.run([f"iptables-{host}", "-t", "mangle", "-X", HINT])
        node.run([f"iptables-{other}", "-t", "mangle", "-N", HINT])
        assert running.stop() == Exit.OK
    assert "CSUMFIX" not in rules(node, host)


def test_reading_legacy_tables_does_not_make_them(lab: Lab, running: Pod) -> None:
    assert "mangle" not in lab.sender.run(["cat", "/proc/net/ip_tables_names"]).stdout


def test_waits_for_the_lock_of_the_host(lab: Lab, image: Image, tmp_path: Path) -> None:
    node = lab.sender
    node.run(["iptables-legacy", "-t", "mangle", "-N", HINT])
    holder = node.popen(
        ["flock", "/run/xtables.lock", "sh", "-c", "echo held; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pod(node, image, render("base"), tmp_path / "pod") as running:
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(2)
        assert "CSUMFIX" not in rules(node, "legacy")
        holder.communicate("")
        running.wait_for("ready")
