"""Fixtures: the installed tree, and a machine on which it is the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from csumfix_lab import Lab
from tests.install.machine import Machine
from tests.install.tree import make


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a DESTDIR with csumfix in it; leave it as it is."""
    destination: Path = tmp_path_factory.mktemp("stage")
    make("install", f"DESTDIR={destination}")
    return destination


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(getattr(request, "param", "none")) as lab:
        yield lab


@pytest.fixture
def machine(lab: Lab, stage: Path) -> Iterator[Machine]:
    """Return a machine with the service installed, and not yet started."""
    with Machine(lab) as machine:
        for directory in ("/etc", "/usr/local"):  # never "/", which is the host's own
            machine.run(["cp", "-a", f"{stage}{directory}/.", directory])
        machine.run(["systemctl", "daemon-reload"])
        yield machine
