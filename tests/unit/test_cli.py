"""The command line as a user meets it: help, one-line errors, exit codes, JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from csumfix import cli
from csumfix.errors import Exit

COMMANDS = ("run", "status", "top", "check", "trace", "lab")


def csumfix(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "csumfix", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    result = csumfix(command, "--help")
    assert result.returncode == Exit.OK
    assert "Example: " in result.stdout
    assert "\\b" not in result.stdout  # click's mark for lines that stay as they are


@pytest.mark.parametrize(
    "command",
    [
        *((name,) for name in cli.cli.commands),
        *(("config", name) for name in ("check", "show")),
        (),
    ],
    ids=" ".join,
)
def test_help_fits_80_columns_and_cuts_nothing(command: tuple[str, ...]) -> None:
    lines = csumfix(*command, "--help").stdout.splitlines()[1:]  # the first ends in [ARGS]...
    assert lines
    assert not [line for line in lines if len(line) > 80]
    assert not [line for line in lines if re.search(r"\w\.\.\.$", line)]


def test_help_lists_the_commands_and_exit_codes() -> None:
    text = csumfix("--help").stdout
    assert all(command in text for command in (*COMMANDS, "rules", "Exit codes: 0"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--port", "65536"),
        ("run", "--port", "0"),
        ("run", "--queues", "65"),
        ("run", "--queue-base", "65535", "--queues", "2"),
        ("run", "--lane", "some"),
        ("run", "--hold", "0"),
        ("run", "--zero", "maybe"),
        ("nonsense",),
        ("check",),
        ("check", "/nonexistent"),
        ("config", "check", "one", "two"),
        ("trace", "--count", "0"),
        ("trace", "--pcap", "/"),
        ("lab", "--cause", "gremlins"),
        ("lab", "--mtu", "1300"),
        ("lab", "--mtu", "9001"),
        ("rules", "apply", "--port", "0"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...]) -> None:
    result = csumfix(*arguments)
    assert result.returncode == Exit.USAGE
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert ") See" not in result.stderr


@pytest.mark.parametrize("group", [(), ("config",)], ids=str)
def test_a_group_alone_shows_its_help(group: tuple[str, ...]) -> None:
    result = csumfix(*group)
    assert result.returncode == Exit.USAGE
    assert result.stderr == csumfix(*group, "--help").stdout


@pytest.mark.parametrize("arguments", [("--help",), ("config", "show")], ids=" ".join)
def test_a_full_disk_is_one_line(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "csumfix", *arguments]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, check=False, stdout=full, stderr=-1, text=True)
    assert result.returncode == Exit.BROKEN
    assert "No space left on device" in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_rules_passes_everything_on() -> None:
    result = csumfix("rules", "show", "--family", "4", "--port", "8472")
    assert result.returncode == Exit.OK
    assert result.stdout.startswith("# iptables-restore --noflush\n*mangle\n")
    assert "csumfix-rules" in csumfix("rules", "--help").stdout


def test_rules_as_json() -> None:
    result = csumfix("rules", "--json", "show", "--family", "4")
    document = json.loads(result.stdout)
    assert document["exit_code"] == Exit.OK
    assert "*mangle" in document["output"]


def test_version() -> None:
    assert csumfix("--version").stdout.startswith("csumfix")
