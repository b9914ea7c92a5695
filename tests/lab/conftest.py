"""Fixtures of the lab tests."""

from collections.abc import Iterator

import pytest

from csumfix_lab import Lab


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab with cause dnat, or with the cause that is the fixture's parameter."""
    with Lab(cause=getattr(request, "param", "dnat")) as lab:
        yield lab
