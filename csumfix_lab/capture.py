"""Writes the frames that arrive at a device to standard output, as a pcap stream.

    python -m csumfix_lab.capture DEVICE >FILE

For tcpdump, which cannot capture in an ordinary user's lab itself: started as root it insists on
giving up its groups, and a user namespace forbids that. It can read the stream outside, where the
user is not root. Only arriving frames: a sender's own are seen with their checksums not finished.
"""

import select
import struct
import sys
import time

from csumfix_lab.forwarder import Cable

_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)  # microseconds, Ethernet


def main(argv: list[str]) -> None:
    """Capture until killed, or until nobody reads any more."""
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
        sys.stderr.close()  # or Python would complain about the pipe at exit


if __name__ == "__main__":
    main(sys.argv[1:])
