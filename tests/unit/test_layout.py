"""What the packages may import of each other: nothing below knows what is above it."""

import subprocess
import sys

from csumfix import cli
from csumfix_lab import CAUSES

LOADED = "import sys; from csumfix import cli{more}; print(*sys.modules)"


def _modules(more: str = "") -> set[str]:
    code = LOADED.format(more=more)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_the_service_never_imports_the_lab() -> None:
    loaded = _modules("; from csumfix.service import service")
    assert not [name for name in loaded if name.startswith("csumfix_lab")]


def test_the_command_line_knows_the_causes_of_the_lab() -> None:
    assert cli.LAB_CAUSES == CAUSES
