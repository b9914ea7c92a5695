"""Makes a virtual address of IPVS, whose packets it sends to the real one.

    python ipvs.py VIRTUAL REAL PORT

Run by path in a node. If the kernel refuses, it prints the kernel's answer in one line and exits
with 1. The module ip_vs must be loaded already; only root of the machine may load it.
"""

import socket
import sys

from pyroute2 import IPVS, IPVSDest, IPVSService
from pyroute2.netlink.exceptions import NetlinkError

_MASQUERADE = 0  # IP_VS_CONN_F_MASQ in linux/ip_vs.h: the destination address is rewritten


def main(argv: list[str]) -> None:
    """See the module's description."""
    if len(argv) != 3:  # noqa: PLR2004
        sys.exit(__doc__)
    virtual, real, port = argv
    service = IPVSService(addr=virtual, port=int(port), protocol=socket.IPPROTO_UDP)
    try:
        with IPVS() as ipvs:
            ipvs.service("add", service=service)
            dest = IPVSDest(addr=real, port=int(port), fwd_method=_MASQUERADE)
            ipvs.dest("add", service=service, dest=dest)
    except NetlinkError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
