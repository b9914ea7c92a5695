"""Settings from the file, the environment and the command line."""

from pathlib import Path

import click
import pytest

from csumfix import config, settingsfile
from csumfix.cli import run_command
from csumfix.errors import CsumfixError, Exit
from csumfix.options import TUNNEL_SETTINGS, LaneSetting, Options, TunnelOptions
from csumfix.text import printable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "csumfix.toml"


def test_defaults(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    assert config.load(run_command, []) == Options()


def test_every_setting_can_stand_in_the_file(file: Path) -> None:
    file.write_text(
        """
        lane = "queue"
        hold = 60
        tap-pause = 2
        probe = "off"
        port = [9999, 4789, 9999]
        geneve-port = [7001, 7000]
        queues = 2
        queue-base = 7
        zero = "fill"
        metrics = "[::1]:9478"
        log-format = "json"
        take-over = true
        superseded = "wait"
        """
    )
    read = config.load(run_command, [f"--config={file}"])
    assert read == Options(
        lane=LaneSetting.QUEUE,
        hold=60,
        tap_pause=2.0,
        probe="off",
        ports=(4789, 9999),
        geneve_ports=(7000, 7001),
        queues=2,
        queue_base=7,
        zero="fill",
        metrics="[::1]:9478",
        log_format="json",
        take_over=True,
        superseded="wait",
    )
    assert len(settingsfile.read(file, config.FLAGS).flags) == len(config.FLAGS)


def test_the_default_file_is_read_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    file.write_text("queues = 3")
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    assert config.load(run_command, []).queues == 3


def test_precedence(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text('queues = 3\nqueue-base = 3\nlane = "queue"')
    monkeypatch.setenv("CSUMFIX_CONFIG", str(file))
    monkeypatch.setenv("CSUMFIX_QUEUES", "2")
    monkeypatch.setenv("CSUMFIX_QUEUE_BASE", "2")
    monkeypatch.setenv("CSUMFIX_PORT", "4789 9999")
    read = config.load(run_command, ["--queues=1"])
    assert (read.queues, read.queue_base, read.lane) == (1, 2, LaneSetting.QUEUE)
    assert read.ports == (4789, 9999)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quues = 2", "quues: did you mean queues?"),
        ("config = 2", "no such setting: config: known are lane hold tap-pause probe port "),
        ("#" * (settingsfile.MAX_FILE + 1), "is far too long"),
        ('queues = "2"', 'queues = "2": wants a whole number'),
        ("queues = true", "wants a whole number"),
        ("queues = 65", "queues: 65 is not in the range"),
        ("port = 8472", "port = 8472: wants a list"),
        ("port = [0]", "port: 0 is not in the range"),
        ("take-over = 1", "wants true or false"),
        ('lane = "some"', "lane: 'some' is not one of"),
        ("hold = 0", "hold: 0 is not in the range"),
        ('tap-pause = "1"', "wants a number"),
        ("tap-pause = -1", "tap-pause: -1.0 is not in the range"),
        ('metrics = "9478"', "127.0.0.1:9478 or [::1]:9478"),
        ("lane", "is not TOML"),
        ("port = " + "[" * 5000, "is not TOML"),
        ("queues = 2\nqueue-base = 65535", "no room for 2 queues"),
        ("tunnels.vx.lane = 'queue'", "no such setting: tunnels: did you mean tunnel?"),
        ("tunnel = 3", 'tunnel: wants tables, such as [tunnel."flannel.1"]'),
        ("[[tunnel]]", "tunnel: wants tables"),
        ("tunnel.vx = 3", '[tunnel."vx"]: wants a table of settings'),
        ("[tunnel.vx]\nlanes = 3", '[tunnel."vx"]: no such setting: lanes: did you mean lane?'),
        ("[tunnel.vx]\nlane = 'some'", "[tunnel.\"vx\"]: lane: 'some' is not one of"),
        ("[tunnel.vx]\nlane = 3", '[tunnel."vx"]: lane = 3: wants a text in quotes'),
        ("[tunnel.flannel.1]\nlane = 'queue'", 'dots in quotes: [tunnel."flannel.1"]'),
        ("[tunnel.sixteen-letters-]", "no network device can have this name"),
        ("[tunnel.'eth0/1']", "no network device can have this name"),
        ("[tunnel.\"vx\\u0007\"]\n[tunnel.'vx\\x07']", "is there twice"),
    ],
)
def test_mistakes_in_the_file(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(CsumfixError) as caught:
        config.load(run_command, [f"--config={file}"])
    assert caught.value.code is Exit.USAGE
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_devices_have_tables_of_their_own(file: Path) -> None:
    """A name that is no text is written as csumfix shows it."""
    file.write_text(
        """
        lane = "kernel"
        [tunnel."flannel.1"]
        lane = "queue"
        [tunnel.vx2]
        [tunnel.'v\\xff\\x07']
        lane = "auto"
        [tunnel.'fifteen\\xffletter']
        [tunnel."br\\u00fccke"]
        """
    )
    read = config.load(run_command, [f"--config={file}"])
    assert read.lane is LaneSetting.KERNEL
    assert read.tunnels == {
        "flannel.1": TunnelOptions(LaneSetting.QUEUE),
        "vx2": TunnelOptions(),
        printable(b"v\xff\x07"): TunnelOptions(LaneSetting.AUTO),
        printable(b"fifteen\xffletter"): TunnelOptions(),
        "br\u00fccke": TunnelOptions(),
    }


def test_every_setting_of_a_device_is_read(file: Path) -> None:
    file.write_text("[tunnel.vx]\n" + "\n".join(f'{name} = "queue"' for name in TUNNEL_SETTINGS))
    (read,) = config.load(run_command, [f"--config={file}"]).tunnels.values()
    assert all(getattr(read, name) is not None for name in TUNNEL_SETTINGS)


def test_a_file_that_can_not_be_read(file: Path) -> None:
    with pytest.raises(CsumfixError, match="No such file"):
        config.load(run_command, [f"--config={file}"])
    file.write_bytes(b"\xff")
    with pytest.raises(CsumfixError, match="is not TOML"):
        config.load(run_command, [f"--config={file}"])


def test_a_mistake_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSUMFIX_QUEUES", "many")
    with pytest.raises(CsumfixError, match="CSUMFIX_QUEUES"):
        config.load(run_command, [])


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9478", "0.0.0.0:1", "[::1]:65535", "[fe80::1%eth0]:9478"]
)
def test_addresses(address: str) -> None:
    assert config.Address().convert(address, None, None) == address


@pytest.mark.parametrize(
    "address",
    [
        *("", ":9478", "9478", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536"),
        *("::1:9478", "[::1]", "[127.0.0.1]:9478", "localhost:9478", "127.0.0.1:9478/metrics"),
        *("user@127.0.0.1:9478", "127.0.0.1:x", "[::1:9478"),
    ],
)
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(click.BadParameter):
        config.Address().convert(address, None, None)


def test_what_is_shown_can_be_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSUMFIX_ZERO", "fill")
    tables = '[tunnel."flannel.1"]\nlane = "queue"\n[tunnel.\'v\\xff\']\n'
    file.write_text(f"port = [9999]\n{tables}")
    with run_command.make_context("run", [f"--config={file}", "--queues=2"]) as ctx:
        wanted, lines = config.options(ctx), config.describe(ctx)
    sources = {line.split()[0]: line.rpartition("# ")[2] for line in lines if line}
    assert sources['[tunnel."flannel.1"]'] == str(file)
    assert sources["port"] == str(file)
    assert sources["zero"] == "environment CSUMFIX_ZERO"
    assert sources["queues"] == "command line"
    assert sources["hold"] == "default"
    monkeypatch.delenv("CSUMFIX_ZERO")
    file.write_text("\n".join(lines))
    assert config.load(run_command, [f"--config={file}"]) == wanted
