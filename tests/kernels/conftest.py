"""These tests run in a guest only, where what they need can be loaded; see __main__.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from csumfix_lab import Lab
from tests.kernels.tunnels import Exchange, build

if not Path("/run/outer").exists():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab without a cause of its own, with the module's TUNNELS, if it has any."""
    with Lab("none") as lab:
        tunnels = getattr(request.module, "TUNNELS", [])
        if tunnels:
            build(lab, tunnels)
        yield lab


@pytest.fixture(scope="module")
def exchange(lab: Lab) -> Exchange:
    return Exchange(lab)
