"""What the service makes of what csumfix-rules prints, by a script that stands in for it."""

from pathlib import Path

import pytest

from csumfix.errors import CsumfixError, Exit
from csumfix.host import rules

READ = """\
backend=iptables why=it is the first choice
family=4 lane=kernel state=present ports=8472 gate=none
family=4 lane=kernel rule=fill-8472 packets=12 bytes=3400 text=-A CSUMFIX-FILL
family=6 lane=kernel rule=fill-8472 packets=3 bytes=99 text=-A CSUMFIX-FILL
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "output").write_text(READ)
    monkeypatch.setattr(rules, "SCRIPT", tmp_path / "csumfix-rules")
    return tmp_path / "csumfix-rules"


@pytest.mark.parametrize("code", [Exit.OK, Exit.NEGATIVE])
def test_packets_are_counted_by_family_and_role(script: Path, code: Exit) -> None:
    script.write_text(f"cat {script.parent}/output; exit {code:d}")
    assert rules.packets() == {("4", "fill-8472"): 12, ("6", "fill-8472"): 3}


def test_counters_that_were_read_in_part_only_are_no_counters(script: Path) -> None:
    script.write_text(f"head -n 3 {script.parent}/output; echo the lock is held >&2; exit 5")
    with pytest.raises(CsumfixError, match="the lock is held") as caught:
        rules.packets()
    assert caught.value.code is Exit.KERNEL
