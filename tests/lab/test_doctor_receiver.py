"""``csumfix doctor --receiver`` names the senders of wrong packets, and who lost them."""

from __future__ import annotations

import json
import re
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csumfix.errors import Exit
from csumfix_lab import Lab, spec
from csumfix_lab.process import Process
from tests.lab.harness import CSUMFIX, send, start_watching

DATAGRAMS = 20
SETTLING = 0.3  # seconds from the last datagram that was sent to its counter


def start(lab: Lab, seconds: float, *arguments: str) -> Process:
    return start_watching(lab, "doctor", "--receiver", f"--seconds={seconds}", *arguments)


def watched(lab: Lab, traffic: Callable[[Lab], object]) -> tuple[int, dict[str, Any]]:
    """Watch for as long as there is traffic."""
    process = start(lab, 60, "--json")
    traffic(lab)
    time.sleep(SETTLING)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    return process.returncode, json.loads(out)


def datagrams(lab: Lab) -> None:
    send(lab, DATAGRAMS, 200, flows=4)


def dropped(document: dict[str, Any], *, host: bool) -> dict[str, int]:
    """By how much the counters rose, in sum."""
    total: dict[str, int] = {}
    for one in document["counters"]:
        if one["is_host"] is host:
            for name, number in one["risen"].items():
                total[name] = total.get(name, 0) + number
    return total


@pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
def test_a_sender_of_rewritten_packets_is_named(ipv6: bool) -> None:
    with Lab("snat", ipv6=ipv6) as lab:
        code, document = watched(lab, datagrams)
    assert (code, document["state"]) == (Exit.NEGATIVE, "found")
    (finding,) = document["findings"]
    assert list(finding["senders"]) == [spec.SENDER.ip(ipv6)]
    assert finding["cause"] == "new_port"
    assert document["verdict"].startswith(f"{spec.SENDER.ip(ipv6)} sends this host wrong packets")
    counter = "Udp6InCsumErrors" if ipv6 else "UdpInCsumErrors"
    assert dropped(document, host=True) == {counter: DATAGRAMS}


POD = """
ip netns add pod
ip link add veth0 type veth peer name eth0 netns pod
ip link set veth0 master cni0 up
ip addr del {address} dev cni0
nsenter --net=/run/netns/pod sh -eu <<'END'
ip link set lo up
ip link set eth0 up
ip addr add {address} dev eth0
ip route add default via {gateway}
END
"""

# One packet of each flow; nobody listens.
SEND = """
import socket, sys
for _ in range(int(sys.argv[2])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(bytes(200), (sys.argv[1], 7000))
"""


def test_what_is_wrong_inside_is_counted_in_the_pod() -> None:
    """Nothing stands in the host's counters where the outer checksum is right."""
    with Lab("relay") as lab:
        end = lab.spec.receiver
        script = POD.format(address=end.pod.v4, gateway=end.gateway.ip(False))
        lab.receiver.run(["sh", "-eu"], input=script)
        lab.receiver.popen(["nsenter", "--net=/run/netns/pod", "sleep", "60"])
        sending = [sys.executable, "-c", SEND, lab.pod_ip, str(DATAGRAMS)]
        code, document = watched(lab, lambda lab: lab.sender.run(sending))
    assert (code, document["findings"][0]["cause"]) == (Exit.NEGATIVE, "relay")
    assert dropped(document, host=True) == {}
    assert dropped(document, host=False) == {"UdpInCsumErrors": DATAGRAMS}


def test_a_healthy_tunnel_is_told_from_a_silent_one() -> None:
    with Lab("none") as lab:
        code, document = watched(lab, datagrams)
        silent = start(lab, 0.5)
        out, _ = silent.communicate(timeout=30)
    assert (code, document["state"]) == (Exit.OK, "healthy")
    assert not dropped(document, host=True)
    assert silent.returncode == Exit.BROKEN
    assert out.startswith("Undecided: no tunnel packet arrived in 0.5 s on eth0.")


def test_a_bundle_holds_what_matters_and_no_address_of_the_host(tmp_path: Path) -> None:
    path = tmp_path / "bundle.tar.gz"
    options = ["--seconds=0.1", f"--bundle={path}", "--replace-addresses"]
    with Lab("snat") as lab:
        result = lab.sender.run([*CSUMFIX, "doctor", "--receiver", *options], check=False)
    assert result.returncode == Exit.BROKEN, result.stderr
    with tarfile.open(path) as archive:
        texts = {
            Path(member.name).name: file.read().decode()
            for member in archive.getmembers()
            if (file := archive.extractfile(member))
        }
    assert "--dport 8472 -j MASQUERADE" in texts["iptables.txt"]
    assert '"kind": "vxlan"' in texts["devices.json"]
    assert "tx-checksum-ip-generic" in texts["devices.json"]
    assert "InCsumErrors" in texts["counters.txt"]
    assert '"undecided"' in texts["diagnosis.json"]
    own = re.compile(r"192\.0\.2\.|10\.244\.|02:00:0a:f4")
    assert not [name for name, text in texts.items() if own.search(text)]
