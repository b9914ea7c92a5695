"""A place in a hand-written page that a program fills, between two lines of comment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """A place in a page.

    begin, end: the whole lines around it.
    """

    page: Path
    begin: str
    end: str

    def read(self) -> str:
        """Return what stands there."""
        return self.cut(self.page.read_text(encoding="utf-8"))

    def write(self, content: str) -> None:
        """Replace what stands there."""
        text = self.page.read_text(encoding="utf-8")
        self.page.write_text(self.fill(text, content), encoding="utf-8")

    def cut(self, text: str) -> str:
        """Return what stands between the two lines in the page's text."""
        return text.partition(self.begin)[2].partition(self.end)[0].strip()

    def fill(self, text: str, content: str) -> str:
        """Return the page's text with other content; raise ValueError if it has no such place."""
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not begin or not end:
            raise ValueError(f"{self.page.name} lacks the lines {self.begin!r} and {self.end!r}")
        return f"{before}{begin}\n\n{content}\n\n{end}{after}"
