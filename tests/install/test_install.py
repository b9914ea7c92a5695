"""make install and make uninstall with a DESTDIR, as packagers use them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.install.tree import PYTHON, ROOT, files, make

VENV = "/usr/local/lib/csumfix/venv"
DOC = "/usr/local/share/doc/csumfix"
UNIT = "/usr/local/lib/systemd/system/csumfix.service"


@pytest.fixture
def copy(stage: Path, tmp_path: Path) -> Path:
    """Return a copy of the installed tree, to be spoilt."""
    return Path(shutil.copytree(stage, tmp_path / "copy", symlinks=True))


def test_puts_each_file_where_it_is_looked_for(stage: Path) -> None:
    trees = (VENV, f"{DOC}/deploy/", f"{DOC}/docs/")
    installed = {path for path in files(stage) if not path.startswith(trees)}
    assert installed == {
        "/etc/csumfix.toml",
        "/etc/fish/completions/csumfix.fish",
        "/usr/local/bin/csumfix",
        "/usr/local/bin/csumfix-rules",
        UNIT,
        "/usr/local/share/bash-completion/completions/csumfix",
        "/usr/local/share/doc/csumfix/ARCHITECTURE.md",
        "/usr/local/share/doc/csumfix/CHANGELOG.md",
        "/usr/local/share/doc/csumfix/CONTRIBUTING.md",
        "/usr/local/share/doc/csumfix/LICENSE",
        "/usr/local/share/doc/csumfix/README.md",
        "/usr/local/share/doc/csumfix/bench/README.md",
        "/usr/local/share/doc/csumfix/bench/results/latest.md",
        "/usr/local/share/doc/csumfix/bench/results/latest.png",
        "/usr/local/share/doc/csumfix/csumfix.toml",
        "/usr/local/share/doc/csumfix/legacy-iptables.conf",
        "/usr/local/share/man/man5/csumfix.toml.5",
        "/usr/local/share/man/man8/csumfix-rules.8",
        "/usr/local/share/man/man8/csumfix.8",
        "/usr/local/share/zsh/site-functions/_csumfix",
    }
    for program in ("csumfix", "csumfix-rules"):
        assert (stage / "usr/local/bin" / program).resolve() == stage / VENV[1:] / "bin" / program


def test_installs_documents_alerts_dashboard_and_manifests(stage: Path) -> None:
    trees = ("docs", "deploy/grafana", "deploy/kubernetes", "deploy/prometheus")
    shipped = subprocess.run(
        ["git", "ls-files", *trees],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    places = (f"{DOC}/deploy/", f"{DOC}/docs/")
    installed = {path for path in files(stage) if path.startswith(places)}
    assert installed == {f"{DOC}/{path}" for path in shipped}


def test_links_of_installed_documents_lead_to_installed_files(stage: Path) -> None:
    documents = list((stage / DOC[1:]).rglob("*.md"))
    links = [
        (document, link)
        for document in documents
        for link in re.findall(r"\]\(([^)#]+)", document.read_text())
        if "://" not in link
    ]
    assert links
    assert not [link for document, link in links if not (document.parent / link).exists()]


def test_says_what_it_installed(tmp_path: Path) -> None:
    said = make("install", f"DESTDIR={tmp_path}", "PREFIX=/opt/csumfix")
    said = said[said.index("installed csumfix ") :]  # pip may have had something to say, too
    named = re.findall(r"/(?:opt|etc)/[\w./-]+\w", said)
    assert len(named) == 8
    assert all((tmp_path / path[1:]).exists() for path in named), named


def test_names_its_final_place_everywhere(stage: Path) -> None:
    needles = [str(stage).encode(), str(ROOT).encode()]
    for path in files(stage):
        file = stage / path[1:]
        if not file.is_symlink():
            content = file.read_bytes()
            assert not any(needle in content for needle in needles), path
    script = (stage / VENV[1:] / "bin/csumfix").read_text()
    assert script.startswith(f"#!{VENV}/bin/python")


def test_shells_complete(stage: Path) -> None:
    share = stage / "usr/local/share"
    bash = (share / "bash-completion/completions/csumfix").read_text()
    assert "complete -o nosort -F _csumfix_completion csumfix" in bash
    assert (share / "zsh/site-functions/_csumfix").read_text().startswith("#compdef csumfix\n")
    fish = (stage / "etc/fish/completions/csumfix.fish").read_text()
    assert "complete --no-files --command csumfix" in fish


def test_unit_exposes_little(stage: Path) -> None:
    limit = "--threshold=20"  # of 100, where systemd-analyze shows 10.0
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", limit]
    result = subprocess.run(
        [*command, stage / UNIT[1:]], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_uninstall_leaves_nothing(copy: Path) -> None:
    make("uninstall", f"DESTDIR={copy}")
    assert files(copy) == set()
    local = ("bin", "lib", "share", "share/man")  # Debian's base-files owns the last one, too
    kept = ["etc", "usr", "usr/local", *(f"usr/local/{name}" for name in local)]
    assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*")) == kept


def test_uninstall_leaves_no_prefix_of_our_own(tmp_path: Path) -> None:
    where = (f"DESTDIR={tmp_path}", "PREFIX=/opt/csumfix")
    make("install", *where)
    make("uninstall", *where)
    assert files(tmp_path) == set()
    assert sorted(path.name for path in (tmp_path / "opt").iterdir()) == []


def test_uninstall_keeps_what_the_operator_wrote_and_says_so(copy: Path) -> None:
    (copy / "etc/csumfix.toml").write_text("queues = 2\n")
    override = copy / "etc/systemd/system/csumfix.service.d/override.conf"
    override.parent.mkdir(parents=True)
    override.write_text("[Service]\nCPUWeight=200\n")
    said = make("uninstall", f"DESTDIR={copy}").splitlines()
    assert len(said) == 2
    assert "/etc/csumfix.toml" in said[0]
    assert "/etc/systemd/system/csumfix.service.d" in said[1]
    assert files(copy) == {
        "/etc/csumfix.toml",
        "/etc/systemd/system/csumfix.service.d/override.conf",
    }


def test_an_old_python_is_reported_before_anything_is_installed(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for target in ("build", "install"):
        command = ["make", "--always-make", "--directory", str(ROOT), target, f"PYTHON={old}"]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        assert result.returncode
        assert f"{old} is too old: csumfix needs 3.11" in result.stderr
        assert "installing" not in result.stdout


@pytest.mark.parametrize("prefix", ["/home/somebody", "/root/x", "/tmp/x", "relative"])
def test_refuses_a_prefix_that_the_service_could_not_see(prefix: str, tmp_path: Path) -> None:
    command = ["make", "--directory", str(ROOT), "install", PYTHON, f"PREFIX={prefix}"]
    result = subprocess.run(
        [*command, f"DESTDIR={tmp_path}"], check=False, capture_output=True, text=True
    )
    assert result.returncode
    assert f"PREFIX={prefix}: " in result.stderr
    assert files(tmp_path) == set()
