"""debian/ fits the project, and both kinds of package say the same; see debian/README.source."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NATIVE, BUNDLED = ROOT / "debian", ROOT / "debian/bundled"


def after(path: Path, heading: str) -> str:
    """Return the rest of a file, from a line that begins like this."""
    return path.read_text().partition(f"\n{heading}")[2]


def test_what_is_too_old_in_debian_12_is_needed_as_declared() -> None:
    control = (NATIVE / "control").read_text()
    needed = dict(re.findall(r"^ python3-(\S+) \(>= (\S+)\),$", control, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {one.name: str(one.specifier) for one in map(Requirement, project["dependencies"])}
    assert set(needed) == {"click", "pyroute2", "scapy"}
    assert needed == {name: declared[name].removeprefix(">=") for name in needed}


def test_both_kinds_of_package_say_the_same() -> None:
    for heading in ("Standards-Version:", "Suggests:"):
        first, second = (after(kind / "control", heading) for kind in (NATIVE, BUNDLED))
        assert first.split("\nDepends:")[0] == second.split("\nDepends:")[0]
    licences = [
        after(kind / "copyright", "License: Expat\n Permission") for kind in (NATIVE, BUNDLED)
    ]
    assert licences[1].startswith(licences[0])


def test_each_kind_of_licence_is_explained() -> None:
    for kind in (NATIVE, BUNDLED):
        text = (kind / "copyright").read_text()
        named = set(re.findall(r"^License: (.*)$", text, re.MULTILINE))
        explained = set(re.findall(r"^License: (.*)\n ", text, re.MULTILINE))
        assert {each for one in named for each in re.split(" and | or ", one)} == explained
