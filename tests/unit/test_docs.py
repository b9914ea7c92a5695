"""What the pages say of links, commands, flags and rules is true."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from csumfix.cli import cli
from manual import rules

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("deploy/*/*.md"),
        ROOT / "bench/README.md",
    )
    if path.name != "CHANGELOG.md"  # it speaks of what is no more
)
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

LINK = re.compile(r"\]\((?!\w+://)([^)#\s]*)#?([^)\s]*)\)")
CODE = re.compile(r"^ {4}(.*)$|`([^`]+)`", re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
FLAGS_OF_OTHERS = {
    *("--checksum-fill", "--queue-num", "--queue-bypass", "--dport", "--dports"),  # iptables
    *("--sport", "--ctstate", "--ctstatus", "--physdev-is-bridged", "--match-set", "--noflush"),
    *("--now", "--net", "--add-set", "--exist"),  # systemctl, nsenter, SET
    *("--load", "--cure", "--rounds", "--compare-only", "--quick", "--write"),  # bench
}
PROGRAM = re.compile(r"(?:^|[\s/(])(csumfix(?:-rules)?)((?: +[^\s|;&`()]+)*)")


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def _code(page: Path) -> Iterator[str]:
    for block, span in CODE.findall(page.read_text()):
        yield (block or span).partition("  # ")[0].replace("-n csumfix", "")  # kubectl's


def _flags(command: click.Command) -> set[str]:
    names = {option for parameter in command.params for option in parameter.opts}
    return names | {"--help", "-h"}


def _commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from _commands(command)


OWN_FLAGS = {flag for command in _commands(cli) for flag in _flags(command)} | {"--version"}
SCRIPT_FLAGS = set(FLAG.findall(rules.usage()))
SCRIPT_COMMANDS = {"show", "apply", "remove", "check", "status"}


@EVERY_PAGE
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = []
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / unquote(path) if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            lost.append(f"{path}#{anchor}")
    assert not lost


@EVERY_PAGE
def test_every_command_exists_and_has_the_flags(page: Path) -> None:
    wrong = []
    for code in _code(page):
        for program, words in PROGRAM.findall(code):
            name, *rest = words.split() or [""]
            if program == "csumfix-rules":
                known, flags = SCRIPT_COMMANDS, SCRIPT_FLAGS
            else:
                known = set(cli.commands)
                flags = _flags(cli.commands[name]) if name in known else OWN_FLAGS
            if re.fullmatch("[a-z]+", name) and name not in known:
                wrong.append(f"{program} {name}")
            if name not in ("lab", "rules", "config"):  # what follows is another command's
                own = {word.partition("=")[0] for word in rest if word.startswith("--")}
                wrong += [f"{program} {name} {flag}" for flag in sorted(own - flags)]
    assert not wrong


@EVERY_PAGE
def test_every_flag_exists(page: Path) -> None:
    known = OWN_FLAGS | SCRIPT_FLAGS | FLAGS_OF_OTHERS
    spans = [span for _, span in CODE.findall(page.read_text()) if span.startswith("--")]
    named = {flag for span in spans for flag in FLAG.findall(span)}
    assert not named - known


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_that_developers_are_sent_to_exists(name: str) -> None:
    named = re.findall(
        r"`?\b((?:[\w-]+/)*[\w-]+\.(?:py|c|h|md|toml))\b", (ROOT / name).read_text()
    )
    below = [ROOT, ROOT / "csumfix", ROOT / "csrc"]
    assert len(named) > 5
    assert not [file for file in named if not any((place / file).exists() for place in below)]


@EVERY_PAGE
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        found
        for code in _code(page)
        for found in re.findall(r"(?:^|sudo |; |&& )make ([a-z][\w-]*)", code)
    }
    assert not named - targets


def _shown(*arguments: str) -> set[str]:
    result = subprocess.run(
        ["sh", rules.SCRIPT, "show", "--family=4", "--port=8472", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(result.stdout.splitlines())


def test_the_rules_in_how_it_works_are_those_that_are_loaded() -> None:
    text = (ROOT / "docs/how-it-works.md").read_text()
    printed = set(re.findall(r"^ {4}(-[AI] .*)$", text, re.MULTILINE))
    loaded = _shown("--lane=kernel", "--gate=conntrack") | _shown("--lane=queue")
    assert printed == {line for line in loaded if line.startswith("-")}


def test_every_page_names_the_version_that_there_is() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    deploy = ROOT / "deploy/kubernetes"
    for path in (deploy / "README.md", *deploy.rglob("kustomization.yaml")):
        named = re.findall(r"(?:csumfix:|newTag: )(\d[\w.]*)", path.read_text())
        assert set(named) <= {version}, path
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "debian/changelog").read_text().startswith(f"csumfix ({version}-")


def test_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def test_make_help_fits_80_columns() -> None:
    command = ["make", "--no-print-directory", "-C", str(ROOT), "help"]
    lines = subprocess.check_output(command, text=True).splitlines()
    assert len(lines) > 20
    assert max(map(len, lines)) <= 80
