"""Writes the frames that arrive at a device to standard output, in pcap format.

    python -m csumfix_lab.capture DEVICE >FILE

tcpdump cannot capture in an ordinary user's lab: as root it always gives up its groups, which a
user namespace forbids. It can read this stream outside, where the user is not root. Frames that
leave are left out, because a sender's own frames still have partial checksums.
"""

import select
import struct
import sys
import time

from csumfix_lab.forwarder import Cable

_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)  # microseconds, Ethernet


def main(argv: list[str]) -> None:
    """Capture until killed, or until the reader has gone."""
    if len(argv) != 1:
        sys.exit(__doc__)
    cable, out = Cable(argv[0]), sys.stdout.buffer
    out.write(_HEADER)
    out.flush()
    poll = select.poll()
    poll.register(cable, select.POLLIN)
    try:
        while poll.poll():
            frame = cable.receive()
            seconds, nanoseconds = divmod(time.time_ns(), 10**9)
            size = len(frame)
            out.write(struct.pack("<IIII", seconds, nanoseconds // 1000, size, size) + frame)
            out.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        sys.stderr.close()  # keeps Python from reporting the broken pipe at exit


if __name__ == "__main__":
    main(sys.argv[1:])
