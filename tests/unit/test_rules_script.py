"""csumfix-rules without a kernel: the text of show, arguments, and what stand-in tools provoke."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"]}

NAT_2_QUEUES = """\
# iptables-restore --noflush
*mangle
:CSUMFIX - [0:0]
-A CSUMFIX -m conntrack ! --ctstate SNAT,DNAT --ctstatus CONFIRMED -m comment --comment "csumfix:db4c2180:no-nat" -j RETURN
-A CSUMFIX -p udp -m udp --sport 0:46883 -m length --length 0:1500 -m comment --comment "csumfix:db4c2180:queue-0" -j NFQUEUE --queue-num 0 --queue-bypass
-A CSUMFIX -p udp -m udp --sport 46884:65535 -m length --length 0:1500 -m comment --comment "csumfix:db4c2180:queue-1" -j NFQUEUE --queue-num 1 --queue-bypass
-A POSTROUTING -p udp -m multiport --dports 4789,8472 -m comment --comment "csumfix:jump:4789,8472" -j CSUMFIX
COMMIT
"""  # noqa: E501

PACKETS_1_QUEUE = """\
# iptables-restore --noflush
*mangle
:CSUMFIX - [0:0]
-A CSUMFIX -p udp -m length --length 0:1500 -m comment --comment "csumfix:DIGEST:queue-0" -j NFQUEUE --queue-num 0 --queue-bypass
-A POSTROUTING -p udp -m multiport --dports 4789,8472 -m comment --comment "csumfix:jump:4789,8472" -j CSUMFIX
COMMIT
"""  # noqa: E501

ALL_3_QUEUES = """\
# iptables-restore --noflush
*mangle
:CSUMFIX - [0:0]
-A CSUMFIX -p udp -m udp --sport 0:1032 -m comment --comment "csumfix:DIGEST:queue-7" -j NFQUEUE --queue-num 7 --queue-bypass
-A CSUMFIX -p udp -m udp --sport 1033:1065 -m comment --comment "csumfix:DIGEST:queue-8" -j NFQUEUE --queue-num 8 --queue-bypass
-A CSUMFIX -p udp -m udp --sport 1066:65535 -m comment --comment "csumfix:DIGEST:queue-9" -j NFQUEUE --queue-num 9 --queue-bypass
-A POSTROUTING -p udp -m multiport --dports 53,4789,8472 -m comment --comment "csumfix:jump:53,4789,8472" -j CSUMFIX
COMMIT
"""  # noqa: E501


TRACE = """\
# iptables-restore --noflush
*mangle
:CSUMFIX-TRACE - [0:0]
-A CSUMFIX-TRACE -p udp -m length --length 0:1500 -m limit --limit 100/s --limit-burst 100 -m comment --comment "csumfix-trace:DIGEST:queue-9" -j NFQUEUE --queue-num 9 --queue-bypass
-A POSTROUTING -p udp -m udp --dport 8472 -m comment --comment "csumfix-trace:jump:8472" -j CSUMFIX-TRACE
COMMIT
"""  # noqa: E501


def rules(
    *arguments: str, shell: str = "dash", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SHELLS[shell], str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], **(env or {})},
    )


def show(*arguments: str, shell: str = "dash") -> str:
    """Return what show prints, which must not depend on any iptables."""
    result = rules("show", *arguments, shell=shell, env={"LC_ALL": "C.UTF-8"})
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def without_digest(text: str) -> str:
    return re.sub(r"(csumfix|csumfix-trace):[0-9a-f]{8}:", r"\1:DIGEST:", text)


def digest(text: str) -> str:
    (found,) = set(re.findall(r"csumfix:([0-9a-f]{8}):", text))
    return str(found)


def assert_one_line(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """Errors are one line with a fixed beginning, whatever went wrong."""
    assert result.returncode == status, result
    assert re.fullmatch(r"csumfix-rules: [ -~]+: [ -~]+\n", result.stderr), result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("shell", SHELLS)
class TestShow:
    def test_nat(self, shell: str) -> None:
        text = show(
            "--divert=nat", "--queues=2", "--family=4", "--sport-range=32768:60999", shell=shell
        )
        assert text == NAT_2_QUEUES

    def test_packets_is_the_default(self, shell: str) -> None:
        assert without_digest(show("--family", "4", shell=shell)) == PACKETS_1_QUEUE

    def test_all(self, shell: str) -> None:
        text = show(
            "--divert", "all", "--port", "8472", "--port", "53", "--port", "4789", "--port", "53",
            "--queues", "3", "--queue-base", "7", "--sport-range", "1000:1099", "--family", "4",
            shell=shell,
        )  # fmt: skip
        assert without_digest(text) == ALL_3_QUEUES

    def test_trace(self, shell: str) -> None:
        text = show(
            "--trace", "--limit=100", "--port=8472", "--queue-base=9", "--family=4", shell=shell
        )
        assert without_digest(text) == TRACE

    def test_families(self, shell: str) -> None:
        ipv4 = show("--family", "4", shell=shell)
        ipv6 = show("--family", "6", shell=shell)
        assert ipv6 == ipv4.replace("# iptables", "# ip6tables")
        assert show(shell=shell) == show("--family=both", shell=shell) == ipv4 + ipv6


@pytest.mark.parametrize(
    ("name", "restore4", "restore6"),
    [
        ("iptables-legacy", "iptables-legacy-restore", "ip6tables-legacy-restore"),
        ("/no/dir/iptables-nft", "/no/dir/iptables-nft-restore", "/no/dir/ip6tables-nft-restore"),
        ("/iptables/iptables", "/iptables/iptables-restore", "/iptables/ip6tables-restore"),
    ],
)
def test_names_of_programs(name: str, restore4: str, restore6: str) -> None:
    for result in (
        rules("show", "--iptables", name),
        rules("show", env={"CSUMFIX_IPTABLES": name}),
        rules("show", "--iptables", name, env={"CSUMFIX_IPTABLES": "iptables-other"}),
    ):
        heads = [line for line in result.stdout.splitlines() if line.startswith("#")]
        assert heads == [f"# {restore4} --noflush", f"# {restore6} --noflush"]


def test_default_sport_range_is_that_of_the_namespace() -> None:
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert show("--queues", "5") == show("--queues", "5", "--sport-range", f"{low}:{high}")


@pytest.mark.parametrize("queues", [1, 2, 3, 7, 63, 64])
@pytest.mark.parametrize("sport_range", [(32768, 60999), (0, 65535), (5000, 5063), (65000, 65535)])
def test_slices_cover_every_port_and_are_even(queues: int, sport_range: tuple[int, int]) -> None:
    low, high = sport_range
    text = show("--queues", str(queues), "--sport-range", f"{low}:{high}", "--family", "4")
    assert re.findall(r"--queue-num (\d+) --queue-bypass\n", text) == [
        str(number) for number in range(queues)
    ]
    slices = [(int(a), int(b)) for a, b in re.findall(r"--sport (\d+):(\d+)", text)]
    if queues == 1:
        assert not slices  # the one queue takes every port, no match needed
        return
    assert len(slices) == queues
    assert (slices[0][0], slices[-1][1]) == (0, 65535)
    assert all(slices[i][1] + 1 == slices[i + 1][0] for i in range(queues - 1))
    sizes = [min(last, high) - max(first, low) + 1 for first, last in slices]
    assert max(sizes) - min(sizes) <= 1


def test_digest_depends_on_the_rules_and_on_nothing_else() -> None:
    base = digest(show())
    assert digest(show("--port", "8472", "--port", "4789", "--family", "6")) == base
    assert digest(show("--iptables", "iptables-legacy")) == base
    others = [
        digest(show(*options))
        for options in (
            ["--port", "8472"],
            ["--queue-base", "1"],
            ["--queues", "2", "--sport-range", "1:1000"],
            ["--queues", "2", "--sport-range", "1:1002"],
            ["--divert", "nat"],
            ["--divert", "all"],
            ["--max-length", "1499"],
            ["--limit", "10000"],
            ["--limit", "9999"],
        )
    ]
    assert len({base, *others}) == len(others) + 1
    assert digest(show("--divert=all", "--max-length=9")) == digest(show("--divert=all"))


@pytest.mark.parametrize("shell", SHELLS)
def test_help_names_every_exit_status(shell: str) -> None:
    result = rules("--help", shell=shell)
    assert (result.returncode, result.stderr) == (0, "")
    assert rules("-h", shell=shell).stdout == result.stdout
    assert rules("apply", "--help").stdout == result.stdout
    assert re.findall(r"^  ([0-5])  ", result.stdout, re.MULTILINE) == list("012345")
    assert max(map(len, result.stdout.splitlines())) < 100


# ---------------------------------------------------------------------------- stand-in tools


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Stand-ins that log their call, print an empty table, and accept everything."""
    for name in ("iptables", "ip6tables"):
        stand_in(tmp_path, f"{name}-save", "printf '*mangle\\n:POSTROUTING ACCEPT [0:0]\\n'")
        stand_in(tmp_path, f"{name}-restore", "cat >/dev/null")
    return tmp_path


def stand_in(directory: Path, name: str, body: str) -> None:
    path = directory / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >>{directory}/log\n{body}\n')
    path.chmod(0o755)


def calls(tools: Path) -> list[str]:
    log = tools / "log"
    return log.read_text().splitlines() if log.exists() else []


def stand_in_rules(
    tools: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return rules(*arguments, "--iptables", str(tools / "iptables"), env=env)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [""],
        ["frobnicate"],
        ["apply", "remove"],
        ["apply", "--frobnicate"],
        ["apply", "-p", "8472"],
        ["apply", "--port"],
        ["apply", "--port="],
        ["apply", "--port", "0"],
        ["apply", "--port", "65536"],
        ["apply", "--port", "08472"],
        ["apply", "--port", "-1"],
        ["apply", "--port", "8472,4789"],
        ["apply", "--port", "84\n72"],
        ["apply", "--port", "8472 -j DROP"],
        ["apply", "--port", "99999999999999999999"],
        ["apply", "--port", "\u00e4\u00f6"],
        ["apply", *(f"--port={port}" for port in range(1, 17))],
        ["apply", "--queues", "0"],
        ["apply", "--queues", "65"],
        ["apply", "--queue-base", "65536"],
        ["apply", "--queue-base", "65535", "--queues", "2"],
        ["apply", "--sport-range", "1000"],
        ["apply", "--sport-range", ":"],
        ["apply", "--sport-range", "1000:"],
        ["apply", "--sport-range", "1:2:3"],
        ["apply", "--sport-range", "2000:1999"],
        ["apply", "--sport-range", "0:65536"],
        ["apply", "--sport-range", "1000:1002", "--queues", "4"],
        ["apply", "--family", "5"],
        ["apply", "--divert", "some"],
        ["apply", "--max-length", "0"],
        ["apply", "--max-length", "1e3"],
        ["apply", "--limit", "0"],
        ["apply", "--limit", "10001"],
        ["apply", "--trace", "yes"],
        ["apply", "--trace=yes"],
        ["apply", "--iptables", "sh"],
        ["apply", "--iptables", ""],
        ["apply", "--iptables", "iptables-restore"],
        ["remove", "--family", "4 6"],
        ["status", "*"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40].encode("unicode_escape").decode() or "none",
)
def test_wrong_usage_runs_nothing(tools: Path, arguments: list[str]) -> None:
    result = rules(*arguments, env={"CSUMFIX_IPTABLES": str(tools / "iptables")})
    assert_one_line(result, 2, "see csumfix-rules --help")
    assert calls(tools) == []


@pytest.mark.parametrize("wait", ["0", "x", "1.5", "3601"])
def test_wrong_lock_wait(tools: Path, wait: str) -> None:
    result = stand_in_rules(tools, "apply", env={"CSUMFIX_LOCK_WAIT": wait})
    assert_one_line(result, 2, "CSUMFIX_LOCK_WAIT")
    assert calls(tools) == []


def test_limits_are_accepted() -> None:
    show(*(f"--port={port}" for port in range(1, 16)), "--port=1")
    show("--queues", "64", "--queue-base", "65472", "--sport-range", "0:63")
    show("--max-length", "65535")


@pytest.mark.parametrize("command", ["apply", "remove", "check", "status"])
@pytest.mark.parametrize("missing", ["save", "restore"])
def test_missing_iptables(tools: Path, command: str, missing: str) -> None:
    (tools / f"iptables-{missing}").unlink()
    assert_one_line(stand_in_rules(tools, command, "--family=4"), 3, str(tools), "install")
    assert calls(tools) == []


def test_missing_tool_is_not_taken_for_an_empty_digest(tmp_path: Path) -> None:
    for tool in ("cat", "cut", "grep", "sed", "sort", "tr"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    result = subprocess.run(
        ["/bin/dash", SCRIPT, "show"],
        capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert_one_line(result, 3, "cksum")


def test_each_plan_is_tested_before_it_is_loaded(tools: Path) -> None:
    result = stand_in_rules(
        tools, "apply", "--family", "4", env={"CSUMFIX_LOCK_WAIT": "7", "PATH": "/usr/bin:/bin"}
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [call for call in calls(tools) if "-restore" in call] == [
        "iptables-restore --noflush --counters -w 7 --test",
        "iptables-restore --noflush --counters -w 7",
    ]


@pytest.mark.parametrize(
    ("noise", "status", "words"),
    [
        ("iptables-restore: line 4 failed", 5, ["line 4 failed", "modprobe"]),
        ("Could not fetch: Permission denied (you must be root)", 4, ["CAP_NET_ADMIN"]),
        ("Another app is currently holding the xtables lock.", 5, ["lock", "CSUMFIX_LOCK_WAIT"]),
        ("Fatal: can't open lock file /x: Permission denied", 5, ["XTABLES_LOCKFILE"]),
        ("Error\\n\\nTry -h\\n" + "x" * 1000, 5, ["modprobe"]),
    ],
)
def test_refusals_become_one_line(tools: Path, noise: str, status: int, words: list[str]) -> None:
    stand_in(tools, "iptables-restore", f"cat >/dev/null; printf '%b' \"{noise}\" >&2; exit 4")
    result = stand_in_rules(tools, "apply", "--family=4")
    assert_one_line(result, status, *words)
    assert len(result.stderr) < 500
    assert not any("-restore" in call and "--test" not in call for call in calls(tools))


def test_table_of_native_nftables_rules_is_an_error_not_an_empty_table(tools: Path) -> None:
    stand_in(
        tools, "iptables-save", "echo \"# Table \\`mangle' is incompatible, use 'nft' tool.\""
    )
    for command in ("apply", "remove", "check", "status"):
        assert_one_line(stand_in_rules(tools, command, "--family=4"), 5, "nftables")


def test_kernel_without_the_table_has_no_rules(tools: Path) -> None:
    stand_in(tools, "iptables-save", "echo 'Cannot initialize: Table does not exist' >&2; exit 1")
    assert stand_in_rules(tools, "remove", "--family=4").returncode == 0
    assert_one_line(stand_in_rules(tools, "check", "--family=4"), 1, "no rules are loaded")
    status = stand_in_rules(tools, "status", "--family=4")
    assert status.stdout == "family=4 state=absent digest=- queues=-\n"
    assert status.returncode == 1
