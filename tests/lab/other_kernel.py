"""``csumfix run`` on a kernel that differs from this one in its queues.

    python other_kernel.py short-queues|no-queues ... run OPTION...

What the service needs of a kernel is handed in, so this is the service itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from csumfix import config, logs
from csumfix.cli import run_command
from csumfix.core import Policy
from csumfix.errors import CsumfixError, Exit
from csumfix.host.queues import KernelQueue
from csumfix.service import service
from csumfix.service.kernel import NetfilterQueues, Queue, Queues, real_kernel


class NoQueues:
    """A kernel without NFQUEUE."""

    def bind(self, number: int, policy: Policy) -> Queue:
        raise CsumfixError(f"this kernel has no NFQUEUE for queue {number}", Exit.KERNEL)

    def bound(self) -> dict[int, KernelQueue]:
        raise CsumfixError("this kernel has no NFQUEUE", Exit.KERNEL)

    def require_free(self, numbers: Sequence[int]) -> None:
        pass

    def exist(self) -> bool:
        return False


# The socket fills before a queue of the usual length does.
QUEUES: dict[str, Queues] = {
    "short-queues": NetfilterQueues(max_length=16),
    "no-queues": NoQueues(),
}


def main() -> None:
    arguments = sys.argv[sys.argv.index("run") + 1 :]
    with run_command.make_context("run", arguments) as context:
        options = config.options(context)
    logs.set_up(options.log_format)
    try:
        service.run(options, lambda: options, [], real_kernel(QUEUES[sys.argv[1]]))
    except CsumfixError as error:
        print(f"csumfix: {error}", file=sys.stderr)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
