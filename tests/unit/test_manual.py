"""What is written from the code is current, and the man pages are clean."""

import re
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from csumfix import config, settingsfile
from csumfix.cli import cli
from csumfix.options import SETTINGS, LaneSetting, TunnelOptions
from manual import pages, rules, scdoc, settings
from manual.marks import Place

PAGES = sorted(pages.MAN.iterdir())
WRITTEN = "is not current: run make manual"


@pytest.mark.parametrize("file", pages.FILES, ids=lambda file: file.path.name)
def test_files_are_current(file: pages.File) -> None:
    found, wanted = (scdoc.body(text) for text in (file.path.read_text(), file.make()))
    assert found == wanted, f"{file.path.name} {WRITTEN}"


@pytest.mark.parametrize("table", pages.TABLES, ids=lambda table: table.place.begin)
def test_tables_are_current(table: pages.Table) -> None:
    assert table.place.read() == table.make(), f"{table.place.page.name} {WRITTEN}"


def test_every_man_page_is_written_from_the_code() -> None:
    written = [file.path for file in pages.FILES if file.path.parent == pages.MAN]
    assert sorted(written) == PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_and_groff_find_nothing_wrong(page: Path) -> None:
    for command in (["mandoc", "-Tlint", "-Wwarning"], ["groff", "-ww", "-man", "-Tutf8", "-z"]):
        result = subprocess.run([*command, page], check=False, capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_no_command_of_csumfix_is_missing() -> None:
    text = (pages.MAN / "csumfix.8").read_text()
    for name in cli.commands:
        assert f".SS csumfix {name} " in text


def test_no_option_of_csumfix_rules_is_missing() -> None:
    text = (pages.MAN / "csumfix-rules.8").read_text()
    options = re.findall(r"^  (?:-h, )?(--[\w-]+)", rules.usage(), flags=re.MULTILINE)
    assert len(options) > 10
    assert not [option for option in options if option not in text]


def test_sample_shows_the_defaults_of_all_settings(tmp_path: Path) -> None:
    sample = settings.sample()
    assert tomllib.loads(sample) == {}
    file = tmp_path / "csumfix.toml"
    file.write_text(re.sub(r"^#(?=[a-z-]+ = |\[)", "", sample, flags=re.MULTILINE))
    contents = settingsfile.read(file, config.FLAGS)
    shown = dict(contents.flags)
    assert contents.tunnels == {"flannel.1": TunnelOptions(LaneSetting.QUEUE)}
    assert shown.pop("metrics") == SETTINGS["metrics"].example  # it has no default
    assert len(shown) == sum(not setting.is_for_managers for setting in SETTINGS.values()) - 1
    with click.Command("run", params=[*config.FLAGS]).make_context("run", []) as context:
        defaults = {name: context.params[name] for name in shown}
    lists = {name: tuple(value) for name, value in shown.items() if isinstance(value, list)}
    assert {**shown, **lists} == defaults


def test_only_what_is_between_two_lines_is_replaced() -> None:
    place = Place(Path("page.md"), "<!-- begin -->", "<!-- end -->")
    text = "before\n<!-- begin -->\n\nold\n\n<!-- end -->\nafter\n"
    fresh = place.fill(text, "new")
    assert place.cut(fresh) == "new"
    assert fresh == text.replace("old", "new")
    with pytest.raises(ValueError, match="lacks the lines"):
        place.fill("no such lines", "new")


def test_nothing_in_a_text_is_taken_for_markup(tmp_path: Path) -> None:
    text = r"a_b_c *x* \n . | # - [y] <z>"
    page = tmp_path / "x.8"
    entry = scdoc.entry(f"*{scdoc.escape(text)}*", scdoc.escape(text))
    page.write_text(scdoc.render(f"x(8)\n\n# NAME\n\nx - y\n\n{entry}"))
    shown = subprocess.run(["mandoc", "-Tascii", page], check=True, capture_output=True, text=True)
    assert re.sub(r".\x08", "", shown.stdout).count(text) == 2
