"""What is written from the code, and where it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template

from manual import commands, rules, settings
from manual.marks import Place
from manual.scdoc import render

ROOT = Path(__file__).parents[1]
MAN = ROOT / "man"
OPERATING = ROOT / "docs/operating.md"


@dataclass(frozen=True)
class File:
    """A file that is written whole."""

    path: Path
    make: Callable[[], str]


@dataclass(frozen=True)
class Table:
    """A table in a hand-written page."""

    place: Place
    make: Callable[[], str]


def _page(name: str, **parts: Callable[[], str]) -> File:
    """Return a man page, whose hand-written part is beside this module."""

    def make() -> str:
        template = (Path(__file__).parent / f"{name}.scd").read_text(encoding="utf-8")
        return render(Template(template).substitute({key: part() for key, part in parts.items()}))

    return File(MAN / name, make)


def _table(what: str, make: Callable[[], str]) -> Table:
    begin, end = f"<!-- {what}: `make manual` writes this -->", f"<!-- end of {what} -->"
    return Table(Place(OPERATING, begin, end), make)


FILES = (
    File(ROOT / "systemd/csumfix.toml", settings.sample),
    _page("csumfix.8", commands=commands.sections, exit_status=commands.exit_status),
    _page("csumfix-rules.8", sections=rules.sections),
    _page(
        "csumfix.toml.5", settings=settings.entries, device_settings=settings.entries_of_a_device
    ),
)
TABLES = (
    _table("settings", settings.table),
    _table("exit codes", commands.exit_table),
)


def write(what: File | Table) -> None:
    """Write it."""
    if isinstance(what, Table):
        what.place.write(what.make())
    else:
        what.path.parent.mkdir(exist_ok=True)
        what.path.write_text(what.make(), encoding="utf-8")
