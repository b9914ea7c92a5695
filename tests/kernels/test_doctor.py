"""csumfix doctor --kernel finds the bugs of a kernel that has IPVS."""

from __future__ import annotations

import json
import subprocess

import pytest

from csumfix.errors import Exit
from tests.lab.harness import CSUMFIX

pytestmark = pytest.mark.slow

BOTH = ("IPv4", "IPv6")


@pytest.fixture(scope="module")
def bugs() -> dict[tuple[str, bool, str], tuple[str, str | None]]:
    subprocess.run(["modprobe", "ip_vs"], check=True)  # doctor loads no modules
    result = subprocess.run(
        [*CSUMFIX, "doctor", "--kernel", "--json"], capture_output=True, text=True, check=False
    )
    assert result.returncode == Exit.NEGATIVE, result.stderr
    return {
        (bug["cause"], bug["outer_checksum"], bug["underlay"]): (bug["state"], bug["cure"])
        for bug in json.loads(result.stdout)["bugs"]
    }


def test_doctor_kernel_finds_the_bugs_of_nat(
    bugs: dict[tuple[str, bool, str], tuple[str, str | None]],
) -> None:
    for underlay in BOTH:
        for cause in ("kube-proxy", "cni", "snat", "dnat"):
            assert bugs[cause, True, underlay] == ("live", "kernel lane")
        assert bugs["stateless", True, underlay] == ("live", "queue lane")


def test_doctor_kernel_finds_the_bug_of_ipvs(
    bugs: dict[tuple[str, bool, str], tuple[str, str | None]],
) -> None:
    assert bugs["ipvs", True, "IPv4"][0] == "live"
    assert bugs["ipvs", False, "IPv4"] == ("live", "queue lane")
