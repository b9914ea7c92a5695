"""What is imported: nothing below knows what is above it, and a service that stays is small."""

import subprocess
import sys

from csumfix import cli
from csumfix_lab import CAUSES

RUN = """
import sys
from csumfix import cli, logs
def stop(_):
    from csumfix.service import metrics
    print(*sys.modules)
    sys.exit()
logs.set_up = stop  # the first thing that is called once all is imported
cli.cli(["run", "--metrics=127.0.0.1:9478"])
"""

BIG = {
    *("csumfix_lab", "scapy", "rich"),  # for people who look, and for trying it out
    *("ssl", "_hashlib"),  # OpenSSL: 4.5 MB
    *("http.server", "urllib.request", "wsgiref"),
    *("pyroute2.ndb", "pyroute2.ipdb", "pyroute2.iproute", "pyroute2.netlink.nlsocket"),
    "prometheus_client.exposition",
    "csumfix.views",
}


def test_the_service_imports_nothing_big_that_it_does_not_use() -> None:
    result = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "csumfix.service.metrics" in loaded
    assert BIG & loaded == set()
    # Our own are small, and counting them would speak against splitting a large one.
    others = {name for name in loaded if name.split(".")[0] != "csumfix"}
    assert len(others) < 290


PARTS = """
import sys
from csumfix.lean import absent, parts_of
with absent("ssl"):
    try:
        import ssl
    except ImportError:
        print("absent")
import ssl
with parts_of("pyroute2"):
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
assert "pyroute2" not in sys.modules
assert "pyroute2.iproute" not in sys.modules
with parts_of("pyroute2"):
    import pyroute2.netlink.rtnl.rtmsg
from pyroute2 import IPRoute, NDB
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg as later
assert later is ifinfmsg
with absent("ssl"), parts_of("ssl"), parts_of("pyroute2"):
    import ssl
    from pyroute2 import IPRoute
try:
    with parts_of("no_such_package"):
        pass
except ModuleNotFoundError as error:
    print(error.name)
"""


def test_what_was_left_out_of_an_import_can_be_imported_later() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PARTS], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["absent", "no_such_package"]


def test_the_command_line_knows_the_causes_of_the_lab() -> None:
    assert cli.LAB_CAUSES == CAUSES
