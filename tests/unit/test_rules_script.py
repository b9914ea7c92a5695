"""csumfix-rules without a kernel: the text of show, arguments, and what stand-in tools provoke."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "iptables" / "csumfix-rules"
SHELLS = {
    "dash": ["dash"],
    "bash": ["bash", "--posix"],
    "busybox": ["busybox", "sh"],
}

KERNEL = """\
# iptables-restore --noflush
*mangle
:CSUMFIX-KERNEL - [0:0]
-A CSUMFIX-KERNEL -m conntrack ! --ctstate SNAT,DNAT --ctstatus CONFIRMED -j RETURN
-A CSUMFIX-KERNEL -m conntrack --ctstatus CONFIRMED
-A CSUMFIX-KERNEL -p udp -m udp --dport 4789 -j CHECKSUM --checksum-fill
-A CSUMFIX-KERNEL -p udp -m udp --dport 8472 -j CHECKSUM --checksum-fill
-I OUTPUT 1 -p udp -m multiport --dports 4789,8472 -j CSUMFIX-KERNEL
COMMIT
# matches in OUTPUT: other UDP 1, tunnel 2, tunnel that NAT may touch 5
"""

KERNEL_WITHOUT_GATE = """\
# iptables-restore --noflush
*mangle
:CSUMFIX-KERNEL - [0:0]
-A CSUMFIX-KERNEL -p udp -m udp --dport 8472 -j CHECKSUM --checksum-fill
-I OUTPUT 1 -p udp -m udp --dport 8472 -j CSUMFIX-KERNEL
COMMIT
# matches in OUTPUT: other UDP 1, tunnel 2
"""

QUEUE_1 = """\
# iptables-restore --noflush
*mangle
:CSUMFIX-QUEUE - [0:0]
-A CSUMFIX-QUEUE -j NFQUEUE --queue-num 0 --queue-bypass
-A POSTROUTING -p udp -m multiport --dports 4789,8472 -j CSUMFIX-QUEUE
COMMIT
# matches in POSTROUTING: other UDP 1, tunnel at most 1
"""

QUEUE_3 = """\
# iptables-restore --noflush
*mangle
:CSUMFIX-QUEUE - [0:0]
-A CSUMFIX-QUEUE -p udp -m udp --sport 0:1032 -j NFQUEUE --queue-num 7 --queue-bypass
-A CSUMFIX-QUEUE -p udp -m udp --sport 1033:1065 -j NFQUEUE --queue-num 8 --queue-bypass
-A CSUMFIX-QUEUE -p udp -m udp --sport 1066:65535 -j NFQUEUE --queue-num 9 --queue-bypass
-A POSTROUTING -p udp -m multiport --dports 53,4789,8472 -j CSUMFIX-QUEUE
COMMIT
# matches in POSTROUTING: other UDP 1, tunnel at most 4
"""

LEAVING = """\
# iptables-restore --noflush
*mangle
:CSUMFIX-KERNEL - [0:0]
:CSUMFIX-QUEUE - [0:0]
:CSUMFIX-LEAVE - [0:0]
-A CSUMFIX-KERNEL -p udp -m udp --dport 8472 -j CHECKSUM --checksum-fill
-A CSUMFIX-QUEUE -j NFQUEUE --queue-num 0 --queue-bypass
-A CSUMFIX-LEAVE -p udp -m set ! --match-set csumfix-flows src -j RETURN
-A CSUMFIX-LEAVE -j SET --add-set csumfix-flows src --exist
-A CSUMFIX-LEAVE -g CSUMFIX-QUEUE
-I OUTPUT 1 -p udp -m udp --dport 8472 -j CSUMFIX-KERNEL
-A POSTROUTING -p udp -m udp --dport 4789 -j CSUMFIX-QUEUE
-A POSTROUTING -p udp -m udp --dport 8472 -j CSUMFIX-LEAVE
COMMIT
# matches in OUTPUT: other UDP 1, tunnel 2
# matches in POSTROUTING: other UDP 2, tunnel at most 3
"""

NFT_TABLE = """\
# nft -f -
add table ip csumfix
delete table ip csumfix
add table ip csumfix
add set ip csumfix busy { type inet_service; size 65536; flags dynamic,timeout; timeout 1s; }
add set ip csumfix flows { type inet_service; size 65536; flags dynamic,timeout; timeout 5s; }
add set ip csumfix opened { type inet_service; size 65536; flags dynamic,timeout; timeout 1s; }
add chain ip csumfix postrouting { type filter hook postrouting priority mangle; policy accept; }
add chain ip csumfix CSUMFIX-KERNEL { }
add chain ip csumfix CSUMFIX-FILL { }
add chain ip csumfix CSUMFIX-QUEUE { }
add chain ip csumfix CSUMFIX-LEAVE { }
"""

NFT_QUEUE = """\
add rule ip csumfix postrouting udp dport { 53, 4789, 8472 } counter goto CSUMFIX-QUEUE
add rule ip csumfix CSUMFIX-QUEUE udp sport 0-1032 counter queue flags bypass to 7
add rule ip csumfix CSUMFIX-QUEUE udp sport 1033-1065 counter queue flags bypass to 8
add rule ip csumfix CSUMFIX-QUEUE udp sport 1066-65535 counter queue flags bypass to 9
"""

NFT_CLOSED = """\
add rule ip csumfix postrouting udp dport 8472 counter goto CSUMFIX-KERNEL
add rule ip csumfix CSUMFIX-FILL udp dport 8472 counter goto CSUMFIX-QUEUE
add rule ip csumfix CSUMFIX-QUEUE counter queue flags bypass to 0
"""

NFT_BRIDGED = "add rule ip csumfix CSUMFIX-QUEUE iif 0 counter accept"
BRIDGED = "-A CSUMFIX-QUEUE -m physdev --physdev-is-bridged -j RETURN"
LEAVING_OPTIONS = ("--kernel-port=8472", "--queue-port=4789", "--leaving-port=8472", "--gate=none")


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
    """Return what show prints, which must depend neither on iptables nor on br_netfilter."""
    arguments = ("--bridged=queue", *arguments)
    result = rules("show", *arguments, shell=shell, env={"LC_ALL": "C.UTF-8"})
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def assert_one_line(
    result: subprocess.CompletedProcess[str], status: int, *words: str, output: str = ""
) -> None:
    """Errors are one line with a fixed beginning, whatever went wrong."""
    assert result.returncode == status, result
    assert re.fullmatch(r"csumfix-rules: [ -~]+: [ -~]+\n", result.stderr), result.stderr
    assert result.stdout == output
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("shell", SHELLS)
class TestShow:
    def test_kernel_lane_is_the_default(self, shell: str) -> None:
        assert show("--gate=conntrack", "--family", "4", shell=shell) == KERNEL

    def test_kernel_lane_without_gate(self, shell: str) -> None:
        text = show("--gate", "none", "--port", "8472", "--family=4", shell=shell)
        assert text == KERNEL_WITHOUT_GATE

    def test_queue_lane(self, shell: str) -> None:
        assert show("--lane=queue", "--family=4", shell=shell) == QUEUE_1

    def test_several_queues(self, shell: str) -> None:
        text = show(
            "--lane", "queue", "--port", "8472", "--port", "53", "--port", "4789", "--port", "53",
            "--queues", "3", "--queue-base", "7", "--sport-range", "1000:1099", "--family", "4",
            shell=shell,
        )  # fmt: skip
        assert text == QUEUE_3

    def test_leaving(self, shell: str) -> None:
        assert show(*LEAVING_OPTIONS, "--family=4", shell=shell) == LEAVING

    def test_recording_is_leaving_without_the_way_out(self, shell: str) -> None:
        recording = show(*LEAVING_OPTIONS, "--record", "--family=4", shell=shell)
        gone = [line for line in LEAVING.splitlines() if "--match-set" in line]
        assert len(gone) == 1
        assert recording == LEAVING.replace(gone[0] + "\n", "").replace("at most 3", "at most 2")

    def test_families(self, shell: str) -> None:
        ipv4 = show("--family", "4", "--gate=none", shell=shell)
        ipv6 = show("--family", "6", "--gate=none", shell=shell)
        assert ipv6 == ipv4.replace("# iptables", "# ip6tables")
        both = ipv4 + ipv6
        assert show("--gate=none", shell=shell) == both
        assert show("--gate=none", "--family=both", shell=shell) == both


@pytest.mark.parametrize("shell", SHELLS)
class TestShowNft:
    def show(self, *arguments: str, shell: str) -> str:
        return show("--backend=nft", "--family=4", *arguments, shell=shell)

    def test_queue_lane(self, shell: str) -> None:
        text = self.show(
            *("--lane", "queue", "--port", "8472", "--port", "53", "--port", "4789"),
            *("--queues", "3", "--queue-base", "7", "--sport-range", "1000:1099"),
            shell=shell,
        )
        assert text == NFT_TABLE + NFT_QUEUE

    def test_nothing_is_queued_without_conntrack(self, shell: str) -> None:
        gated = self.show("--port=8472", "--gate=conntrack", shell=shell)
        closed = [line for line in gated.splitlines() if "csumfix CSUMFIX-KERNEL " not in line]
        assert NFT_TABLE + NFT_CLOSED in (
            "\n".join(closed) + "\n",
            self.show("--port=8472", shell=shell),
        )

    def test_everything_is_queued_without_gate(self, shell: str) -> None:
        text = self.show("--port=8472", "--gate=none", shell=shell)
        rule = "add rule ip csumfix CSUMFIX-KERNEL counter goto CSUMFIX-FILL\n"
        assert rule in text
        assert text.replace(rule, "") == NFT_TABLE + NFT_CLOSED

    def test_ipv6_has_a_table_of_its_own(self, shell: str) -> None:
        both = show("--backend=nft", "--gate=none", shell=shell)
        ipv4 = self.show("--gate=none", shell=shell)
        assert both == ipv4 + ipv4.replace(" ip ", " ip6 ")

    def test_a_slice_of_one_port_is_a_number(self, shell: str) -> None:
        slices = ("--queues=64", "--sport-range=0:63")
        text = self.show("--lane=queue", *slices, shell=shell)
        assert " udp sport 0 counter queue flags bypass to 0\n" in text
        assert " udp sport 63-65535 counter queue flags bypass to 63\n" in text


def test_both_lanes_are_the_two_lanes() -> None:
    both = show("--lane=both", "--family=4", "--gate=conntrack")
    assert set(both.splitlines()) == {*KERNEL.splitlines(), *QUEUE_1.splitlines()}


def test_lanes_differ_per_port() -> None:
    text = show("--kernel-port=1", "--queue-port=2", "--lane=both", "--port=3", "--family=4")
    assert "-I OUTPUT 1 -p udp -m multiport --dports 1,3 -j CSUMFIX-KERNEL\n" in text
    assert "-A POSTROUTING -p udp -m multiport --dports 2,3 -j CSUMFIX-QUEUE\n" in text
    assert re.findall(r"--dport (\d+) -j CHECKSUM", text) == ["1", "3"]


def test_automatic_gate_is_one_of_the_two() -> None:
    """Which one is for the lab to test: it depends on the namespace."""
    assert show("--family=4") in {show("--family=4", f"--gate={g}") for g in ("conntrack", "none")}


@pytest.mark.parametrize(
    ("number", "sizes"),
    [(1, [1]), (15, [15]), (16, [15, 1]), (30, [15, 15]), (100, [15] * 6 + [10])],
)
def test_any_number_of_ports(number: int, sizes: list[int]) -> None:
    ports = [str(port) for port in range(1000, 1000 + number)]
    text = show("--lane=both", "--family=4", *(f"--port={port}" for port in reversed(ports)))
    for chain, way in (("KERNEL", r"-I OUTPUT (\d+)"), ("QUEUE", "-A (POSTROUTING)")):
        found = re.findall(
            rf"^{way} -p udp -m \w+ --dports? (\S+) -j CSUMFIX-{chain}$", text, re.M
        )
        assert [lists.count(",") + 1 for _, lists in found] == sizes
        assert ",".join(lists for _, lists in found).split(",") == ports
        if chain == "KERNEL":  # each after the one before it
            assert [int(place) for place, _ in found] == list(range(1, len(sizes) + 1))
    assert re.findall(r"--dport (\d+) -j CHECKSUM", text) == ports
    assert f"# matches in POSTROUTING: other UDP {len(sizes)}, " in text


def test_bridged_packets_skip_the_queue_where_there_can_be_any() -> None:
    queue = show("--lane=queue", "--family=4")
    skip = show("--lane=queue", "--family=4", "--bridged=skip")
    if Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists():
        assert f"{BRIDGED}\n" in skip
        assert skip.replace(f"{BRIDGED}\n", "").replace("at most 2", "at most 1") == queue
    else:
        assert skip == queue


def test_sample_at_the_top_of_the_script_is_what_is_loaded() -> None:
    comment = SCRIPT.read_text().split("# Theory of operation")[0]
    sample = re.findall(r"^#   (-A .*)", comment, re.M)
    queues = ("--queues=2", "--sport-range=32768:60999")
    shown = (
        show("--port=8472", "--gate=conntrack")
        + show("--lane=queue", *queues)
        + show("--leaving-port=8473")
    )
    wanted = [line.replace("-I OUTPUT 1 ", "-A OUTPUT ") for line in shown.splitlines()]
    assert len(sample) == 12
    assert set(sample) - set(wanted) == {BRIDGED}


def test_sample_of_nft_at_the_top_of_the_script_is_what_is_loaded() -> None:
    comment = SCRIPT.read_text().split("# Theory of operation")[0].replace("\n#       ", " ")
    sample = re.findall(r"^#   (add .*)", comment, re.M)
    shown = show(
        *("--backend=nft", "--family=4", "--gate=conntrack"),
        *("--kernel-port=8472", "--kernel-port=8473", "--queue-port=4789", "--leaving-port=8473"),
        *("--queues=2", "--sport-range=32768:60999"),
    )
    wanted = [line for line in shown.splitlines() if line.startswith("add ")]
    sample.remove(NFT_BRIDGED)
    assert wanted == ["add table ip csumfix"] * 2 + sample


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
        heads = [line for line in result.stdout.splitlines() if "-restore" in line]
        assert heads == [f"# {restore4} --noflush", f"# {restore6} --noflush"]


def test_default_sport_range_is_that_of_the_namespace() -> None:
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    five = ("--lane=queue", "--queues", "5")
    assert show(*five) == show(*five, "--sport-range", f"{low}:{high}")


@pytest.mark.parametrize("queues", [1, 2, 3, 7, 63, 64])
@pytest.mark.parametrize("sport_range", [(32768, 60999), (0, 65535), (5000, 5063), (65000, 65535)])
def test_slices_cover_every_port_and_are_even(queues: int, sport_range: tuple[int, int]) -> None:
    low, high = sport_range
    text = show(
        "--lane=queue", "--queues", str(queues), "--sport-range", f"{low}:{high}", "--family", "4"
    )
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
        ["apply", "--kernel-port", "0"],
        ["apply", "--queue-port", "65536"],
        ["apply", "--leaving-port", "x"],
        ["apply", "--queue-port", "1", "--leaving-port", "1"],
        ["apply", "--lane", "both", "--port", "1", "--leaving-port", "1"],
        ["apply", "--lane", "some"],
        ["apply", "--lane", "kernel queue"],
        ["apply", "--lane="],
        ["apply", "--gate", "maybe"],
        ["apply", "--bridged", "maybe"],
        ["apply", "--record"],
        ["apply", "--record=yes", "--leaving-port", "1"],
        ["apply", "--flows", ""],
        ["apply", "--flows", "-j"],
        ["apply", "--flows", "a b"],
        ["apply", "--flows", "a,b"],
        ["apply", "--flows", "x" * 32],
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
        ["apply", "--lane=queue", "--sport-range", "1000:1002", "--queues", "4"],
        ["apply", "--family", "5"],
        ["apply", "--divert", "nat"],
        ["apply", "--max-length", "1500"],
        ["apply", "--limit", "100"],
        ["apply", "--trace"],
        ["apply", "--backend", "ebtables"],
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
    show("--port=1", "--port=65535", "--port=1")
    show("--lane=queue", "--queues", "64", "--queue-base", "65472", "--sport-range", "0:63")
    show("--queues", "64", "--sport-range", "0:1")  # nothing is queued
    show("--leaving-port=1", "--flows", "x" * 31)


def bare_rules(
    tools: Path, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the script where no other programs are installed than the stand-ins."""
    for tool in ("awk", "cat", "cut", "grep", "sed", "sort", "tr", "sh", "uname"):
        if not (tools / tool).exists():
            (tools / tool).symlink_to(f"/usr/bin/{tool}")
    return subprocess.run(
        ["/bin/dash", "-s", *arguments],
        # With its own PATH, the script would find the real ones.
        input=SCRIPT.read_text().replace(":/usr/sbin:/sbin", ""),
        capture_output=True, text=True, check=False, env={"PATH": str(tools), **(env or {})},
    )  # fmt: skip


NOTE = (
    "csumfix-rules: note: nft cannot complete checksums: "
    "packets pass unrepaired without the csumfix service\n"
)
NO_TABLE = "echo 'Error: No such file or directory' >&2; exit 1"
EMPTY = f'case "$*" in *list*) {NO_TABLE} ;; *) cat >>$0.input ;; esac'


@pytest.mark.parametrize("command", ["show", "apply", "remove", "check", "status"])
def test_nft_is_chosen_where_iptables_is_not_installed(tmp_path: Path, command: str) -> None:
    stand_in(tmp_path, "nft", EMPTY)
    result = bare_rules(tmp_path, command, "--family=4", "--gate=none")
    absent = command in ("check", "status")
    note = result.stderr if command == "apply" else ""
    assert (result.returncode, result.stderr) == (1 if absent else 0, note)
    assert note == (NOTE if command == "apply" else "")
    loaded = (tmp_path / "nft.input").read_text() if command == "apply" else result.stdout
    assert "csumfix" in loaded or command in ("remove", "status")
    if command in ("apply", "status"):
        assert "backend=nft why=iptables is not installed\n" in result.stdout
    if command == "apply":
        nft = [call for call in calls(tmp_path) if " -f " in call]
        assert nft == ["nft --check -f -", "nft -f -"]


@pytest.mark.parametrize("command", ["apply", "remove", "check", "status"])
def test_neither_iptables_nor_nft(tmp_path: Path, command: str) -> None:
    assert_one_line(bare_rules(tmp_path, command, "--family=4"), 3, "iptables", "--backend")


@pytest.mark.parametrize("command", ["apply", "remove", "check", "status"])
def test_missing_nft(tools: Path, command: str) -> None:
    result = bare_rules(tools, command, "--backend=nft", "--family=4")
    assert_one_line(result, 3, "nft not found", "apt-get install nftables", "--backend")


@pytest.mark.parametrize("by", [("--iptables=iptables",), ()], ids=["option", "variable"])
def test_who_names_iptables_gets_iptables(tmp_path: Path, by: tuple[str, ...]) -> None:
    stand_in(tmp_path, "nft", EMPTY)
    env = {} if by else {"CSUMFIX_IPTABLES": "iptables"}
    result = bare_rules(tmp_path, "apply", "--family=4", *by, env=env)
    assert_one_line(result, 3, "iptables is not installed")


def refusing(tools: Path, text: str) -> None:
    body = f'input=$(cat); case $input in *{text}*) echo "no {text} here" >&2; exit 1 ;; esac'
    stand_in(tools, "iptables-restore", body)


def test_nft_is_chosen_where_the_kernel_refuses_the_rules_of_iptables(tools: Path) -> None:
    refusing(tools, "CHECKSUM")
    stand_in(tools, "nft", EMPTY)
    result = bare_rules(tools, "apply", "--family=4", "--gate=none", "--port=8472")
    why = "iptables cannot load the rules (no CHECKSUM here)"
    assert (result.stdout, result.stderr) == (f"backend=nft why={why}\n", NOTE)
    assert "queue flags bypass to 0" in (tools / "nft.input").read_text()


def test_another_program_in_the_way_is_no_reason_to_turn_to_nft(tools: Path) -> None:
    """Each lane can be loaded, but not our rules."""
    refusing(tools, "OUTPUT")
    stand_in(tools, "nft", EMPTY)
    result = bare_rules(tools, "apply", "--family=4", "--gate=none", "--port=8472")
    assert_one_line(result, 5, "no OUTPUT here", "xt_CHECKSUM")
    assert not (tools / "nft.input").exists()


def test_the_refusal_of_iptables_is_told_if_nft_refuses_as_well(tools: Path) -> None:
    refusing(tools, "CHECKSUM")
    stand_in(tools, "nft", f'case "$*" in *list*) {NO_TABLE} ;; *) cat >/dev/null; exit 1 ;; esac')
    result = bare_rules(tools, "apply", "--family=4", "--lane=both", "--gate=none")
    refused = "refused family=4 lane=kernel\n"
    assert_one_line(result, 5, "no CHECKSUM here", "xt_CHECKSUM", "nft_queue", output=refused)


@pytest.mark.parametrize(
    ("noise", "status", "words"),
    [
        (
            "/dev/stdin:3:1-9: Error: Could not process rule: No such file\n\t  ^^^^",
            5,
            ["modprobe"],
        ),
        ("Operation not permitted (you must be root)", 4, ["CAP_NET_ADMIN"]),
    ],
)
def test_refusals_of_nft_become_one_line(
    tools: Path, noise: str, status: int, words: list[str]
) -> None:
    stand_in(
        tools,
        "nft",
        f'case "$*" in *list*) {NO_TABLE} ;; esac; cat >/dev/null; printf "{noise}" >&2; exit 1',
    )
    refused = "refused family=4 lane=kernel\nrefused family=4 lane=queue\n"
    result = bare_rules(tools, "apply", "--backend=nft", "--family=4", "--lane=both")
    assert_one_line(result, status, *words, output=refused if status == 5 else "")


def test_a_crash_of_nft_is_an_error_and_not_an_absent_table(tools: Path) -> None:
    """As older versions of it crash while they read sets that newer ones have made."""
    stand_in(tools, "nft", "kill -SEGV $$")
    for command in ("apply", "check", "status", "remove"):
        result = bare_rules(tools, command, "--backend=nft", "--family=4")
        assert_one_line(result, 5, "Segmentation fault", "before 1.1.2")


@pytest.mark.parametrize("command", ["apply", "remove", "check", "status"])
@pytest.mark.parametrize("missing", ["save", "restore"])
def test_missing_iptables(tools: Path, command: str, missing: str) -> None:
    (tools / f"iptables-{missing}").unlink()
    assert_one_line(stand_in_rules(tools, command, "--family=4"), 3, str(tools), "install")
    assert calls(tools) == []


def test_missing_tool_is_not_taken_for_absent_rules(tmp_path: Path) -> None:
    for tool in ("cat", "cut", "grep", "sed", "sort", "tr"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    result = subprocess.run(
        ["/bin/dash", SCRIPT, "show"],
        capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert_one_line(result, 3, "awk")


def test_each_plan_is_tested_before_it_is_loaded(tools: Path) -> None:
    result = stand_in_rules(
        tools, "apply", "--family", "4", env={"CSUMFIX_LOCK_WAIT": "7", "PATH": "/usr/bin:/bin"}
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [call for call in calls(tools) if "-restore" in call] == [
        "iptables-restore --noflush --counters -w 7 --test",
        "iptables-restore --noflush --counters -w 7",
    ]


OTHER = "iptables-restore: line 4 failed"
REFUSED = "refused family=4 lane=kernel\n"


@pytest.mark.parametrize(
    ("noise", "status", "words", "output"),
    [
        (OTHER, 5, ["line 4 failed", "modprobe"], REFUSED),
        ("Could not fetch: Permission denied (you must be root)", 4, ["CAP_NET_ADMIN"], ""),
        ("Another app is currently holding the xtables lock.", 5, ["lock", "CSUMFIX_LOCK_"], ""),
        ("Fatal: can't open lock file /x: Permission denied", 5, ["XTABLES_LOCKFILE"], ""),
        ("Set csumfix-flows doesn't exist.", 5, ["ipset create csumfix-flows"], REFUSED),
        ("Error\\n\\nTry -h\\n" + "x" * 1000, 5, ["modprobe"], REFUSED),
    ],
)
def test_refusals_become_one_line(
    tools: Path, noise: str, status: int, words: list[str], output: str
) -> None:
    stand_in(tools, "iptables-restore", f"cat >/dev/null; printf '%b' \"{noise}\" >&2; exit 4")
    result = stand_in_rules(tools, "apply", "--family=4")
    assert_one_line(result, status, *words, output=output)
    assert len(result.stderr) < 500


@pytest.mark.parametrize(
    ("missing", "lane"), [("CHECKSUM", "kernel"), ("conntrack", "kernel"), ("NFQUEUE", "queue")]
)
def test_refused_lane_is_found(tools: Path, missing: str, lane: str) -> None:
    """Each lane is tried in a chain that no packet meets, and nothing else is loaded."""
    lacks = (
        f'input=$(cat); echo "$input" >>{tools}/log; case $input in *{missing}*) exit 1 ;; esac'
    )
    stand_in(tools, "iptables-restore", lacks)
    result = stand_in_rules(tools, "apply", "--family=4", "--lane=both", "--gate=conntrack")
    assert_one_line(result, 5, "modprobe", output=f"refused family=4 lane={lane}\n")
    tested = "iptables-restore --noflush --counters -w 10 --test"
    after = calls(tools)
    after = after[after.index(tested) + 1 :]
    after = after[after.index("COMMIT") + 1 :]
    assert {line.split()[1] for line in after if line.startswith("-")} == {"CSUMFIX-PROBE"}
    assert not any(re.search("-[jg] CSUMFIX", line) for line in after)


def native_rules(tools: Path) -> None:
    """What iptables-nft-save says of a table with rules that it does not understand."""
    stand_in(
        tools, "iptables-save", "echo \"# Table \\`mangle' is incompatible, use 'nft' tool.\""
    )


def test_table_of_native_nftables_rules_is_an_error_not_an_empty_table(tools: Path) -> None:
    native_rules(tools)
    for command in ("apply", "check", "status"):
        assert_one_line(stand_in_rules(tools, command, "--family=4"), 5, "nftables")


@pytest.mark.parametrize("nft", ["echo 'Error: no such thing' >&2; exit 1", None])
def test_native_rules_are_not_removed_without_nft(tools: Path, nft: str | None) -> None:
    native_rules(tools)
    if nft:
        stand_in(tools, "nft", nft)
    result = bare_rules(tools, "remove", "--family=4", "--iptables", str(tools / "iptables"))
    if nft:
        assert_one_line(result, 5, "removing the rules of IPv4 failed", "no such thing")
    else:
        assert_one_line(result, 3, "nft not found", "apt-get install nftables")


@pytest.mark.parametrize("noise", ["Permission denied (you must be root)", "no such thing"])
def test_remove_cleans_the_rest_if_a_family_cannot_be_read(tools: Path, noise: str) -> None:
    stand_in(tools, "iptables-save", f"echo '{noise}' >&2; exit 1")
    stand_in(tools, "ip6tables-save", "printf '%s\\n' '*mangle' ':CSUMFIX-KERNEL - [0:0]' COMMIT")
    stand_in(tools, "ip6tables-restore", "cat >>$0.input")
    listing = "table ip csumfix {\\n\\tchain CSUMFIX-KERNEL {\\n\\t}\\n}"
    stand_in(
        tools, "nft", f"case \"$*\" in *list*) printf '{listing}\\n' ;; *) cat >>$0.input ;; esac"
    )
    result = bare_rules(tools, "remove", "--iptables", str(tools / "iptables"))
    code = 4 if "Permission" in noise else 5
    assert_one_line(result, code, "reading IPv4 rules failed")
    assert "-X CSUMFIX-KERNEL" in (tools / "ip6tables-restore.input").read_text()
    assert "delete table ip csumfix" in (tools / "nft.input").read_text()


def test_kernel_without_the_table_has_no_rules(tools: Path) -> None:
    stand_in(tools, "iptables-save", "echo 'Cannot initialize: Table does not exist' >&2; exit 1")
    assert stand_in_rules(tools, "remove", "--family=4").returncode == 0
    check = stand_in_rules(tools, "check", "--family=4")
    assert check.stdout == "difference family=4 lane=kernel what=missing chain=CSUMFIX-KERNEL\n"
    assert (check.returncode, check.stderr) == (1, "")
    status = stand_in_rules(tools, "status", "--family=4")
    assert status.stdout == (
        "backend=iptables why=it was asked for\n"
        "family=4 lane=kernel state=absent ports=- gate=-\n"
        "family=4 lane=queue state=absent ports=- queues=- leaving=- record=- bridged=-\n"
    )
    assert status.returncode == 1
