"""Wrong usage of the command line, once each: what is said, in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from csumfix import cli
from csumfix.errors import Exit


def csumfix(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "csumfix", *arguments],
        check=False,
        capture_output=True,
        timeout=30,
    )


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str) -> str:
    """Return what a command line, which must be wrong usage, is answered."""
    monkeypatch.setattr(sys, "argv", ["csumfix", *line.split(" ")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    return err.removeprefix("csumfix: ").removesuffix("\n")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        # Numbers
        ("run --queues vxlan", "Invalid value for '--queues': 'vxlan' is not a whole number."),
        ("run --queues 1.5", "Invalid value for '--queues': '1.5' is not a whole number."),
        ("run --queues=", "Invalid value for '--queues': '' is not a whole number."),
        ("run --queues 65", "Invalid value for '--queues': 65 is not in the range from 1 to 64."),
        ("run --port 0", "Invalid value for '--port': 0 is not in the range from 1 to 65535."),
        ("check --port x f", "Invalid value for '--port': 'x' is not a whole number."),
        ("trace --count 0", "Invalid value for '--count': 0 is not in the range from 1 up."),
        ("top --interval x", "Invalid value for '--interval': 'x' is not a number."),
        (
            "top --interval nan",
            "Invalid value for '--interval': nan is not in the range from 0.1 to 86400.",
        ),
        (
            "top --interval 1e99",
            "Invalid value for '--interval': 1e+99 is not in the range from 0.1 to 86400.",
        ),
        # Values
        ("run --zero", "Option '--zero' requires an argument."),
        ("lab --cause", "Option '--cause' requires an argument."),
        ("run --zero x", "Invalid value for '--zero': 'x' is not one of 'keep', 'fill'."),
        ("run --take-over=1", "Option '--take-over' does not take a value."),
        ("status --json=1", "Option '--json' does not take a value."),
        (
            "run --metrics x",
            "Invalid value for '--metrics': 'x' is not like 127.0.0.1:9478 or [::1]:9478.",
        ),
        ("trace --pcap /tmp", "Invalid value for '--pcap': File '/tmp' is a directory."),
        # Names
        ("top --onec", "No such option '--onec'. Did you mean '--once'?"),
        ("run --queue 2", "No such option '--queue'. Did you mean '--queues' or '--queue-base'?"),
        ("run --xyz", "No such option '--xyz'."),
        ("run -q", "No such option '-q'."),
        # Arguments
        ("check", "Missing argument 'FILE'."),
        ("run extra", "Got unexpected extra argument (extra)."),
        ("restart now please", "Got unexpected extra arguments (now please)."),
    ],
)
def test_a_command_used_wrongly_names_its_own_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, answer: str
) -> None:
    command = line.split(" ", maxsplit=1)[0]
    expected = f"{answer} See 'csumfix {command} --help'."
    assert said(capsys, monkeypatch, line) == expected


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("statsu", "No such command 'statsu'. Did you mean 'status' or 'restart'?"),
        ("xyz", "No such command 'xyz'."),
        ("--xyz", "No such option '--xyz'."),
        ("--vresion", "No such option '--vresion'. Did you mean '--version'?"),
        *(
            (command, f"No such command '{command}'. {remedy}")
            for command, remedy in (
                ("version", "For the version: 'csumfix --version'."),
                ("help", "For help: 'csumfix --help'."),
                ("start", "To start csumfix: 'csumfix run', or 'systemctl start csumfix'."),
                (
                    "stop",
                    "To stop csumfix: 'systemctl stop csumfix', "
                    "or Ctrl-C where you started it by hand.",
                ),
                (
                    "reload",
                    "To have it read its settings again: "
                    "'systemctl reload csumfix', or 'kill -HUP'.",
                ),
            )
        ),
    ],
)
def test_an_unknown_command_is_answered_with_what_to_type(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, answer: str
) -> None:
    assert said(capsys, monkeypatch, line) == f"{answer} See 'csumfix --help'."


@pytest.mark.parametrize("command", ["config check", "run --config"])
@pytest.mark.parametrize(
    ("file", "reason"),
    [("/tmp", "Is a directory"), ("/nonexistent", "No such file or directory")],
)
def test_a_file_that_cannot_be_read_is_the_one_that_is_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    file: str,
    reason: str,
) -> None:
    answer = f"{file}: cannot be read: {reason}: name a file with settings in TOML"
    assert said(capsys, monkeypatch, f"{command} {file}") == answer


def test_advice_about_a_mistake_names_the_file_that_has_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "some.toml"
    file.write_text("queues = 0")
    advice = f": correct it, then try 'csumfix config check {file}'"
    assert said(capsys, monkeypatch, f"run --config {file}").endswith(advice)


def test_a_capture_that_cannot_be_read_is_told_without_an_errno(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = said(capsys, monkeypatch, "check /tmp")
    assert "/tmp" in answer
    assert "Is a directory" in answer or "is a directory" in answer
    assert "Errno" not in answer


def test_version_has_a_short_option() -> None:
    assert csumfix("-V").stdout == csumfix("--version").stdout != b""


@pytest.mark.parametrize("name", [b"\xff", b"a\nb", b"\x1b[31m"])
def test_arguments_of_any_bytes_are_answered_in_one_printable_line(name: bytes) -> None:
    for arguments in ((name,), (b"check", name), (b"run", b"--config", name), (b"run", name)):
        result = subprocess.run(
            [sys.executable, "-m", "csumfix", *arguments], check=False, capture_output=True
        )
        assert result.returncode == Exit.USAGE, result
        assert result.stderr.endswith(b"\n")
        assert result.stderr[:-1].decode().isprintable()
