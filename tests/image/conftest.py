import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.builder import Builder
from tests.image.pod import Image


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """The image, built once, from nothing."""
    with tempfile.TemporaryDirectory(prefix="csumfix-image-") as folder:
        builder = Builder(Path(folder))
        builder.build()
        yield Image(builder.root(), builder.config())
