"""csumfix-rules(8), from what ``csumfix-rules --help`` prints."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from manual.scdoc import entry, escape, literal, paragraph

SCRIPT = Path(__file__).parents[1] / "iptables/csumfix-rules"

AS_IT_IS = ("OUTPUT", "EXAMPLES")
"""Sections whose lines are not to be joined."""

TERM = re.compile(r"  (?P<term>\S.*?)(?P<gap>  +)(?P<text>\S.*)")


def usage() -> str:
    """Return the help text."""
    return subprocess.run(
        ["sh", SCRIPT, "--help"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _entry(lines: list[str]) -> str:
    """Return one term; lines that are indented further than its text stay as they are."""
    found = TERM.fullmatch(lines[0])
    if not found:
        return paragraph(escape(" ".join(lines)))
    column = found.start("text")
    split = next(
        (at for at, line in enumerate(lines) if at and line[column : column + 1] == " "),
        len(lines),
    )
    text = " ".join((found["text"], *lines[1:split]))
    more = literal("\n".join(lines[split:]), tabs=1) if lines[split:] else ""
    return entry(f"*{escape(found['term'])}*", escape(text)) + ("\n" + more if more else "")


def _entries(text: str) -> Iterator[str]:
    """Return the terms of one paragraph, or the paragraph."""
    if not text.startswith("  "):
        yield paragraph(escape(text))
        return
    for part in re.split(r"\n(?=  \S)", text):
        yield _entry(part.splitlines())


def sections() -> str:
    """Return everything below the name."""
    first, *parts = re.split(r"\n\n", usage().strip())
    wanted = [f"# SYNOPSIS\n\n*csumfix-rules* {escape(first.partition('csumfix-rules ')[2])}\n"]
    wanted.append("# DESCRIPTION\n")
    heading = ""
    for part in parts:
        title, _, text = part.partition("\n")
        if not title.endswith(":") or title.startswith(" "):
            text = part
        else:
            heading, _, remark = title.removesuffix(":").partition(", ")
            heading = heading.upper()
            wanted.append(f"# {heading}\n")
            if remark:
                wanted.append(paragraph(escape(f"{remark[0].upper()}{remark[1:]}.")))
        wanted += [literal(text)] if heading in AS_IT_IS else _entries(text)
    return "\n".join(wanted)
