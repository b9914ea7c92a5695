"""Programs are looked for where the installer of this package puts them."""

import sysconfig
from pathlib import Path

import pytest

from csumfix import installation


@pytest.mark.parametrize("scheme", ["posix_home", "posix_prefix", "posix_user"])
def test_scripts_are_where_this_way_of_installing_puts_them(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    package = Path(sysconfig.get_path("platlib", scheme)) / "csumfix"
    monkeypatch.setattr(installation, "__file__", str(package / "installation.py"))
    assert installation.scripts() == Path(sysconfig.get_path("scripts", scheme))


def test_scripts_of_a_checkout_are_in_its_environment() -> None:
    assert installation.scripts() == Path(sysconfig.get_path("scripts"))
    assert (installation.scripts() / "csumfix-rules").exists()
