"""nft on a kernel without nft_queue, such as this machine's.

A match that no packet meets stands in for the queue statement, so nothing is queued. All else is
as with nft_queue; tests/kernels has what needs that.
"""

from pathlib import Path

PROGRAM = r"""#!/bin/sh
case " $* " in
*' -f '*) sed 's/queue flags bypass to \([0-9]*\)/meta cpu 7\1/' | /usr/sbin/nft "$@" ;;
*)
    listing=$(/usr/sbin/nft "$@") || exit
    printf '%s\n' "$listing" | sed 's/meta cpu 7\([0-9]*\)/queue flags bypass to \1/' ;;
esac
"""


def stand_in(directory: Path) -> None:
    """Make such a program in a directory."""
    program = directory / "nft"
    program.write_text(PROGRAM)
    program.chmod(0o755)
