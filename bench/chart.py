"""The chart: what each cure costs, at a glance."""

from __future__ import annotations

from pathlib import Path

from bench.report import Results


def draw(results: Results, path: Path) -> None:
    """Draw the results into a PNG file."""
    import matplotlib  # noqa: F401
