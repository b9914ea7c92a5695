"""Where what was installed with this package is."""

from __future__ import annotations

import sysconfig
from pathlib import Path


def scripts() -> Path:
    """Return the directory of csumfix-rules and csumfix.

    It is Python's default only in a virtual environment. Debian's Python has /usr/local as its
    default, and Debian's packages are elsewhere, as is what pip --user has installed.
    """
    home = Path(__file__).parents[1]
    for scheme in sysconfig.get_scheme_names():
        if Path(sysconfig.get_path("platlib", scheme)) == home:
            return Path(sysconfig.get_path("scripts", scheme))
    return Path(sysconfig.get_path("scripts"))
