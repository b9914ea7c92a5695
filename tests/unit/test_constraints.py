"""The versions that image, `make install` and Debian 12's package are made of."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def declared(table: str, key: str) -> list[Requirement]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [Requirement(line) for line in document[table][key]]


def pinned(name: str) -> dict[str, str]:
    text = (ROOT / "constraints" / name).read_text()
    return dict(re.findall(r"^(\S+)==([^\s;]+)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("file", "requirements"),
    [
        ("service.txt", declared("project", "dependencies")),
        ("build.txt", declared("build-system", "requires")),
    ],
)
def test_each_requirement_has_a_version_that_it_allows(
    file: str, requirements: list[Requirement]
) -> None:
    versions = pinned(file)
    for requirement in requirements:
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: run make constraints"


@pytest.mark.parametrize("file", ["service.txt", "build.txt"])
def test_each_version_has_a_hash(file: str) -> None:
    entries = (ROOT / "constraints" / file).read_text().split("\n    # via")
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)


def test_both_files_name_the_same_versions() -> None:
    service, build = pinned("service.txt"), pinned("build.txt")
    assert not [name for name in service.keys() & build.keys() if service[name] != build[name]]
