"""Texts that the host chooses: names of any bytes, and so many that no line could hold them."""

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from csumfix.text import LINE
from csumfix_lab import Lab
from tests.lab.harness import CSUMFIX, HEALTHY, send, service

HOSTILE = (b"vx\xff0", b"[red]vx", b"vx\x1b[31m", "vx\u202e".encode(), b"vx\x9b2J")
METRICS = "127.0.0.1:9478"
SCRAPE = (
    f"import urllib.request as r; print(r.urlopen('http://{METRICS}/metrics').read().decode())"
)
PIPE_BUF = 4096


def add_devices(lab: Lab, names: Sequence[bytes], folder: Path) -> None:
    commands = b"".join(
        b"link add %s type vxlan id %d dstport %d local 192.0.2.1\n"
        % (name, number, 5000 + number)
        for number, name in enumerate(names, start=100)
    )
    batch = folder / "devices"
    batch.write_bytes(commands)
    lab.sender.run(["ip", "-batch", str(batch)])


@HEALTHY
def test_no_name_of_a_device_breaks_or_steers_what_is_shown(lab: Lab, tmp_path: Path) -> None:
    add_devices(lab, HOSTILE, tmp_path)
    with service(lab.sender, f"--metrics={METRICS}") as daemon:
        shown = {
            " ".join(command): lab.sender.run([*CSUMFIX, *command], check=False).stdout
            for command in (["status"], ["status", "--json"], ["top", "--once", "--interval=0.1"])
        }
        shown["metrics"] = lab.sender.run([sys.executable, "-c", SCRAPE]).stdout
        shown["log"] = "\n".join(daemon.lines())
        json.loads(shown["status --json"])
        for where, text in shown.items():
            assert "[red]vx" in text, where
            assert "xff0" in text, where
            assert all(line.isprintable() for line in text.split("\n")), (where, ascii(text))
        assert send(lab, 20, 512).whole


@HEALTHY
def test_the_settings_file_names_devices_as_status_shows_them(lab: Lab, tmp_path: Path) -> None:
    add_devices(lab, HOSTILE, tmp_path)
    with service(lab.sender) as daemon:
        names = {tunnel["name"] for tunnel in daemon.status()["tunnels"]} - {lab.device}
    assert len(names) == len(HOSTILE)
    file = tmp_path / "csumfix.toml"
    file.write_text("".join(f"[tunnel.'{name}']\nlane = \"queue\"\n" for name in names))
    with service(lab.sender, f"--config={file}") as daemon:
        lanes = [one["lane"] for one in daemon.status()["service"]["lanes"]]
        assert lanes == ["queue"] * len(HOSTILE) + ["kernel"]
        assert daemon.status()["service"]["settings_notes"] == []


@HEALTHY
def test_readiness_does_not_depend_on_how_many_devices_there_are(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd drops a message of more than 4,096 bytes whole; 1,100 make one of 50,000."""
    add_devices(lab, [b"vx%d" % number for number in range(1100)], tmp_path)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with service(lab.sender, f"--metrics={METRICS}", ready=30) as daemon:
        manager.settimeout(5)
        messages = [manager.recv(1 << 20) for _ in range(3)]
        messages.remove(b"WATCHDOG=1")
        assert messages[0] == b"READY=1"
        assert messages[1].startswith(b"STATUS=")
        assert len(messages[1]) < PIPE_BUF
        assert max(map(len, daemon.lines())) <= LINE
        status = daemon.status()
        assert len(status["tunnels"]) == status["service"]["tunnels_count"] == 1101
        assert len(status["service"]["tunnels"]) == len(status["service"]["lanes"]) == 1000
        scraped = lab.sender.run([sys.executable, "-c", SCRAPE]).stdout
        assert "csumfix_tunnels 1101.0" in scraped
        assert scraped.count("csumfix_tunnel_mtu_bytes{") == 200
        top = lab.sender.run([*CSUMFIX, "top", "--once", "--interval=0.1"]).stdout
        assert top.count("and 1096 more") == 2
