"""Debian's prometheus, which `make` unpacks without installing it."""

import subprocess
from pathlib import Path

PROGRAMS = Path("build/prometheus/usr/bin").resolve()
PROMETHEUS = PROGRAMS / "prometheus"


def promtool(*arguments: str | Path, input: str | None = None) -> str:  # noqa: A002
    """Run promtool and return what it has to say; it must succeed."""
    result = subprocess.run(
        [PROGRAMS / "promtool", *arguments],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        input=input,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout
