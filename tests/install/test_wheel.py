"""make wheel: one file for every Python and every distribution of this machine's kind."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

from tests.install.tree import make

USE = """
from csumfix.core import checksum
print(hex(checksum(bytes.fromhex("0001f203f4f5f6f7"))))  # of RFC 1071, section 3
"""


def test_a_wheel_fits_every_python_and_glibc_since_2_17(tmp_path: Path) -> None:
    make("wheel", f"WHEELS={tmp_path}/wheels")
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    tags = rf"-cp311-abi3-(\w+\.)?manylinux_2_17_{platform.machine()}\.whl$"
    assert re.search(tags, wheel.name), wheel.name
    assert list((tmp_path / "wheels").glob("csumfix-*.tar.gz"))

    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    subprocess.run([*pip, "cffi"], check=True)
    answer = subprocess.check_output([python, "-P", "-c", USE], cwd=tmp_path, text=True)
    assert answer == "0xddf2\n"
    assert (python.parent / "csumfix-rules").exists()
