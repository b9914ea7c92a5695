"""The little of scdoc(5) that the man pages are written in."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap

WIDTH = 78
EPOCH = "1795910400"  # 2026-11-29, so that a page differs only where its text does


def escape(text: str) -> str:
    """Return text in which nothing is markup."""
    return re.sub(r"([\\*_])", r"\\\1", text)


def paragraph(text: str, tabs: int = 0) -> str:
    """Return wrapped text, which may hold markup."""
    indent = "\t" * tabs
    lines = textwrap.wrap(
        " ".join(text.split()), WIDTH - 8 * tabs, break_long_words=False, break_on_hyphens=False
    )
    # Some characters mean something at the beginning of a line.
    return "\n".join(indent + re.sub(r"^(?=[-.#|\[\]<>])", r"\\", line) for line in lines) + "\n"


def entry(term: str, text: str) -> str:
    """Return a term, which may hold markup, and what is said of it."""
    return f"{term}\n{paragraph(text, tabs=1)}"


def literal(text: str, tabs: int = 0) -> str:
    """Return text that stays as it is."""
    indent = "\t" * tabs
    lines = ("```", *textwrap.dedent(text).strip("\n").splitlines(), "```")
    return "\n".join((indent + line).rstrip() for line in lines) + "\n"


def render(source: str) -> str:
    """Return the page in the language of man(7)."""
    page = subprocess.run(
        ["scdoc"],
        input=source,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
    ).stdout
    return _tidy(page)


def _tidy(page: str) -> str:
    """Return the page without the paragraphs that scdoc leaves empty: mandoc warns of them.

    scdoc 1.11.2 writes P, 1.11.3 writes PP; they mean the same.
    """
    page = re.sub(r"^\.PP$", ".P", page, flags=re.MULTILINE)
    while ".P\n.RE\n" in page:
        page = page.replace(".P\n.RE\n", ".RE\n.P\n")
    page = re.sub(r"^(\.(?:TH|SH|SS)\b.*\n)(?:\.P\n)+", r"\1", page, flags=re.MULTILINE)
    page = re.sub(r"(?:\.P\n)+(?=\.(?:P|SH|SS|RS|nf)\b)", "", page)
    return re.sub(r"(?:\.P\n)+$", "", page)


def body(page: str) -> str:
    """Return a page without the comment that names the version of scdoc."""
    return "\n".join(line for line in page.splitlines() if not line.startswith('.\\"'))
