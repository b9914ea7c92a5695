"""csumfix-rules beside other programs that change tables: rules are right after the next apply."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.test_rules_script import (
    FOREIGN_RULES,
    LANES,
    PATH,
    SCRIPT,
    Node,
    assert_error,
    namespace,
    wrap,
)


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with namespace(request.param) as made:
        yield made


@pytest.fixture
def nft() -> Iterator[Node]:
    with namespace("iptables-nft") as made:
        yield made


# ---------------------------------------------------------------------------- both variants


def other(node: Node) -> Node:
    """The same namespace by the other variant of iptables."""
    variant = "legacy" if node.iptables.endswith("nft") else "nft"
    return Node(node.pid, f"iptables-{variant}")


def legacy_tables(node: Node) -> str:
    return node.must("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")


@pytest.mark.parametrize("how", ["apply", "remove"])
def test_rules_of_the_other_variant_are_removed(node: Node, how: str) -> None:
    for family in "46":
        restore = other(node).tool(family, "-restore")
        node.must(restore, "--counters", stdin=FOREIGN_RULES)
    foreign = other(node).table("4"), other(node).table("6")
    other(node).apply(*LANES)
    node.run("true")
    found = node.check(*LANES)
    for family in "46":
        for chain in ("KERNEL", "QUEUE"):
            assert (
                f"difference family={family} lane={chain.lower()} what=other-variant "
                f"chain=CSUMFIX-{chain} program={other(node).iptables}\n"
            ) in found
    if how == "apply":
        node.apply(*LANES)
        assert node.check(*LANES) == ""
    else:
        node.remove()
    assert (other(node).table("4"), other(node).table("6")) == foreign


def test_legacy_tables_are_not_created_by_looking(nft: Node) -> None:
    for command in ("check", "apply", "status", "remove"):
        nft.rules(command)
    assert legacy_tables(nft) == ""


def test_other_variant_that_cannot_be_changed_is_named(nft: Node) -> None:
    """Rules that do the work are loaded, but packets are queued twice: say how to end that."""
    other(nft).apply(*LANES)
    nft.must("mount", "-t", "tmpfs", "-o", "ro", "none", "/run")  # for legacy iptables' lock file
    result = nft.rules("apply", *LANES)
    assert_error(result, 5, "IPv4 rules of iptables-legacy failed", "/run/xtables.lock")
    assert nft.status().count("state=present") == 4
    assert "what=other-variant" in nft.check(*LANES)


def test_family_of_the_other_variant_that_is_not_to_be_removed_stays(nft: Node) -> None:
    other(nft).apply()
    nft.remove("--family=4")
    assert "CSUMFIX" not in other(nft).table("4")
    assert "CSUMFIX" in other(nft).table("6")


# ---------------------------------------------------------------------------- native nft rules


def test_rules_beside_native_ones_are_removed(nft: Node) -> None:
    for family in "46":
        nft.must(nft.tool(family, "-restore"), stdin=FOREIGN_RULES)
    script = "".join(f"add rule {ip} mangle OUTPUT ct state new accept\n" for ip in ("ip", "ip6"))
    nft.must("nft", "-f", "-", stdin=script)
    native = nft.must("nft", "--stateless", "list", "ruleset")
    handle = nft.must("nft", "-a", "list", "chain", "ip", "mangle", "OUTPUT")
    (number,) = re.findall(r"ct state new accept # handle (\d+)", handle)
    nft.must("nft", "delete", "rule", "ip", "mangle", "OUTPUT", "handle", number)
    nft.must("nft", "flush", "chain", "ip6", "mangle", "OUTPUT")
    assert nft.rules("apply", *LANES, "--gate=conntrack").returncode == 0
    nft.must("nft", "-f", "-", stdin=script)

    for command in ("apply", "check", "status"):
        assert_error(nft.rules(command), 5, "native nftables rules")
    nft.remove()
    left = nft.must("nft", "--stateless", "list", "ruleset")
    assert not re.search(r"CSUMFIX-(KERNEL|QUEUE)\b(?!2)", left), left
    assert left.count("ct state new accept") == 2
    assert "CSUMFIX-KERNEL2" in native
    assert "CSUMFIX-KERNEL2" in left


# ---------------------------------------------------------------------------- at the same time


def test_apply_and_remove_at_the_same_time(node: Node, tmp_path: Path) -> None:
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    foreign = node.table()
    loop = f"for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do {SCRIPT} %s || exit; done"
    commands = ("apply --lane=both", "apply --queues=2 --lane=queue", "remove", "remove")
    environment = {"PATH": PATH, "CSUMFIX_IPTABLES": node.iptables}
    processes = [
        subprocess.Popen(
            node.command("sh", "-c", loop % command),
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for command in commands
    ]  # fmt: skip
    results = [(process.communicate(timeout=60)[0], process.returncode) for process in processes]
    assert results == [("", 0)] * len(commands)
    node.apply(*LANES)
    assert node.check(*LANES) == ""
    node.remove()
    assert node.table() == foreign


def test_rules_that_change_between_reading_and_loading(node: Node, tmp_path: Path) -> None:
    """Another removes our rules right after they were read: apply must load them all the same."""
    node.apply("--lane=both", "--queues=2")
    save = node.tool("4", "-save")
    wrap(
        tmp_path,
        save,
        f'PATH={PATH}\n{save} "$@"\n'
        f"[ -e {tmp_path}/done ] || {{ >{tmp_path}/done; {SCRIPT} remove; }}",
    )
    result = node.rules("apply", "--lane=queue", env={"PATH": f"{tmp_path}:{PATH}"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "done").exists()
    assert node.check("--lane=queue") == ""


def test_restore_that_flushes_the_table(node: Node) -> None:
    node.apply(*LANES)
    node.must(node.tool("4", "-restore"), "--counters", stdin=FOREIGN_RULES)
    foreign = node.table()
    assert "what=missing" in node.check(*LANES)
    node.apply(*LANES)
    assert node.check(*LANES) == ""
    node.remove()
    assert node.table() == foreign


@pytest.mark.parametrize("noflush", [[], ["--noflush"]], ids=["flush", "noflush"])
def test_our_own_rules_saved_and_restored(node: Node, noflush: list[str]) -> None:
    """With --noflush the rules and jumps of built-in chains double."""
    node.add_set()
    options = (*LANES, "--leaving-port=53")
    node.apply(*options)
    good = node.table()
    saved = node.must(node.tool("4", "-save"))
    node.must(node.tool("4", "-restore"), *noflush, stdin=saved)
    assert node.check(*options).count("how=edited") + node.check(*options).count(
        "how=foreign"
    ) == (3 if noflush else 0)
    node.apply(*options)
    assert node.check(*options) == ""
    assert node.table() == good
