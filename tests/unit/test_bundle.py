"""The support bundle: private, new, bounded, and without addresses if that is wanted."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from pathlib import Path

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.host.programs import relative
from csumfix.views import bundle


def unpacked(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        texts = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file
            assert member.mode == 0o600
            texts[member.name.removeprefix("csumfix-bundle/")] = file.read().decode()
    return texts


def test_it_holds_what_it_is_given_and_says_what_was_replaced() -> None:
    parts = {"one.txt": "192.0.2.1 here\n", "two.txt": "there 192.0.2.1\n"}
    plain = unpacked(bundle.pack(parts, None))
    assert plain == {"README": bundle.README + bundle.NOT_REPLACED, **parts}
    replaced = unpacked(bundle.pack(parts, {}))
    assert replaced["one.txt"] == "198.18.0.1 here\n"
    assert replaced["two.txt"] == "there 198.18.0.1\n"
    assert "198.18.0.0/15" in replaced["README"]


def test_its_files_are_bounded() -> None:
    texts = unpacked(bundle.pack({"long.txt": "x" * 10_000_000}, None))
    assert len(texts["long.txt"]) < bundle.LONGEST + 100
    assert texts["long.txt"].endswith("(cut off here)\n")


def test_what_is_not_text_does_not_stop_it() -> None:
    assert unpacked(bundle.pack({"a": "\udcff"}, {"host": "host"}))["a"] == "\\udcff"


def test_what_cannot_be_read_says_why() -> None:
    def fail() -> str:
        raise CsumfixError("iptables is missing", Exit.MISSING)

    assert bundle.attempt(fail) == "(not readable: iptables is missing)\n"
    assert bundle.attempt(lambda: "text") == "text"


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_collect", lambda: {"part.txt": "10.0.0.1\n"})


@pytest.mark.usefixtures("collected")
def test_it_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new.tar.gz"
    with bundle.optional(path, replace=True) as finish:
        finish({"verdict": "10.0.0.1 is ill"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    texts = unpacked(path.read_bytes())
    assert json.loads(texts["diagnosis.json"]) == {"verdict": "198.18.0.1 is ill"}
    assert texts["part.txt"] == "198.18.0.1\n"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_it_overwrites_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "old"
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(CsumfixError, match="exists already; name a new file") as refused,
        bundle.optional(path, replace=False),
    ):
        pytest.fail("a bundle was begun")
    assert refused.value.code == Exit.USAGE
    assert [one.name for one in tmp_path.iterdir()] == ["old"]


@pytest.mark.usefixtures("collected")
def test_nothing_is_left_of_one_that_was_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "new.tar.gz"
    with pytest.raises(KeyboardInterrupt), bundle.optional(path, replace=False):
        raise KeyboardInterrupt
    assert not path.exists()


def test_without_a_file_nothing_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_collect", lambda: pytest.fail("collected"))
    with bundle.optional(None, replace=False) as finish:
        finish({})


def test_relatives_of_iptables() -> None:
    assert relative("iptables", "-save", ipv6=True) == "ip6tables-save"
    path = "/opt/iptables/iptables-host"
    assert relative(path, "-save", ipv6=False) == f"{path}-save"
    assert relative(path, "-save", ipv6=True) == "/opt/iptables/ip6tables-host-save"
