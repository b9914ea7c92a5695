"""What the tests of installing share: make, and the tree that it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Not the one that runs the tests: that may lie in somebody's home, which the service cannot see.
PYTHON = "PYTHON=/usr/bin/python3"


def make(*arguments: str) -> str:
    """Run make; return what it said, or fail with it."""
    command = ["make", "--no-print-directory", "--directory", str(ROOT), PYTHON, *arguments]
    result = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def files(directory: Path) -> set[str]:
    """Return the path of everything in the directory but directories, as if it were the root."""
    return {
        f"/{path.relative_to(directory)}"
        for path in directory.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
