"""Geneve tunnels, whose devices this machine's own kernel may lack."""

from __future__ import annotations

import json

import pytest

from csumfix_lab import Lab
from tests.kernels.tunnels import Exchange, Tunnel
from tests.lab.harness import CSUMFIX, Service

TUNNELS = [
    Tunnel(number, "eth0", bug, "geneve")
    for number, bug in enumerate(("none", "snat", "dnat", "stateless"), 61)
]
TUNNELS.append(Tunnel(65, "IPv6", "snat", "geneve"))
EACH = pytest.mark.parametrize("tunnel", TUNNELS, ids=lambda tunnel: tunnel.name)
SNAT = TUNNELS[1]
READY = 150.0


@EACH
def test_without_csumfix_geneve_packets_are_lost(exchange: Exchange, tunnel: Tunnel) -> None:
    exchange.assert_lost(tunnel, tunnel.bug != "none")


def test_the_doctor_names_the_cause(lab: Lab) -> None:
    command = [*CSUMFIX, "doctor", "--json", "--to", SNAT.address]
    result = lab.sender.run(command, check=False, timeout=120)
    assert result.returncode == 1, result.stdout + result.stderr
    findings = json.loads(result.stdout)["findings"]
    assert [one["verdict"] for one in findings] == ["snat"], findings


@pytest.mark.parametrize("lane", ["auto", pytest.param("queue", marks=pytest.mark.slow)])
def test_csumfix_delivers_everything(lab: Lab, exchange: Exchange, lane: str) -> None:
    daemon = Service(lab.sender, "--lane", lane)
    try:
        daemon.wait_for("ready", READY)
        for tunnel in TUNNELS:
            by_evidence = lane == "auto" and tunnel.bug == "stateless"
            exchange.until_whole(tunnel.address, at_once=not by_evidence)
            if by_evidence:
                daemon.wait_for(f"warning: port {tunnel.port}: now in the queue lane", READY)
        lines = "\n".join(daemon.lines())
        first = "queue" if lane == "queue" else "kernel"
        for tunnel in TUNNELS:
            assert f"port {tunnel.port} (gnv{tunnel.number}) in the {first} lane" in lines
        assert lines.count("now in the queue lane") == (lane == "auto")
    finally:
        daemon.process.kill()
        daemon.process.wait()
        print("\n".join(daemon.lines()))
